// How long a poller stays hot, in each mode.
#include <gmock/gmock.h>

#include <utility>
#include <vector>

#include "lib/thread/thread_directory.h"
#include "test/thread/poller_fixture.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;

TEST_F(PollerTest, StaysHotInPollMode) {
  hosts_.set_mode(PollMode::kPoll);
  TestPoller poller;
  add(poller);
  turn(10);
  EXPECT_EQ(poller.polls, 10);
  EXPECT_EQ(poller.sleeps, 0);
  EXPECT_TRUE(poller.hot());
  EXPECT_TRUE(host_.runnable());
  remove(poller);
  turn();
  EXPECT_EQ(poller.polls, 10);
  EXPECT_FALSE(host_.runnable());
}

TEST_F(PollerTest, GoesColdAtOnceInInterruptModeWhenTheCoreIsIdle) {
  TestPoller poller;
  poller.work = 3;
  add(poller);
  EXPECT_TRUE(poller.hot()) << "it starts hot";
  turn(4);
  EXPECT_TRUE(poller.hot()) << "there was work in the turn before";
  turn();
  EXPECT_FALSE(poller.hot());
  EXPECT_TRUE(poller.armed);
  EXPECT_EQ(poller.polls, 5);
  EXPECT_FALSE(host_.runnable());
  turn(3);
  EXPECT_EQ(poller.polls, 5) << "a cold one costs nothing";
  remove(poller);
}

TEST_F(PollerTest, GoesColdAfterAFewPollsInVainWhereSleepingCostsMore) {
  host_.set_min_vain_polls(3);
  TestPoller poller;
  poller.work = 1;
  add(poller);
  turn(3);
  EXPECT_TRUE(poller.hot());
  poller.work = 1;
  turn(3);
  EXPECT_TRUE(poller.hot()) << "it found something in between";
  turn();
  EXPECT_FALSE(poller.hot());
  EXPECT_EQ(poller.polls, 7);
  remove(poller);
}

// Who was given work has its turn before who gave it finds more, in the same turn of the host, whoever else is busy:
// requests are under way early, not all at once.
TEST_F(PollerTest, FindsNoMoreWorkForAnotherThreadThatHasNotHadItsTurn) {
  ThreadDirectory threads(hosts_);
  LwThread& first = *threads.create("first", threads.all_cpus()).value();
  LwThread& other = *threads.create("other", threads.all_cpus()).value();
  TestPoller busy([] { return true; });
  hosts_.on(first, [&] { first.add_poller(busy); });
  std::vector<int> turns;
  struct Given : Work {
    std::vector<int>* turns;
    bool queued = false;
  } given;
  given.turns = &turns;
  given.run = [](Work& work) {
    auto& done = static_cast<Given&>(work);
    done.queued = false;
    done.turns->push_back(1);
  };
  TestPoller giver([&] {
    turns.push_back(0);
    if (!std::exchange(given.queued, true)) other.defer(given);
    return true;
  });
  add(giver);
  turn(4);
  EXPECT_THAT(turns, ElementsAre(0, 1, 0, 1, 0, 1, 0, 1)) << "0: the poller, 1: what it has given";
  remove(giver);
  hosts_.on(first, [&] { first.remove_poller(busy); });
  turn();
  hosts_.await(thread_, threads.destroy(first));
  hosts_.await(thread_, threads.destroy(other));
}

TEST_F(PollerTest, StaysHotForAWhileWhereOthersKeepTheCoreBusy) {
  for (const PollMode mode : {PollMode::kInterrupt, PollMode::kAdaptive}) {
    hosts_.set_mode(mode);
    TestPoller busy([] { return true; });
    TestPoller poller;
    poller.work = 1;
    add(busy);
    add(poller);
    turn(1 + 15);
    EXPECT_TRUE(poller.hot());
    poller.work = 1;
    turn(1 + 15);
    EXPECT_TRUE(poller.hot()) << "work begins the count anew";
    turn();
    EXPECT_FALSE(poller.hot()) << "but a core that is busy for ever must not poll idle ones for ever";
    remove(busy);
    remove(poller);
    turn();
  }
}

