// Going to sleep, waking up, and the three modes.
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "lib/base/clock.h"
#include "lib/base/unique_fd.h"
#include "lib/thread/poller.h"
#include "test/reactor/reactors.h"

namespace sluice {
namespace {

// Two reactors that poll on one core hand over to one another once per time slice.
bool has_two_cores() { return CpuMask::available().count() >= 2; }

// A message that goes to and fro until it has been `rounds` times on each side.
class Ball : public Message {
 public:
  Ball(LwThread& near, LwThread& far, size_t rounds) : sides_{&near, &far}, left_(2 * rounds) {
    run = [](Work& work) { static_cast<Ball&>(work).bounce(); };
  }
  void serve() { sides_[0]->send(*this); }
  void wait() { done_.get_future().get(); }

 private:
  void bounce() {
    if (--left_ == 0) {
      done_.set_value();
    } else {
      sides_[left_ % 2]->send(*this);
    }
  }

  std::array<LwThread*, 2> sides_;
  size_t left_;
  std::promise<void> done_;
};

TEST(ReactorSleep, LosesNoWakeUpInAPingPongOf100000) {
  Reactors reactors;
  Ball ball(reactors.home(0), reactors.home(1), 50'000);
  ball.serve();
  ball.wait();
}

TEST(ReactorSleep, LosesNoWakeUpWithSeveralBallsAndAnOutsider) {
  Reactors reactors;
  std::vector<std::unique_ptr<Ball>> balls;
  for (size_t i = 0; i < 3; ++i)
    balls.push_back(std::make_unique<Ball>(reactors.home(i % 2), reactors.home((i + 1) % 2), 5'000));
  for (const auto& ball : balls) ball->serve();
  for (int i = 0; i < 5'000; ++i) reactors.on(static_cast<size_t>(i % 2), [] {});
  for (const auto& ball : balls) ball->wait();
}

// Work that one OS thread makes for a poller on another, as a guest makes it for a queue.
class QueuePoller : public Poller {
 public:
  explicit QueuePoller(std::function<void()> on_work) : Poller("queue"), on_work_(std::move(on_work)) {
    set_notification(event_.get());
  }

  bool poll() override {
    if (!pure_poll()) return false;
    pending_.fetch_sub(1, std::memory_order_acquire);
    on_work_();
    return true;
  }
  bool pure_poll() override { return pending_.load(std::memory_order_relaxed) > 0; }
  bool try_sleep() override {
    armed_.store(true, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);  // pairs with add_work()
    if (!pure_poll()) return true;
    armed_.store(false, std::memory_order_relaxed);
    return false;
  }
  void wake_up() override { armed_.store(false, std::memory_order_relaxed); }

  // Any OS thread.
  void add_work() {
    pending_.fetch_add(1, std::memory_order_release);
    std::atomic_thread_fence(std::memory_order_seq_cst);  // pairs with try_sleep()
    if (!armed_.load(std::memory_order_relaxed)) return;
    const uint64_t one = 1;
    ASSERT_EQ(::write(event_.get(), &one, sizeof(one)), sizeof(one));
  }

 private:
  const UniqueFd event_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::atomic<uint64_t> pending_ = 0;
  std::atomic<bool> armed_ = false;
  std::function<void()> on_work_;
};

// Two queues whose pollers feed one another, each on its reactor.
class QueuePair {
 public:
  QueuePair(Reactors& reactors, int rounds) : reactors_(reactors), left_(rounds) {
    for (size_t i = 0; i < 2; ++i) reactors_.on(i, [&, i] { reactors_.home(i).add_poller(pollers_[i]); });
  }
  ~QueuePair() {
    for (size_t i = 0; i < 2; ++i) reactors_.on(i, [&, i] { reactors_.home(i).remove_poller(pollers_[i]); });
  }
  void begin() { pollers_[0].add_work(); }
  void wait() { done_.get_future().get(); }
  QueuePoller& poller(size_t index) { return pollers_[index]; }

 private:
  void pass_on(size_t to) {
    if (left_.fetch_sub(1) == 1) {
      done_.set_value();
    } else {
      pollers_[to].add_work();
    }
  }

  Reactors& reactors_;
  std::atomic<int> left_;
  QueuePoller pollers_[2] = {QueuePoller([this] { pass_on(1); }), QueuePoller([this] { pass_on(0); })};
  std::promise<void> done_;
};

TEST(ReactorSleep, LosesNoNotificationOfAQueueInAnyMode) {
  for (const PollMode mode : kModes) {
    Reactors reactors(mode);
    QueuePair queues(reactors, mode != PollMode::kPoll ? 20'000 : has_two_cores() ? 2'000 : 50);
    queues.begin();
    queues.wait();
  }
}

TEST(ReactorSleep, SwitchesModesUnderLoadWithoutLosingWork) {
  Reactors reactors;
  QueuePair queues(reactors, has_two_cores() ? 10'000 : 300);
  Ball ball(reactors.home(0), reactors.home(1), has_two_cores() ? 5'000 : 100);
  std::atomic<bool> done = false;
  std::thread switcher([&] {
    for (size_t i = 0; !done; ++i) {
      // Each reactor by itself, so that they are in different modes most of the time.
      reactors.on(i % 2, [&, i] { reactors[i % 2].set_mode(kModes[i / 2 % 3]); });
    }
  });
  queues.begin();
  ball.serve();
  queues.wait();
  ball.wait();
  done = true;
  switcher.join();
}

uint64_t cpu_time_ns() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<uint64_t>(time.tv_sec) * kNsPerSec + static_cast<uint64_t>(time.tv_nsec);
}

TEST(ReactorSleep, SleepsWhenItIsIdle) {
  for (const PollMode mode : {PollMode::kInterrupt, PollMode::kAdaptive}) {
    Reactors reactors(mode);
    QueuePair queues(reactors, 2);  // which are cold before long
    queues.begin();
    queues.wait();
    struct Sample {
      uint64_t wakeups = 0;
      uint64_t asleep_ns = 0;
      uint64_t cpu_ns = 0;
    };
    const auto sample = [&] {
      Sample taken;
      reactors.on(1, [&] {
        const ReactorStats stats = reactors[1].stats();
        taken = {.wakeups = stats.wakeups, .asleep_ns = stats.asleep_ns, .cpu_ns = cpu_time_ns()};
      });
      return taken;
    };
    // Until the window has passed, adaptive mode polls.
    wait_on_reactor(reactors, 0, 10 * kNsPerMs);
    const Sample before = sample();
    wait_on_reactor(reactors, 0, 300 * kNsPerMs);
    const Sample after = sample();
    EXPECT_LE(after.wakeups - before.wakeups, 3U) << "one is the sample's own";
    EXPECT_GT(after.asleep_ns, before.asleep_ns);
    EXPECT_LT(after.cpu_ns - before.cpu_ns, 100 * kNsPerMs);
  }
}

TEST(ReactorSleep, NeverSleepsInPollMode) {
  Reactors reactors(PollMode::kPoll);
  wait_on_reactor(reactors, 0, 10 * kNsPerMs);
  const ReactorStats stats = reactors.stats(0);
  EXPECT_EQ(stats.wakeups, 0U);
  EXPECT_EQ(stats.asleep_ns, 0U);
  EXPECT_GT(stats.idle_ns, 0U);
}

TEST(ReactorSleep, PollerGoesColdInAdaptiveMode) {
  Reactors reactors(PollMode::kAdaptive);
  std::promise<void> asleep;
  struct Sleeper : Poller {
    explicit Sleeper(std::promise<void>& p) : Poller("sleeper"), slept(p) {}
    bool poll() override { return false; }
    bool pure_poll() override { return false; }
    bool try_sleep() override {
      slept.set_value();
      return true;
    }
    void wake_up() override {}
    std::promise<void>& slept;
  } poller(asleep);
  reactors.on(0, [&] { reactors.home(0).add_poller(poller); });
  asleep.get_future().get();
  reactors.on(0, [&] {
    EXPECT_FALSE(poller.hot());
    EXPECT_GT(poller.run_count(), 0U);
    reactors.home(0).remove_poller(poller);
  });
}

}  // namespace
}  // namespace sluice
