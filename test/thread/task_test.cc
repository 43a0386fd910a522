#include "lib/thread/task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "lib/thread/await.h"
#include "test/support/manual_host.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class TaskTest : public testing::Test {
 protected:
  ManualHosts hosts_{2};
  LwThread& here_ = hosts_.home(0);
  LwThread& there_ = hosts_.home(1);
};

Task<int> add(int a, int b) { co_return a + b; }
Task<std::unique_ptr<int>> boxed(int value) { co_return std::make_unique<int>(value); }
Task<Result<int>> failing() { co_return fail(EIO, "broken"); }
Task<> note(std::vector<int>& seen, int number) {
  seen.push_back(number);
  co_return;
}

TEST_F(TaskTest, GivesItsResult) {
  EXPECT_EQ(hosts_.await(here_, add(1, 2)), 3);
  EXPECT_EQ(*hosts_.await(here_, boxed(7)), 7);
  EXPECT_EQ(hosts_.await(here_, failing()).error().code, EIO);
}

Task<int> sum_of_squares(int n) {
  int sum = 0;
  for (int i = 1; i <= n; ++i) sum += co_await add(i * i, 0);
  const std::unique_ptr<int> box = co_await boxed(sum);
  co_return *box;
}

TEST_F(TaskTest, AwaitsOthers) { EXPECT_EQ(hosts_.await(here_, sum_of_squares(4)), 30); }

TEST_F(TaskTest, DoesNothingUntilItIsAwaited) {
  std::vector<int> seen;
  {
    auto dropped = note(seen, 1);
    auto awaited = note(seen, 2);
    EXPECT_THAT(seen, IsEmpty());
    hosts_.await(here_, std::move(awaited));
  }
  EXPECT_THAT(seen, ElementsAre(2));
}

TEST_F(TaskTest, FreesItsArgumentsWhenItIsDroppedUnstarted) {
  const auto token = std::make_shared<int>(1);
  const auto hold = [](std::shared_ptr<int> held) -> Task<> {
    EXPECT_NE(held, nullptr);
    co_return;
  };
  {
    auto dropped = hold(token);
  }
  EXPECT_EQ(token.use_count(), 1);
  hosts_.await(here_, hold(token));
  EXPECT_EQ(token.use_count(), 1);
}

TEST_F(TaskTest, ArgumentsAreGoneWhenItsEndIsTold) {
  const auto token = std::make_shared<int>(1);
  const auto hold = [](std::shared_ptr<int> held) -> Task<int> { co_return *held; };
  const auto hold_void = [](std::shared_ptr<int>) -> Task<> { co_return; };
  hosts_.on(here_, [&] {
    start(hold(token), [&](int value) {
      EXPECT_EQ(value, 1);
      EXPECT_EQ(token.use_count(), 1);
    });
    start(hold_void(token), [&] { EXPECT_EQ(token.use_count(), 1); });
  });
}

Task<int> depth(int n) { co_return n == 0 ? 0 : 1 + co_await depth(n - 1); }

Task<int64_t> long_loop(int times) {
  int64_t sum = 0;
  for (int i = 0; i < times; ++i) sum += co_await add(i, 1);
  co_return sum;
}

TEST_F(TaskTest, NeitherALongLoopNorDeepNestingGrowsTheStack) {
  constexpr int kTimes = 300'000;
  EXPECT_EQ(hosts_.await(here_, long_loop(kTimes)), int64_t{kTimes} * (kTimes + 1) / 2);
  EXPECT_EQ(hosts_.await(here_, depth(1000)), 1000);
}

TEST(TaskDeathTest, MustNotBeDestroyedInProgress) {
  ManualHosts hosts;
  Event never;
  const auto wait = [](Event& event) -> Task<> { co_await event.wait(); };
  EXPECT_DEATH(hosts.on(hosts.home(),
                        [&] {
                          auto task = wait(never);
                          auto awaiter = std::move(task).operator co_await();
                          awaiter.await_suspend(std::noop_coroutine()).resume();
                        }),
               "CHECK failed");
}

