#include "lib/thread/timer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "test/support/manual_host.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;

class TimerTest : public testing::Test {
 protected:
  // Arms it `in_ns` from now.
  void arm(Timer& timer, uint64_t in_ns) {
    hosts_.on(thread_, [&] { timer.arm_at(thread_, hosts_.now_ns() + in_ns); });
  }
  void arm_periodic(Timer& timer, uint64_t period_ns) {
    hosts_.on(thread_, [&] { timer.arm_periodic(thread_, period_ns); });
  }
  void cancel(Timer& timer) {
    hosts_.on(thread_, [&] { timer.cancel(); });
  }
  void pass(uint64_t ns) {
    hosts_.advance(ns);
    hosts_.run_until_idle();
  }

  ManualHosts hosts_;
  LwThread& thread_ = hosts_.home();
  int fired_ = 0;
};

TEST_F(TimerTest, FiresOnceAtItsDeadlineAndNotBefore) {
  Timer timer("test", [this] { ++fired_; });
  arm(timer, 100);
  EXPECT_TRUE(timer.armed());
  pass(99);
  EXPECT_EQ(fired_, 0);
  pass(1);
  EXPECT_EQ(fired_, 1);
  EXPECT_FALSE(timer.armed());
  EXPECT_EQ(timer.run_count(), 1U);
  pass(1000);
  EXPECT_EQ(fired_, 1);
}

TEST_F(TimerTest, FiresInTheNextTurnWhenItsDeadlineHasPassed) {
  Timer timer("test", [this] { ++fired_; });
  hosts_.on(thread_, [&] { timer.arm_at(thread_, 0); });
  EXPECT_EQ(fired_, 0);
  hosts_.turn();
  EXPECT_EQ(fired_, 1);
}

TEST_F(TimerTest, FiresOnItsThread) {
  LwThread* ran_on = nullptr;
  Timer timer("test", [&] { ran_on = LwThread::current(); });
  arm(timer, 1);
  pass(1);
  EXPECT_EQ(ran_on, &thread_);
}

TEST_F(TimerTest, ArmingAgainMovesIt) {
  Timer timer("test", [this] { ++fired_; });
  arm(timer, 100);
  arm(timer, 200);
  pass(150);
  EXPECT_EQ(fired_, 0);
  pass(50);
  EXPECT_EQ(fired_, 1);
  arm(timer, 200);
  arm(timer, 100);
  pass(100);
  EXPECT_EQ(fired_, 2);
}

TEST_F(TimerTest, DoesNotFireOnceCancelledOrDestroyed) {
  Timer timer("test", [this] { ++fired_; });
  arm(timer, 100);
  cancel(timer);
  EXPECT_FALSE(timer.armed());
  cancel(timer);
  auto other = std::make_unique<Timer>("test", [this] { ++fired_; });
  arm(*other, 100);
  hosts_.on(thread_, [&] { other.reset(); });
  pass(1000);
  EXPECT_EQ(fired_, 0);
}

TEST_F(TimerTest, PeriodicOneFiresEachPeriod) {
  Timer timer("test", [this] { ++fired_; });
  arm_periodic(timer, 100);
  EXPECT_EQ(timer.period_ns(), 100U);
  pass(99);
  EXPECT_EQ(fired_, 0) << "first after one period";
  pass(1);
  EXPECT_EQ(fired_, 1);
  for (int i = 2; i <= 5; ++i) {
    pass(100);
    EXPECT_EQ(fired_, i);
  }
  cancel(timer);
  pass(1000);
  EXPECT_EQ(fired_, 5);
}

TEST_F(TimerTest, PeriodicOneSkipsMissedPeriodsAndKeepsItsPhase) {
  Timer timer("test", [this] { ++fired_; });
  arm_periodic(timer, 100);
  pass(1050);
  EXPECT_EQ(fired_, 1) << "not once per missed period";
  pass(49);
  EXPECT_EQ(fired_, 1);
  pass(1);
  EXPECT_EQ(fired_, 2) << "at 1100, not at 1150";
  cancel(timer);
}

TEST_F(TimerTest, PeriodicOneArmedForADeadlineFiresOnce) {
  Timer timer("test", [this] { ++fired_; });
  arm_periodic(timer, 100);
  arm(timer, 50);
  pass(50);
  EXPECT_EQ(fired_, 1);
  EXPECT_FALSE(timer.armed());
  pass(1000);
  EXPECT_EQ(fired_, 1);
}

