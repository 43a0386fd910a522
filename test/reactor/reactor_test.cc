#include "lib/reactor/reactor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <functional>
#include <future>
#include <latch>
#include <memory>
#include <thread>
#include <vector>

#include "lib/base/clock.h"
#include "lib/thread/await.h"

namespace sluice {
namespace {

constexpr PollMode kModes[] = {PollMode::kPoll, PollMode::kInterrupt, PollMode::kAdaptive};
constexpr uint64_t kWindowNs = 50 * kNsPerUs;

// Two reactors, on a core each if the process has two; on one otherwise, where they take turns.
class Reactors {
 public:
  explicit Reactors(PollMode mode = PollMode::kInterrupt) {
    const CpuMask available = CpuMask::available();
    std::vector<uint32_t> cores;
    for (uint32_t core = 0; core < CpuMask::kMaxCpus && cores.size() < 2; ++core) {
      if (available.test(core)) cores.push_back(core);
    }
    for (size_t i = 0; i < 2; ++i) {
      reactors_.push_back(*Reactor::create(cores[i % cores.size()], i, 2, 100 + i));
      reactors_.back()->set_mode(mode, kWindowNs);
    }
    for (const auto& reactor : reactors_) os_threads_.emplace_back([&reactor = *reactor] { reactor.run(); });
  }
  ~Reactors() { stop(); }

  void stop() {
    for (const auto& reactor : reactors_) reactor->request_stop();
    for (std::thread& thread : os_threads_) thread.join();
    os_threads_.clear();
  }

  Reactor& operator[](size_t index) { return *reactors_[index]; }
  LwThread& home(size_t index) { return reactors_[index]->home(); }

  // Runs fn() as the home thread of the reactor, and waits for it.
  void on(size_t index, const std::function<void()>& fn) {
    std::promise<void> done;
    post_to(home(index), [&] {
      fn();
      done.set_value();
    });
    done.get_future().get();
  }
  ReactorStats stats(size_t index) {
    ReactorStats stats;
    on(index, [&] { stats = reactors_[index]->stats(); });
    return stats;
  }

 private:
  std::vector<std::unique_ptr<Reactor>> reactors_;
  std::vector<std::thread> os_threads_;
};

// Takes numbered messages of several senders; complete when each has sent `each`, in order.
class Receiver {
 public:
  Receiver(LwThread& thread, size_t senders, size_t each)
      : thread_(thread), each_(each), next_(senders, 0), messages_(senders) {
    for (size_t sender = 0; sender < senders; ++sender) {
      messages_[sender] = std::vector<Numbered>(each);
      for (size_t i = 0; i < each; ++i) {
        Numbered& message = messages_[sender][i];
        message.receiver = this;
        message.sender = sender;
        message.number = i;
        message.run = [](Work& work) {
          auto& self = static_cast<Numbered&>(work);
          self.receiver->receive(self);
        };
      }
    }
  }

  void send(size_t sender, size_t number) { thread_.send(messages_[sender][number]); }
  void send_all(size_t sender) {
    for (size_t i = 0; i < each_; ++i) send(sender, i);
  }
  void wait() { complete_.get_future().get(); }
  bool in_order() const { return in_order_; }

 private:
  struct Numbered : Message {
    Receiver* receiver = nullptr;
    size_t sender = 0;
    size_t number = 0;
  };

  void receive(const Numbered& message) {
    in_order_ = in_order_ && message.number == next_[message.sender] && LwThread::current() == &thread_;
    ++next_[message.sender];
    if (++received_ == each_ * next_.size()) complete_.set_value();
  }

