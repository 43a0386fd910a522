#include "lib/thread/elastic_pool.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "test/support/manual_host.h"

namespace sluice {
namespace {

struct Thing {
  Thing() { ++alive; }
  ~Thing() { --alive; }
  int number = 0;
  static inline int alive = 0;
};
struct OtherThing {};

using Pool = ElasticPool<Thing>;

class ElasticPoolTest : public testing::Test {
 protected:
  std::vector<std::unique_ptr<Thing>> take(int count) {
    return hosts_.on(app_, [&] {
      std::vector<std::unique_ptr<Thing>> taken;
      for (int i = 0; i < count; ++i) taken.push_back(pool_.take());
      return taken;
    });
  }
  void give_back(std::vector<std::unique_ptr<Thing>> things) {
    hosts_.on(app_, [&] {
      for (auto& thing : things) pool_.give_back(std::move(thing));
    });
  }
  void pass(uint64_t ns) {
    hosts_.advance(ns);
    hosts_.run_until_idle();
  }

  struct NothingIsLeft {
    ~NothingIsLeft() { EXPECT_EQ(Thing::alive, 0); }
  } after_the_hosts_;
  ManualHosts hosts_{2};
  LwThread& app_ = hosts_.home(0);
  Pool& pool_ = hosts_.on(app_, [this]() -> std::reference_wrapper<Pool> { return Pool::of(hosts_[0]); });
};

TEST_F(ElasticPoolTest, ExistsOncePerHostAndType) {
  hosts_.on(app_, [&] { EXPECT_EQ(&Pool::of(hosts_[0]), &pool_); });
  hosts_.on(hosts_.home(1), [&] { EXPECT_NE(&Pool::of(hosts_[1]), &pool_); });
  hosts_.on(app_, [&] { EXPECT_NE(static_cast<void*>(&ElasticPool<OtherThing>::of(hosts_[0])), &pool_); });
}

TEST_F(ElasticPoolTest, HoldsNothingUntilSomethingIsGivenBack) {
  EXPECT_EQ(pool_.spare(), 0U);
  EXPECT_EQ(Thing::alive, 0);
  EXPECT_EQ(app_.next_deadline_ns(), UINT64_MAX) << "and costs no timer";
}

TEST_F(ElasticPoolTest, HandsOutWhatWasGivenBack) {
  auto taken = take(3);
  EXPECT_EQ(Thing::alive, 3);
  taken[2]->number = 7;
  const Thing* last = taken[2].get();
  give_back(std::move(taken));
  EXPECT_EQ(pool_.spare(), 3U);
  taken = take(1);
  EXPECT_EQ(taken[0].get(), last) << "the one that is warmest";
  EXPECT_EQ(taken[0]->number, 7);
  EXPECT_EQ(pool_.spare(), 2U);
  EXPECT_EQ(Thing::alive, 3);
}

TEST_F(ElasticPoolTest, FreesWhatIsSpareWhenNobodyTakesAny) {
  give_back(take(5));
  pass(Pool::kIntervalNs);
  EXPECT_EQ(pool_.spare(), 5U) << "some were taken in the past second";
  pass(Pool::kIntervalNs);
  EXPECT_EQ(pool_.spare(), 0U);
  EXPECT_EQ(Thing::alive, 0);
  EXPECT_EQ(app_.next_deadline_ns(), UINT64_MAX) << "no timer is left";
}

TEST_F(ElasticPoolTest, KeepsWhatWasNeededAtOnceInThePastInterval) {
  for (int second = 0; second < 10; ++second) {
    give_back(take(5));
    give_back(take(2));
    pass(Pool::kIntervalNs);
    EXPECT_EQ(Thing::alive, 5);
  }
  const auto taken = take(3);
  pass(Pool::kIntervalNs);
  EXPECT_EQ(pool_.spare(), 0U) << "of five, three are taken, and no more were";
}

TEST_F(ElasticPoolTest, ForgetsABurstUnderLightLoad) {
  give_back(take(1000));
  for (int second = 0; second < 3; ++second) {
    give_back(take(1));
    pass(Pool::kIntervalNs);
  }
  EXPECT_EQ(pool_.spare(), 1U);
  EXPECT_EQ(Thing::alive, 1);
}

TEST_F(ElasticPoolTest, ForgetsABurstWhileOthersStayTaken) {
  auto taken = take(10);
  give_back(take(1000));
  pass(Pool::kIntervalNs);
  EXPECT_EQ(pool_.spare(), 1000U) << "that many were needed in the past interval";
  pass(Pool::kIntervalNs);
  EXPECT_EQ(pool_.spare(), 0U);
  EXPECT_EQ(Thing::alive, 10);
  EXPECT_EQ(app_.next_deadline_ns(), UINT64_MAX) << "no timer is left";
  give_back(std::move(taken));
  pass(Pool::kIntervalNs);
  pass(Pool::kIntervalNs);
  EXPECT_EQ(Thing::alive, 0);
}

TEST_F(ElasticPoolTest, ObjectsThatTheirTakersDeleteDoNotKeepOthersAlive) {
  take(100).clear();
  give_back(take(5));
  pass(Pool::kIntervalNs);
  pass(Pool::kIntervalNs);
  EXPECT_EQ(Thing::alive, 0);
  for (int second = 0; second < 3; ++second) {
    give_back(take(2));
    pass(Pool::kIntervalNs);
    EXPECT_EQ(Thing::alive, 2);
  }
}

TEST_F(ElasticPoolTest, FreesTheOnesThatWereGivenBackFirst) {
  auto taken = take(3);
  taken[2]->number = 7;
  give_back(std::move(taken));
  pass(Pool::kIntervalNs);
  taken = take(1);
  EXPECT_EQ(taken[0]->number, 7);
  give_back(std::move(taken));
  pass(Pool::kIntervalNs);
  ASSERT_EQ(pool_.spare(), 1U);
  EXPECT_EQ(take(1)[0]->number, 7) << "the one that is warmest";
}

TEST_F(ElasticPoolTest, GrowsAgainAfterItHasShrunk) {
  give_back(take(2));
  pass(Pool::kIntervalNs);
  pass(Pool::kIntervalNs);
  EXPECT_EQ(Thing::alive, 0);
  give_back(take(2));
  EXPECT_EQ(pool_.spare(), 2U);
  pass(Pool::kIntervalNs);
  pass(Pool::kIntervalNs);
  EXPECT_EQ(Thing::alive, 0);
}

TEST_F(ElasticPoolTest, NeverFreesWhatIsTaken) {
  const auto taken = take(2);
  give_back(take(1));
  pass(Pool::kIntervalNs);
  pass(Pool::kIntervalNs);
  EXPECT_EQ(Thing::alive, 2);
}

TEST(ElasticPool, DiesWithItsHostEvenWhenItHoldsSomething) {
  {
    ManualHosts hosts;
    hosts.on(hosts.home(), [&] {
      Pool& pool = Pool::of(hosts[0]);
      pool.give_back(pool.take());
    });
    EXPECT_EQ(Thing::alive, 1);
  }
  EXPECT_EQ(Thing::alive, 0);
}

}  // namespace
}  // namespace sluice
