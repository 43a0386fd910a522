#include "lib/thread/poller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "test/support/manual_host.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;

// A queue of `work` pieces, of which each poll does one. Who adds some while `armed` notifies.
class TestPoller : public Poller {
 public:
  TestPoller() : Poller("test") {}
  explicit TestPoller(std::function<bool()> on_poll) : Poller("test"), on_poll_(std::move(on_poll)) {}

  bool poll() override {
    ++polls;
    if (on_poll_) return on_poll_();
    if (work == 0) return false;
    --work;
    return true;
  }
  bool pure_poll() override { return work > 0; }
  bool try_sleep() override {
    ++sleeps;
    work += work_before_sleep;
    armed = work == 0;
    work_before_sleep = 0;
    return armed;
  }
  void wake_up() override {
    ++wakes;
    armed = false;
  }

  using Poller::set_notification;
  void use_eventfd() { set_notification(event_.get()); }
  // The other side of the queue.
  void add_work(int pieces) {
    work += pieces;
    if (armed) notify();
  }
  void notify() const {
    const uint64_t one = 1;
    ASSERT_EQ(::write(event_.get(), &one, sizeof(one)), sizeof(one));
  }

  int work = 0;
  int work_before_sleep = 0;  // comes when nobody polls any more and notification is not on yet
  bool armed = false;
  int polls = 0;
  int sleeps = 0;
  int wakes = 0;

 private:
  const UniqueFd event_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::function<bool()> on_poll_;
};

class PollerTest : public testing::Test {
 protected:
  void add(TestPoller& poller) {
    hosts_.on(thread_, [&] { thread_.add_poller(poller); });
  }
  void remove(TestPoller& poller) {
    hosts_.on(thread_, [&] { thread_.remove_poller(poller); });
  }
  void turn(int times = 1) {
    for (int i = 0; i < times; ++i) hosts_.turn();
  }

  // A poller, in adaptive mode, that has learned this window, and has just found nothing.
  TestPoller& with_window(uint64_t window_ns) {
    hosts_.set_mode(PollMode::kAdaptive);
    PollingOptions options = host_.polling();
    options.grow_start_ns = options.max_poll_ns = window_ns;
    hosts_.set_polling(options);
    poller_.emplace();
    poller_->use_eventfd();
    add(*poller_);
    turn(2);
    EXPECT_FALSE(poller_->hot()) << "it has learned nothing yet";
    hosts_.advance(window_ns);
    poller_->add_work(1);
    turn(2);
    EXPECT_TRUE(poller_->hot());
    return *poller_;
  }
  ~PollerTest() override {
    if (poller_) remove(*poller_);
  }

  ManualHosts hosts_;
  ManualHost& host_ = hosts_[0];
  LwThread& thread_ = hosts_.home();
  std::optional<TestPoller> poller_;
};

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

// Who was given work has its turn before who gave it finds more, in the same turn of the host: requests are under way
// early, not all at once.
TEST_F(PollerTest, FindsNoMoreWorkForAnotherThreadThatHasNotHadItsTurn) {
  ThreadDirectory threads(hosts_);
  LwThread& other = *threads.create("other", threads.all_cpus()).value();
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
  turn();
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
