#include "lib/thread/poller.h"

#include <memory>
#include <random>
#include <vector>

#include "test/thread/poller_fixture.h"

namespace sluice {
namespace {

TEST_F(PollerTest, NotificationMakesAColdOneHot) {
  TestPoller poller;
  poller.use_eventfd();
  add(poller);
  hosts_.run_until_idle();
  ASSERT_FALSE(poller.hot());
  for (int round = 1; round <= 3; ++round) {
    poller.add_work(2);
    hosts_.run_until_idle();
    EXPECT_EQ(poller.work, 0);
    EXPECT_EQ(poller.wakes, round);
    EXPECT_FALSE(poller.hot());
    EXPECT_TRUE(poller.armed);
  }
  remove(poller);
}

TEST_F(PollerTest, NotificationOfAHotOneIsHarmless) {
  hosts_.set_mode(PollMode::kPoll);
  TestPoller poller;
  poller.use_eventfd();
  add(poller);
  poller.notify();
  turn(3);
  EXPECT_EQ(poller.polls, 3);
  EXPECT_EQ(poller.wakes, 0);
  remove(poller);
}

TEST_F(PollerTest, NotificationMayBeChangedWhileItIsAdded) {
  TestPoller poller;
  poller.use_eventfd();
  add(poller);
  hosts_.run_until_idle();
  hosts_.on(thread_, [&] { poller.set_notification(-1); });
  poller.notify();
  hosts_.run_until_idle();
  EXPECT_FALSE(poller.hot());
  EXPECT_EQ(poller.wakes, 0);
  hosts_.on(thread_, [&] { poller.use_eventfd(); });
  hosts_.run_until_idle();
  EXPECT_EQ(poller.wakes, 1) << "the descriptor is readable when it is added, so nothing that came before is lost";
  remove(poller);
}

TEST_F(PollerTest, MakeHotServesOneWithoutADescriptor) {
  TestPoller poller;
  add(poller);
  hosts_.run_until_idle();
  hosts_.on(thread_, [&] {
    poller.add_work(0);
    poller.work = 1;
    poller.make_hot();
    poller.make_hot();
  });
  EXPECT_EQ(poller.wakes, 1);
  hosts_.run_until_idle();
  EXPECT_EQ(poller.work, 0);
  EXPECT_FALSE(poller.hot());
  remove(poller);
}

TEST_F(PollerTest, MakeColdTakesItOffThePollListInAnyMode) {
  for (const PollMode mode : {PollMode::kPoll, PollMode::kInterrupt, PollMode::kAdaptive}) {
    hosts_.set_mode(mode);
    TestPoller poller;
    poller.work = 5;
    add(poller);
    hosts_.on(thread_, [&] { poller.make_cold(); });
    turn(3);
    EXPECT_EQ(poller.polls, 0);
    EXPECT_FALSE(host_.runnable());
    hosts_.on(thread_, [&] { poller.make_hot(); });
    turn();
    EXPECT_EQ(poller.polls, 1);
    remove(poller);
    turn();
  }
}

TEST_F(PollerTest, OneThatMadeItselfColdInsidePollIsNotAskedToSleep) {
  for (const PollMode mode : {PollMode::kPoll, PollMode::kInterrupt}) {
    hosts_.set_mode(mode);
    TestPoller* self = nullptr;
    TestPoller poller([&self] {
      self->make_cold();
      return false;
    });
    self = &poller;
    // It knows that no work can come; what try_sleep() would answer is of no interest.
    poller.work_before_sleep = 1;
    add(poller);
    hosts_.run_until_idle();
    EXPECT_EQ(poller.polls, 1);
    EXPECT_EQ(poller.sleeps, 0);
    EXPECT_FALSE(poller.hot());
    EXPECT_FALSE(host_.runnable());
    remove(poller);
  }
}

TEST_F(PollerTest, SwitchToPollModeMakesAllHot) {
  TestPoller first;
  TestPoller second;
  second.use_eventfd();
  add(first);
  add(second);
  hosts_.run_until_idle();
  EXPECT_FALSE(first.hot() || second.hot());
  const int polls = first.polls;
  hosts_.set_mode(PollMode::kPoll);
  EXPECT_TRUE(first.hot() && second.hot());
  EXPECT_EQ(first.wakes, 1);
  EXPECT_FALSE(second.armed);
  turn(2);
  EXPECT_EQ(first.polls, polls + 2);
  hosts_.set_mode(PollMode::kInterrupt);
  hosts_.run_until_idle();
  EXPECT_FALSE(first.hot() || second.hot());
  remove(first);
  remove(second);
}

TEST_F(PollerTest, RemovedOneIsWokenUpAndNoLongerNotified) {
  TestPoller poller;
  poller.use_eventfd();
  add(poller);
  hosts_.run_until_idle();
  EXPECT_TRUE(poller.armed);
  const int polls = poller.polls;
  remove(poller);
  EXPECT_FALSE(poller.armed);
  EXPECT_EQ(poller.thread(), nullptr);
  poller.notify();
  hosts_.run_until_idle();
  EXPECT_EQ(poller.polls, polls);
  add(poller);  // and may come back
  hosts_.run_until_idle();
  EXPECT_GT(poller.polls, polls);
  remove(poller);
}

TEST_F(PollerTest, CountsItsTurnsAndThoseWithWork) {
  TestPoller poller;
  poller.work = 3;
  add(poller);
  turn(4);
  EXPECT_EQ(poller.run_count(), 4U);
  EXPECT_EQ(poller.busy_count(), 3U);
  remove(poller);
}

TEST_F(PollerTest, EachHotOneIsPolledOncePerTurn) {
  hosts_.set_mode(PollMode::kPoll);
  std::vector<std::unique_ptr<TestPoller>> pollers;
  for (int i = 0; i < 5; ++i) add(*pollers.emplace_back(std::make_unique<TestPoller>()));
  turn(7);
  for (const auto& poller : pollers) {
    EXPECT_EQ(poller->polls, 7);
    remove(*poller);
  }
}

TEST_F(PollerTest, OneThatStaysHotIsPolledOncePerTurnAfterOthersWentCold) {
  TestPoller cold;
  TestPoller hot([] { return true; });
  add(cold);
  add(hot);
  turn(20);
  EXPECT_FALSE(cold.hot());
  EXPECT_EQ(hot.polls, 20);
  turn(5);
  EXPECT_EQ(hot.polls, 25);
  remove(cold);
  remove(hot);
}

TEST_F(PollerTest, MayRemoveAndDestroyItselfInsidePoll) {
  int polls = 0;
  std::unique_ptr<TestPoller> poller;
  poller = std::make_unique<TestPoller>([&] {
    ++polls;
    thread_.remove_poller(*poller);
    auto gone = std::move(poller);
    return true;
  });
  TestPoller neighbour;
  add(*poller);
  add(neighbour);
  hosts_.run_until_idle();
  EXPECT_EQ(polls, 1);
  EXPECT_EQ(poller, nullptr);
  EXPECT_GE(neighbour.polls, 1);
  remove(neighbour);
}

TEST_F(PollerTest, MayRemoveAndComeBackInsidePoll) {
  hosts_.set_mode(PollMode::kPoll);
  TestPoller* self = nullptr;
  TestPoller poller([&] {
    thread_.remove_poller(*self);
    thread_.add_poller(*self);
    return false;
  });
  self = &poller;
  add(poller);
  turn(3);
  EXPECT_EQ(poller.polls, 3);
  remove(poller);
}

TEST_F(PollerTest, MayDestroyAnyOtherInsidePoll) {
  for (size_t killer = 0; killer < 3; ++killer) {
    hosts_.set_mode(PollMode::kPoll);
    std::vector<std::unique_ptr<TestPoller>> pollers(3);
    std::vector<int> polls(3, 0);
    for (size_t i = 0; i < 3; ++i) {
      pollers[i] = std::make_unique<TestPoller>([&, i] {
        ++polls[i];
        if (i != killer) return false;
        for (size_t other = 0; other < 3; ++other) {
          if (other == killer || pollers[other] == nullptr) continue;
          thread_.remove_poller(*pollers[other]);
          pollers[other].reset();
        }
        return true;
      });
      add(*pollers[i]);
    }
    turn();
    for (size_t i = killer + 1; i < 3; ++i) EXPECT_EQ(polls[i], 0) << "polled after it was destroyed by " << killer;
    EXPECT_GE(polls[killer], 1);
    remove(*pollers[killer]);
    turn();
  }
}

TEST_F(PollerTest, OneAddedInsidePollIsPolledFromTheNextTurnOn) {
  hosts_.set_mode(PollMode::kPoll);
  TestPoller second;
  TestPoller first([&] {
    if (second.thread() == nullptr) thread_.add_poller(second);
    return false;
  });
  add(first);
  turn();
  EXPECT_EQ(second.polls, 0);
  turn();
  EXPECT_EQ(second.polls, 1);
  EXPECT_EQ(first.polls, 2);
  remove(first);
  remove(second);
}

// Pollers that add, remove, destroy, cool and heat one another at random, against the memory checkers and the counts.
TEST_F(PollerTest, SurvivesPollersThatChangeOneAnotherAtRandom) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    constexpr size_t kPollers = 8;
    std::vector<std::unique_ptr<TestPoller>> pollers(kPollers);
    std::function<bool()> meddle = [&] {
      const size_t i = random() % kPollers;
      auto& poller = pollers[i];
      switch (random() % 6) {
        case 0:
        case 1:
          if (poller == nullptr) poller = std::make_unique<TestPoller>([&meddle] { return meddle(); });
          if (poller->thread() == nullptr) thread_.add_poller(*poller);
          break;
        case 2:
          if (poller != nullptr && poller->thread() != nullptr) thread_.remove_poller(*poller);
          break;
        case 3:
          if (poller != nullptr && poller->thread() != nullptr) thread_.remove_poller(*poller);
          pollers[i] = nullptr;
          break;
        case 4:
          if (poller != nullptr) poller->make_cold();
          break;
        default:
          if (poller != nullptr) poller->make_hot();
      }
      return random() % 2 == 0;
    };
    for (int step = 0; step < 500; ++step) {
      if (step % 100 == 0) hosts_.set_mode(step % 200 == 0 ? PollMode::kInterrupt : PollMode::kPoll);
      hosts_.on(thread_, [&] { meddle(); });
      turn();
      size_t listed = 0;
      thread_.for_each_poller([&listed](Poller&) { ++listed; });
      size_t added = 0;
      for (const auto& poller : pollers) added += poller != nullptr && poller->thread() != nullptr ? 1U : 0U;
      ASSERT_EQ(listed, added);
    }
    hosts_.on(thread_, [&] {
      for (auto& poller : pollers) {
        if (poller != nullptr && poller->thread() != nullptr) thread_.remove_poller(*poller);
      }
    });
    turn();
    EXPECT_FALSE(host_.runnable());
  }
}

TEST(PollerDeathTest, MustBeRemovedBeforeItIsDestroyed) {
  ManualHosts hosts;
  auto poller = std::make_unique<TestPoller>();
  hosts.on(hosts.home(), [&] { hosts.home().add_poller(*poller); });
  EXPECT_DEATH(poller.reset(), "CHECK failed");
  hosts.on(hosts.home(), [&] { hosts.home().remove_poller(*poller); });
  hosts.run_until_idle();
}

}  // namespace
}  // namespace sluice