// --- call_on ---

TEST_F(TaskTest, CallOnRunsThereAndComesBack) {
  struct Seen {
    LwThread* before = nullptr;
    LwThread* inside = nullptr;
    LwThread* after = nullptr;
  } seen;
  const auto go = [](LwThread& there, Seen& where) -> Task<int> {
    where.before = LwThread::current();
    const int result = co_await call_on(there, [&where] {
      where.inside = LwThread::current();
      return 42;
    });
    where.after = LwThread::current();
    co_return result;
  };
  EXPECT_EQ(hosts_.await(here_, go(there_, seen)), 42);
  EXPECT_EQ(seen.before, &here_);
  EXPECT_EQ(seen.inside, &there_);
  EXPECT_EQ(seen.after, &here_);
}

TEST_F(TaskTest, CallOnItsOwnThreadAnswersLater) {
  std::vector<int> seen;
  const auto go = [](LwThread& here, std::vector<int>& order) -> Task<> {
    co_await call_on(here, [&order] { order.push_back(2); });
    order.push_back(3);
  };
  hosts_.on(here_, [&] {
    start(go(here_, seen), [] {});
    seen.push_back(1);
  });
  hosts_.run_until_idle();
  EXPECT_THAT(seen, ElementsAre(1, 2, 3));
}

TEST_F(TaskTest, CallOnTakesFunctionsAndTasksOfAnyResult) {
  const auto go = [](LwThread& there, std::vector<int>& seen) -> Task<> {
    co_await call_on(there, [&seen] { seen.push_back(1); });
    seen.push_back(*co_await call_on(there, [] { return std::make_unique<int>(2); }));
    co_await call_on(there, [&seen] { return note(seen, 3); });
    seen.push_back(co_await call_on(there, [] { return add(2, 2); }));
    seen.push_back(*co_await call_on(there, [] { return boxed(5); }));
    const Result<int> failed = co_await call_on(there, [] { return failing(); });
    seen.push_back(failed.error().code);
  };
  std::vector<int> seen;
  hosts_.await(here_, go(there_, seen));
  EXPECT_THAT(seen, ElementsAre(1, 2, 3, 4, 5, EIO));
}

TEST_F(TaskTest, CallOnWaitsForATaskThatWaits) {
  Event* event = nullptr;
  const auto go = [](LwThread& there, Event*& published) -> Task<int> {
    // The lambda lives until the call is over, so its coroutine may use what it captures.
    co_return co_await call_on(there, [&published, text = std::string("a capture that is alive")]() -> Task<int> {
      Event mine;
      published = &mine;
      co_await mine.wait();
      co_return static_cast<int>(text.size());
    });
  };
  int result = 0;
  hosts_.on(here_, [&] { start(go(there_, event), [&result](int value) { result = value; }); });
  hosts_.run_until_idle();
  ASSERT_NE(event, nullptr);
  EXPECT_EQ(result, 0);
  hosts_.on(there_, [&] { event->set(); });
  hosts_.run_until_idle();
  EXPECT_EQ(result, 23);
}

TEST_F(TaskTest, CallsBackAndForthNest) {
  const auto go = [](LwThread& here, LwThread& there) -> Task<int> {
    co_return co_await call_on(there, [&here, &there]() -> Task<int> {
      co_return 1 + co_await call_on(here, [&there]() -> Task<int> {
        co_return 1 + co_await call_on(there, [] { return add(1, 1); });
      });
    });
  };
  EXPECT_EQ(hosts_.await(here_, go(here_, there_)), 4);
}

// --- Event and Signal ---

Task<> wait_and_note(Event& event, std::vector<int>& seen, int number) {
  co_await event.wait();
  seen.push_back(number);
}