TEST_F(TimerTest, MayCancelItselfFromInside) {
  Timer timer("test", [&] {
    if (++fired_ == 2) timer.cancel();
  });
  arm_periodic(timer, 100);
  for (int i = 0; i < 5; ++i) pass(100);
  EXPECT_EQ(fired_, 2);
  EXPECT_FALSE(timer.armed());
}

TEST_F(TimerTest, MayArmItselfFromInside) {
  Timer timer("test", [&] {
    if (++fired_ < 3) timer.arm_at(thread_, thread_.now_ns() + 10);
  });
  arm(timer, 10);
  pass(10);
  EXPECT_EQ(fired_, 1);
  pass(10);
  EXPECT_EQ(fired_, 2);
  pass(10);
  EXPECT_EQ(fired_, 3);
  EXPECT_FALSE(timer.armed());
}

TEST_F(TimerTest, OneThatArmsItselfForNowDoesNotHoldUpItsThread) {
  Timer timer("test", [&] {
    ++fired_;
    timer.arm_at(thread_, thread_.now_ns());
  });
  int others = 0;
  Timer other("test", [&] { ++others; });
  arm(timer, 10);
  arm(other, 10);
  hosts_.advance(10);
  hosts_.turn();
  EXPECT_GE(fired_, 1);
  hosts_.advance(1);
  hosts_.turn();
  EXPECT_EQ(others, 1);
  EXPECT_GE(fired_, 2);
  cancel(timer);
}

TEST_F(TimerTest, MayCancelAnotherThatIsDueInTheSameTurn) {
  Timer* timers[2] = {};
  Timer first("test", [&] {
    ++fired_;
    timers[1]->cancel();
  });
  Timer second("test", [&] {
    ++fired_;
    timers[0]->cancel();
  });
  timers[0] = &first;
  timers[1] = &second;
  arm(first, 10);
  arm(second, 10);
  pass(10);
  EXPECT_EQ(fired_, 1);
  EXPECT_FALSE(first.armed() || second.armed());
}

TEST_F(TimerTest, FireInTheOrderOfTheirDeadlines) {
  std::vector<int> order;
  std::vector<std::unique_ptr<Timer>> timers;
  for (const int at : {30, 10, 50, 20, 40}) {
    timers.push_back(std::make_unique<Timer>("test", [&order, at] { order.push_back(at); }));
    arm(*timers.back(), static_cast<uint64_t>(at));
  }
  pass(100);
  EXPECT_THAT(order, ElementsAre(10, 20, 30, 40, 50));
}

TEST_F(TimerTest, ThreadShowsItsEarliestDeadline) {
  Timer first("test", [] {});
  Timer second("test", [] {});
  EXPECT_EQ(thread_.next_deadline_ns(), UINT64_MAX);
  arm(first, 200);
  arm(second, 100);
  EXPECT_EQ(thread_.next_deadline_ns(), hosts_.now_ns() + 100);
  cancel(second);
  EXPECT_EQ(thread_.next_deadline_ns(), hosts_.now_ns() + 200);
  cancel(first);
  EXPECT_EQ(thread_.next_deadline_ns(), UINT64_MAX);
  EXPECT_FALSE(hosts_[0].runnable()) << "waiting for a deadline is not work";
}

TEST_F(TimerTest, EachThreadOfAHostHasItsOwn) {
  ThreadDirectory threads(hosts_);
  std::vector<LwThread*> made;
  std::vector<std::unique_ptr<Timer>> timers;
  std::vector<uint64_t> order;
  for (uint64_t i = 0; i < 3; ++i) {
    made.push_back(*threads.create("thread", hosts_.all_cpus()));
    timers.push_back(std::make_unique<Timer>("test", [&order] { order.push_back(LwThread::current()->id()); }));
    hosts_.on(*made[i], [&] { timers[i]->arm_at(*made[i], hosts_.now_ns() + 30 - 10 * i); });
  }
  for (int i = 0; i < 3; ++i) pass(10);
  EXPECT_THAT(order, ElementsAre(made[2]->id(), made[1]->id(), made[0]->id()));
  for (LwThread* thread : made) hosts_.await(thread_, threads.destroy(*thread));
}

}  // namespace
}  // namespace sluice
