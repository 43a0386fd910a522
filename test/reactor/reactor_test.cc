#include "lib/reactor/reactor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <future>
#include <latch>
#include <memory>
#include <thread>
#include <vector>

#include "lib/base/clock.h"
#include "lib/thread/await.h"
#include "test/reactor/reactors.h"

namespace sluice {
namespace {

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