TEST_F(TaskTest, EventSetBeforeTheWaitDoesNotWait) {
  Event event;
  std::vector<int> seen;
  hosts_.on(here_, [&] {
    event.set();
    EXPECT_TRUE(event.is_set());
    start(wait_and_note(event, seen, 1), [] {});
    EXPECT_THAT(seen, ElementsAre(1));
    EXPECT_FALSE(event.is_set()) << "the wait has used it up";
  });
}

TEST_F(TaskTest, EventResumesItsWaiterLater) {
  Event event;
  std::vector<int> seen;
  hosts_.on(here_, [&] {
    start(wait_and_note(event, seen, 2), [] {});
    event.set();
    event.set();
    seen.push_back(1);
  });
  hosts_.run_until_idle();
  EXPECT_THAT(seen, ElementsAre(1, 2));
}

TEST_F(TaskTest, EventCanBeUsedAgain) {
  Event event;
  int rounds = 0;
  const auto loop = [](Event& tick, int& count) -> Task<> {
    while (count < 3) {
      co_await tick.wait();
      ++count;
    }
  };
  hosts_.on(here_, [&] { start(loop(event, rounds), [] {}); });
  for (int i = 1; i <= 3; ++i) {
    hosts_.on(here_, [&] { event.set(); });
    hosts_.run_until_idle();
    EXPECT_EQ(rounds, i);
  }
}

Task<> wait_for_signal(Signal& signal, std::vector<int>& seen, int number) {
  co_await signal.wait();
  seen.push_back(number);
}

TEST_F(TaskTest, SignalResumesAllThatWaitAndNobodyElse) {
  Signal signal;
  std::vector<int> seen;
  hosts_.on(here_, [&] {
    signal.notify_all();  // nobody waits: not kept
    for (int i = 1; i <= 3; ++i) start(wait_for_signal(signal, seen, i), [] {});
    signal.notify_all();
    start(wait_for_signal(signal, seen, 4), [] {});
    EXPECT_THAT(seen, IsEmpty());
  });
  hosts_.run_until_idle();
  EXPECT_THAT(seen, ElementsAre(1, 2, 3));
  hosts_.on(here_, [&] { signal.notify_all(); });
  hosts_.run_until_idle();
  EXPECT_THAT(seen, ElementsAre(1, 2, 3, 4));
}

TEST_F(TaskTest, SignalWaiterThatWaitsAgainIsNotResumedTwice) {
  Signal signal;
  int value = 0;
  bool done = false;
  const auto wait_until = [](Signal& changed, const int& number, bool& reached) -> Task<> {
    while (number < 2) co_await changed.wait();
    reached = true;
  };
  hosts_.on(here_, [&] { start(wait_until(signal, value, done), [] {}); });
  for (value = 0; value < 2; ++value) {
    hosts_.on(here_, [&] { signal.notify_all(); });
    hosts_.run_until_idle();
    EXPECT_FALSE(done);
  }
  hosts_.on(here_, [&] { signal.notify_all(); });
  hosts_.run_until_idle();
  EXPECT_TRUE(done);
}

TEST_F(TaskTest, WaitsForADeadlineOfTheManualClock) {
  int stage = 0;
  const auto nap = [](int& at) -> Task<> {
    co_await sleep_for(100);  // check-layers: allow sleep (a lightweight thread's, on the manual clock)
    at = 1;
    co_await sleep_until(LwThread::current()->now_ns() + 50);  // check-layers: allow sleep (as above)
    at = 2;
  };
  hosts_.on(here_, [&] { start(nap(stage), [] {}); });
  hosts_.run_until_idle();
  EXPECT_EQ(stage, 0);
  hosts_.advance(100);
  hosts_.run_until_idle();
  EXPECT_EQ(stage, 1);
  hosts_.advance(50);
  hosts_.run_until_idle();
  EXPECT_EQ(stage, 2);
}

}  // namespace
}  // namespace sluice