  LwThread& thread_;
  const size_t each_;
  std::vector<size_t> next_;
  std::vector<std::vector<Numbered>> messages_;
  size_t received_ = 0;
  std::atomic<bool> in_order_ = true;
  std::promise<void> complete_;
};

// --- Messages ---

TEST(Reactor, RunsMessagesOnItsOwnOsThread) {
  Reactors reactors;
  for (size_t i = 0; i < 2; ++i) {
    reactors.on(i, [&] {
      EXPECT_EQ(reactors[i].tid(), ::gettid());
      EXPECT_EQ(ThreadHost::current(), &reactors[i]);
      EXPECT_EQ(LwThread::current(), &reactors.home(i));
    });
  }
  EXPECT_NE(reactors[0].tid(), reactors[1].tid());
}

TEST(Reactor, KeepsTheOrderOfEachOfManySendersAndLosesNothing) {
  for (const PollMode mode : kModes) {
    constexpr size_t kOutside = 3;
    constexpr size_t kEach = 20'000;
    Reactors reactors(mode);
    // Senders: OS threads, the other reactor, and the receiver's own.
    Receiver receiver(reactors.home(0), kOutside + 2, kEach);
    std::vector<std::thread> outside;
    for (size_t sender = 0; sender < kOutside; ++sender)
      outside.emplace_back([&receiver, sender] { receiver.send_all(sender); });
    post_to(reactors.home(1), [&] { receiver.send_all(kOutside); });
    post_to(reactors.home(0), [&] { receiver.send_all(kOutside + 1); });
    receiver.wait();
    for (std::thread& thread : outside) thread.join();
    EXPECT_TRUE(receiver.in_order());
  }
}

// The receiver holds still until far more has been sent than its ring takes.
TEST(Reactor, LosesNothingAndKeepsTheOrderWhenTheRingIsFull) {
  for (const PollMode mode : kModes) {
    constexpr size_t kEach = 50'000;
    Reactors reactors(mode);
    Receiver receiver(reactors.home(0), 1, kEach);
    std::latch held(1);
    std::latch sent(1);
    post_to(reactors.home(0), [&] {
      held.count_down();
      sent.wait();
    });
    held.wait();
    post_to(reactors.home(1), [&] {
      receiver.send_all(0);
      sent.count_down();
    });
    receiver.wait();
    EXPECT_TRUE(receiver.in_order());
  }
}

TEST(Reactor, SenderWaitsForRoomWithoutBeingHeldUp) {
  constexpr size_t kEach = 40'000;
  Reactors reactors;
  Receiver receiver(reactors.home(0), 1, kEach);
  std::latch held(1);
  std::latch go_on(1);
  post_to(reactors.home(0), [&] {
    held.count_down();
    go_on.wait();
  });
  held.wait();
  reactors.on(1, [&] { receiver.send_all(0); });
  // The sender has tens of thousands of messages that nobody takes, and still runs others.
  for (int i = 0; i < 100; ++i) reactors.on(1, [] {});
  go_on.count_down();
  receiver.wait();
  EXPECT_TRUE(receiver.in_order());
}

TEST(Reactor, TwoThatFloodOneAnotherDoNotBlock) {
  for (const PollMode mode : kModes) {
    constexpr size_t kEach = 50'000;
    Reactors reactors(mode);
    Receiver to_first(reactors.home(0), 1, kEach);
    Receiver to_second(reactors.home(1), 1, kEach);
    // Both in one turn, and neither takes any before both have sent all.
    std::latch both(2);
    post_to(reactors.home(0), [&] {
      to_second.send_all(0);
      both.arrive_and_wait();
    });
    post_to(reactors.home(1), [&] {
      to_first.send_all(0);
      both.arrive_and_wait();
    });
    to_first.wait();
    to_second.wait();
    EXPECT_TRUE(to_first.in_order() && to_second.in_order());
  }
}

// --- Sleeping and waking ---

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

TEST(Reactor, LosesNoWakeUpInAPingPongOf100000) {
  Reactors reactors;
  Ball ball(reactors.home(0), reactors.home(1), 50'000);
  ball.serve();
  ball.wait();
}

TEST(Reactor, LosesNoWakeUpWithSeveralBallsAndAnOutsider) {
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

TEST(Reactor, LosesNoNotificationOfAQueueInAnyMode) {
  for (const PollMode mode : kModes) {
    Reactors reactors(mode);
    QueuePair queues(reactors, 20'000);
    queues.begin();
    queues.wait();
  }
}

TEST(Reactor, SwitchesModesUnderLoadWithoutLosingWork) {
  Reactors reactors;
  QueuePair queues(reactors, 50'000);
  Ball ball(reactors.home(0), reactors.home(1), 20'000);
  std::atomic<bool> done = false;
  std::thread switcher([&] {
    for (size_t i = 0; !done; ++i) {
      // Each reactor by itself, so that they are in different modes most of the time.
      reactors.on(i % 2, [&, i] { reactors[i % 2].set_mode(kModes[i / 2 % 3], kWindowNs); });
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

// Waits for `ns` by a timer on the reactor.
void wait_on_reactor(Reactors& reactors, size_t index, uint64_t ns) {
  std::promise<void> due;
  Timer timer("test", [&due] { due.set_value(); });
  reactors.on(index, [&] { timer.arm_at(reactors.home(index), reactors.home(index).now_ns() + ns); });
  due.get_future().get();
}

TEST(Reactor, SleepsWhenItIsIdle) {
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

TEST(Reactor, NeverSleepsInPollMode) {
  Reactors reactors(PollMode::kPoll);
  wait_on_reactor(reactors, 0, 10 * kNsPerMs);
  const ReactorStats stats = reactors.stats(0);
  EXPECT_EQ(stats.wakeups, 0U);
  EXPECT_EQ(stats.asleep_ns, 0U);
  EXPECT_GT(stats.idle_ns, 0U);
}

TEST(Reactor, PollerGoesColdAfterItsWindowInAdaptiveMode) {
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
  uint64_t added_ns = 0;
  reactors.on(0, [&] {
    added_ns = reactors[0].now_ns();
    reactors.home(0).add_poller(poller);
  });
  asleep.get_future().get();
  reactors.on(0, [&] {
    EXPECT_FALSE(poller.hot());
    EXPECT_GE(reactors[0].now_ns() - added_ns, kWindowNs);
    EXPECT_GT(poller.run_count(), 0U);
    reactors.home(0).remove_poller(poller);
  });
}

// --- Descriptors and timers ---

// Counts, and tells of the first event.
class Source : public EventSource {
 public:
  explicit Source(std::function<void()> handler) : handler_(std::move(handler)) {}
  void on_event(uint32_t) override { handler_(); }
  void signal() const {
    const uint64_t one = 1;
    ASSERT_EQ(::write(event_.get(), &one, sizeof(one)), sizeof(one));
  }
  void add_to(LwThread& thread) { ASSERT_TRUE(thread.add_source(*this, event_.get(), EPOLLIN | EPOLLET).has_value()); }

 private:
  const UniqueFd event_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::function<void()> handler_;
};

struct BusyPoller : Poller {
  BusyPoller() : Poller("busy") {}
  bool poll() override { return true; }
  bool pure_poll() override { return true; }
  bool try_sleep() override { return false; }
  void wake_up() override {}
};

TEST(Reactor, NoticesAColdSourceWhileAnotherPollerIsHot) {
  for (const PollMode mode : kModes) {
    Reactors reactors(mode);
    BusyPoller busy;
    std::promise<void> noticed;
    Source source([&noticed] { noticed.set_value(); });
    reactors.on(0, [&] {
      source.add_to(reactors.home(0));
      reactors.home(0).add_poller(busy);
    });
    source.signal();
    noticed.get_future().get();
    reactors.on(0, [&] {
      reactors.home(0).remove_source(source);
      reactors.home(0).remove_poller(busy);
    });
  }
}

TEST(Reactor, RemovedSourceIsNotToldOfAnEventOfTheSameBatch) {
  Reactors reactors;
  std::unique_ptr<Source> sources[2];
  std::promise<void> looked;
  int calls = 0;
  for (size_t i = 0; i < 2; ++i) {
    sources[i] = std::make_unique<Source>([&, i] {
      ++calls;
      reactors.home(0).remove_source(*sources[1 - i]);
      sources[1 - i].reset();
      post_to(reactors.home(0), [&looked] { looked.set_value(); });
    });
  }
  reactors.on(0, [&] {
    for (const auto& source : sources) {
      source->add_to(reactors.home(0));
      source->signal();
    }
  });
  looked.get_future().get();
  reactors.on(0, [&] {
    EXPECT_EQ(calls, 1);
    for (const auto& source : sources) {
      if (source != nullptr) reactors.home(0).remove_source(*source);
    }
  });
}

TEST(Reactor, FiresTimersWhileItWouldSleep) {
  for (const PollMode mode : kModes) {
    Reactors reactors(mode);
    std::vector<int> order;
    std::promise<void> done;
    Timer late("test", [&] {
      order.push_back(3);
      done.set_value();
    });
    Timer early("test", [&] { order.push_back(1); });
    Timer never("test", [&] { order.push_back(0); });
    int ticks = 0;
    Timer periodic("test", [&] {
      if (++ticks == 3) {
        order.push_back(2);
        periodic.cancel();
        late.arm_at(reactors.home(0), reactors.home(0).now_ns());
      }
    });
    uint64_t begin_ns = 0;
    reactors.on(0, [&] {
      LwThread& thread = reactors.home(0);
      begin_ns = thread.now_ns();
      never.arm_at(thread, begin_ns + 3600 * kNsPerSec);
      late.arm_at(thread, begin_ns + 1800 * kNsPerSec);
      periodic.arm_periodic(thread, 3 * kNsPerMs);
      early.arm_at(thread, begin_ns + kNsPerMs);
    });
    done.get_future().get();
    reactors.on(0, [&] {
      EXPECT_GE(reactors.home(0).now_ns() - begin_ns, 9 * kNsPerMs);
      never.cancel();
    });
    EXPECT_THAT(order, testing::ElementsAre(1, 2, 3));
  }
}

TEST(Reactor, MessageArmsAnEarlierTimerThanTheOneItSleepsFor) {
  Reactors reactors;
  Timer far("test", [] {});
  reactors.on(0, [&] { far.arm_at(reactors.home(0), reactors.home(0).now_ns() + 3600 * kNsPerSec); });
  wait_on_reactor(reactors, 0, kNsPerMs);
  reactors.on(0, [&] { far.cancel(); });
}

// --- Accounts ---

TEST(Reactor, CountsWhatASourcesHandlerDoesAsBusy) {
  Reactors reactors;
  std::promise<void> done;
  constexpr uint64_t kBusyNs = 5 * kNsPerMs;
  Source source([&done] {
    const uint64_t end_ns = now_ns() + kBusyNs;
    while (now_ns() < end_ns) {
    }
    done.set_value();
  });
  reactors.on(0, [&] { source.add_to(reactors.home(0)); });
  const ReactorStats before = reactors.stats(0);
  source.signal();
  done.get_future().get();
  reactors.on(0, [] {});  // the turn that counts it has begun; the next one sees it
  const ReactorStats after = reactors.stats(0);
  EXPECT_GE(after.busy_ns - before.busy_ns, kBusyNs);
  reactors.on(0, [&] { reactors.home(0).remove_source(source); });
}

TEST(Reactor, ListsItsThreads) {
  Reactors reactors;
  CpuMask mask;
  mask.set(reactors[0].lcore());
  LwThread worker("worker", 1, mask, reactors[0]);
  std::promise<std::vector<std::string>> listed;
  post_to(worker, [&] {
    std::vector<std::string> names;
    for (const auto& thread : reactors[0].stats().threads) names.push_back(thread.name);
    listed.set_value(names);
  });
  EXPECT_THAT(listed.get_future().get(), testing::UnorderedElementsAre(reactors.home(0).name(), "worker"));
  std::promise<void> gone;
  struct Exit : Message {
    std::promise<void>* told = nullptr;
  } exit;
  exit.told = &gone;
  exit.target = &reactors.home(1);
  exit.run = [](Work& work) { static_cast<Exit&>(work).told->set_value(); };
  post_to(worker, [&] { worker.exit(exit); });
  gone.get_future().get();
  EXPECT_EQ(reactors.stats(0).threads.size(), 1U);
}

// --- Ending ---

TEST(Reactor, DestroysItsLocalObjectsOnItsOwnOsThread) {
  struct Local : HostLocal {
    explicit Local(int& t) : tid(t) {}
    ~Local() override { tid = ::gettid(); }
    int& tid;
  };
  static constexpr char kKey = 0;
  int destroyed_on = 0;
  Reactors reactors;
  reactors.on(0, [&] {
    const auto make = [&] { return std::make_unique<Local>(destroyed_on); };
    Local& first = reactors[0].local<Local>(&kKey, make);
    EXPECT_EQ(&reactors[0].local<Local>(&kKey, make), &first);
  });
  reactors.stop();
  EXPECT_EQ(destroyed_on, reactors[0].tid());
}

TEST(Reactor, StopsWhileThreadsAreBusy) {
  Reactors reactors(PollMode::kPoll);
  Receiver receiver(reactors.home(0), 1, 10'000);
  std::thread outside([&] { receiver.send_all(0); });
  outside.join();
  receiver.wait();
  reactors.stop();
}

}  // namespace
}  // namespace sluice