TEST_F(PollerTest, GoesColdAfterTheWindowThatItHasLearned) {
  const TestPoller& poller = with_window(50 * kNsPerUs);
  hosts_.advance(50 * kNsPerUs - 1);
  turn();
  EXPECT_TRUE(poller.hot());
  poller_->work = 1;
  turn(2);  // which begins the window anew
  hosts_.advance(50 * kNsPerUs - 1);
  turn();
  EXPECT_TRUE(poller.hot());
  const int sleeps = poller.sleeps;
  hosts_.advance(1);
  turn();
  EXPECT_EQ(poller.sleeps, sleeps + 1);
  EXPECT_FALSE(poller.hot());
  EXPECT_FALSE(host_.runnable());
}

TEST_F(PollerTest, WindowBeginsAnewWhenItIsMadeHot) {
  const TestPoller& poller = with_window(50 * kNsPerUs);
  hosts_.advance(50 * kNsPerUs);
  turn();
  EXPECT_FALSE(poller.hot());
  hosts_.advance(kNsPerSec);
  hosts_.on(thread_, [&] { poller_->make_hot(); });
  turn();
  EXPECT_TRUE(poller.hot());
  hosts_.advance(50 * kNsPerUs);
  turn();
  EXPECT_FALSE(poller.hot());
}

TEST_F(PollerTest, LearnsNothingGoodFromBeingWokenForNothing) {
  const TestPoller& poller = with_window(50 * kNsPerUs);
  EXPECT_EQ(poller.window().ns(), 50 * kNsPerUs);
  for (int i = 0; i < 10; ++i) {
    hosts_.advance(50 * kNsPerUs);
    turn(2);
    EXPECT_FALSE(poller.hot());
    poller_->notify();
    turn();
  }
  EXPECT_EQ(poller.window().ns(), 0U);
}

TEST_F(PollerTest, SmallerMaximumCountsAtOnce) {
  const TestPoller& poller = with_window(50 * kNsPerUs);
  hosts_.set_polling({.max_poll_ns = 0});
  turn(2);
  EXPECT_FALSE(poller.hot());
}

TEST_F(PollerTest, WithoutBudgetNoWindowCounts) {
  hosts_.set_polling({.grow_start_ns = 50 * kNsPerUs, .idle_poll_budget = 0});
  const TestPoller& poller = with_window(50 * kNsPerUs);
  // Each sleep begins and ends with a poll in vain, until what there was to spend is gone.
  int rounds = 0;
  for (; host_.may_poll_in_vain(); ++rounds) {
    ASSERT_LT(rounds, 1000);
    hosts_.advance(50 * kNsPerUs);
    turn();
    ASSERT_FALSE(poller.hot());
    poller_->add_work(1);
    turn(2);
  }
  EXPECT_GT(rounds, 1);
  turn();
  EXPECT_FALSE(poller.hot()) << "as in interrupt mode";
}

TEST_F(PollerTest, StaysHotWhenWorkCameJustBeforeItSlept) {
  TestPoller poller;
  add(poller);
  poller.work_before_sleep = 2;
  turn(2);
  EXPECT_TRUE(poller.hot());
  EXPECT_EQ(poller.sleeps, 1);
  EXPECT_TRUE(host_.runnable());
  hosts_.run_until_idle();
  EXPECT_EQ(poller.work, 0);
  EXPECT_FALSE(poller.hot());
  remove(poller);
}

TEST_F(PollerTest, WindowBeginsAnewWhenItCouldNotSleep) {
  const TestPoller& poller = with_window(50 * kNsPerUs);
  const int sleeps = poller.sleeps;
  hosts_.advance(50 * kNsPerUs);
  poller_->work_before_sleep = 1;
  turn(3);
  EXPECT_EQ(poller.sleeps, sleeps + 1);
  EXPECT_TRUE(poller.hot());
}

}  // namespace
}  // namespace sluice
