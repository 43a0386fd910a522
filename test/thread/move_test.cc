// Lightweight threads on their way from one host to another.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "lib/base/unique_fd.h"
#include "test/support/manual_host.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;

class MoveTest : public testing::Test {
 protected:
  MoveTest() { thread_ = create(hosts_.home(0).cpumask()); }
  ~MoveTest() override {
    if (thread_ != nullptr) destroy();
  }

  LwThread* create(const CpuMask& mask) {
    return *hosts_.on(app_, [&] { return threads_.create("traveller", mask); });
  }
  void destroy() { hosts_.await(app_, threads_.destroy(*std::exchange(thread_, nullptr))); }
  int move(size_t host) {
    const Result<> moved = hosts_.await(app_, threads_.move(*thread_, hosts_[host]));
    return moved ? 0 : moved.error().code;
  }
  // Begins to move it; `code` is set at the end.
  void begin_move(size_t host, int& code) {
    code = -1;
    hosts_.on(app_, [&] {
      start(threads_.move(*thread_, hosts_[host]), [&code](Result<> moved) { code = moved ? 0 : moved.error().code; });
    });
  }
  int set_cpumask(const char* mask) {
    const Result<> set = hosts_.await(app_, threads_.set_cpumask(*thread_, *CpuMask::parse(mask)));
    return set ? 0 : set.error().code;
  }
  void on_thread(const std::function<void()>& fn) { hosts_.on(*thread_, fn); }

  ManualHosts hosts_{3};
  LwThread& app_ = hosts_.home(0);
  ThreadDirectory threads_{hosts_};
  LwThread* thread_ = nullptr;
};

TEST_F(MoveTest, RunsOnTheOtherHostFromThenOn) {
  for (const size_t host : {1U, 2U, 2U, 0U}) {
    EXPECT_EQ(move(host), 0);
    EXPECT_EQ(&thread_->host(), &hosts_[host]);
    ThreadHost* ran_on = nullptr;
    post_to(*thread_, [&ran_on] { ran_on = ThreadHost::current(); });
    hosts_.run_until_idle();
    EXPECT_EQ(ran_on, &hosts_[host]);
  }
}

TEST_F(MoveTest, TimersGoAlong) {
  std::vector<ThreadHost*> fired;
  Timer once("once", [&] { fired.push_back(ThreadHost::current()); });
  Timer again("again", [&] { fired.push_back(ThreadHost::current()); });
  on_thread([&] {
    once.arm_at(*thread_, hosts_.now_ns() + 1000);
    again.arm_periodic(*thread_, 3000);
  });
  EXPECT_EQ(move(1), 0);
  hosts_.advance(1000);
  hosts_.run_until_idle();
  EXPECT_THAT(fired, ElementsAre(&hosts_[1]));
  hosts_.advance(2000);
  hosts_.run_until_idle();
  EXPECT_EQ(move(2), 0);
  hosts_.advance(3000);
  hosts_.run_until_idle();
  EXPECT_THAT(fired, ElementsAre(&hosts_[1], &hosts_[1], &hosts_[2]));
  on_thread([&] { again.cancel(); });
}

struct Counter : EventSource {
  void on_event(uint32_t) override {
    ++events;
    host = ThreadHost::current();
    uint64_t value = 0;
    if (::read(fd(), &value, sizeof(value)) == sizeof(value)) total += value;
  }
  int events = 0;
  uint64_t total = 0;
  ThreadHost* host = nullptr;
};

TEST_F(MoveTest, EventsGoAlongAndNoneIsLostOnTheWay) {
  const UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  const auto write_one = [&event] {
    const uint64_t one = 1;
    ASSERT_EQ(::write(event.get(), &one, sizeof(one)), sizeof(one));
  };
  Counter counter;
  on_thread([&] { ASSERT_TRUE(thread_->add_source(counter, event.get(), EPOLLIN | EPOLLET)); });
  uint64_t written = 0;
  for (size_t host : {1U, 2U, 0U}) {
    int code = 0;
    begin_move(host, code);
    while (code == -1) {
      write_one();
      ++written;
      hosts_.turn();
    }
    EXPECT_EQ(code, 0);
    hosts_.run_until_idle();
    EXPECT_EQ(counter.total, written);
    EXPECT_EQ(counter.host, &hosts_[host]);
  }
  on_thread([&] { thread_->remove_source(counter); });
}

// A queue with `work` pieces; who adds some while it is armed notifies.
struct Queue : Poller {
  Queue() : Poller("queue") { set_notification(event.get()); }
  bool poll() override {
    if (work == 0) return false;
    --work;
    host = ThreadHost::current();
    return true;
  }
  bool pure_poll() override { return work > 0; }
  bool try_sleep() override { return armed = work == 0; }
  void wake_up() override { armed = false; }
  void add_work() {
    ++work;
    const uint64_t one = 1;
    if (armed) ASSERT_EQ(::write(event.get(), &one, sizeof(one)), sizeof(one));
  }
  const UniqueFd event{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  int work = 0;
  bool armed = false;
  ThreadHost* host = nullptr;
};

TEST_F(MoveTest, PollersGoAlongHotOrCold) {
  Queue queue;
  on_thread([&] { thread_->add_poller(queue); });
  for (const PollMode mode : {PollMode::kInterrupt, PollMode::kPoll, PollMode::kAdaptive}) {
    hosts_.set_mode(mode);
    for (size_t host : {1U, 2U, 0U}) {
      hosts_.run_until_idle();
      if (mode != PollMode::kAdaptive) EXPECT_EQ(queue.hot(), mode == PollMode::kPoll);
      int code = 0;
      begin_move(host, code);
      while (code == -1) {
        queue.add_work();
        hosts_.turn();
      }
      hosts_.run_until_idle();
      for (int turns = 0; queue.work > 0 && turns < 1000; ++turns) hosts_.turn();
      EXPECT_EQ(queue.work, 0);
      EXPECT_EQ(queue.host, &hosts_[host]);
    }
  }
  on_thread([&] { thread_->remove_poller(queue); });
}

TEST_F(MoveTest, ColdPollersAreHotOnAHostThatPolls) {
  Queue queue;
  on_thread([&] { thread_->add_poller(queue); });
  hosts_.run_until_idle();
  EXPECT_FALSE(queue.hot());
  hosts_.on(hosts_.home(1), [&] { hosts_[1].set_mode(PollMode::kPoll); });
  EXPECT_EQ(move(1), 0);
  EXPECT_TRUE(queue.hot());
  EXPECT_FALSE(queue.armed);
  on_thread([&] { thread_->remove_poller(queue); });
}

// Each host sends numbered messages all the time, while the thread goes round.
TEST_F(MoveTest, MessagesOfOneSenderStayInOrderForAnySeed) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    hosts_.set_seed(seed);
    std::vector<std::vector<int>> received(3);
    std::vector<int> sent(3, 0);
    const auto send_some = [&] {
      for (size_t host = 0; host < 3; ++host) {
        hosts_.on(hosts_.home(host), [&] {
          post_to(*thread_, [&received, host, number = sent[host]++] { received[host].push_back(number); });
        });
      }
    };
    for (const size_t host : {1U, 2U, 0U, 2U}) {
      int code = 0;
      begin_move(host, code);
      while (code == -1) {
        send_some();
        hosts_.turn();
      }
      EXPECT_EQ(code, 0);
    }
    hosts_.run_until_idle();
    for (size_t host = 0; host < 3; ++host) {
      ASSERT_EQ(received[host].size(), static_cast<size_t>(sent[host]));
      EXPECT_TRUE(std::ranges::is_sorted(received[host]));
    }
  }
}

class MovingDevice final : public IoDevice {
 public:
  class MovingChannel final : public Channel {
   public:
    explicit MovingChannel(MovingDevice& device) : Channel(device), device_(device) {}
    bool can_move() const override { return device_.can_move; }
    void on_leave() override { device_.left = ThreadHost::current(); }
    void on_arrive() override { device_.arrived = ThreadHost::current(); }

   private:
    MovingDevice& device_;
  };

  std::string_view device_name() const override { return "device"; }
  Result<std::unique_ptr<Channel>> create_channel() override { return std::make_unique<MovingChannel>(*this); }

  bool can_move = true;
  ThreadHost* left = nullptr;
  ThreadHost* arrived = nullptr;
};

TEST_F(MoveTest, ChannelsAreToldOnEitherHost) {
  MovingDevice device;
  ChannelRef channel;
  on_thread([&] { channel = *thread_->get_channel(device); });
  EXPECT_EQ(move(2), 0);
  EXPECT_EQ(device.left, &hosts_[0]);
  EXPECT_EQ(device.arrived, &hosts_[2]);
  on_thread([&] { channel.reset(); });
}

TEST_F(MoveTest, IsRefusedWithAChannelThatCannotMove) {
  MovingDevice device;
  device.can_move = false;
  ChannelRef channel;
  on_thread([&] { channel = *thread_->get_channel(device); });
  EXPECT_EQ(move(1), EBUSY);
  EXPECT_EQ(&thread_->host(), &hosts_[0]);
  on_thread([&] { channel.reset(); });
  EXPECT_EQ(move(1), 0);
}

TEST_F(MoveTest, IsRefusedForHomeThreadsAndForOneThatIsMoving) {
  EXPECT_EQ(hosts_.await(app_, threads_.move(hosts_.home(1), hosts_[0])).error().code, EBUSY);
  int first = 0;
  begin_move(1, first);
  EXPECT_EQ(move(2), EBUSY);
  hosts_.run_until_idle();
  EXPECT_EQ(first, 0);
  EXPECT_EQ(&thread_->host(), &hosts_[1]);
}

TEST_F(MoveTest, EndOfAThreadWaitsForItsMove) {
  int code = 0;
  begin_move(2, code);
  destroy();
  EXPECT_EQ(code, 0);
}

TEST_F(MoveTest, CpumaskOfAHomeThreadStays) {
  const CpuMask before = hosts_.home(1).cpumask();
  EXPECT_EQ(hosts_.await(app_, threads_.set_cpumask(hosts_.home(1), hosts_.all_cpus())).error().code, EBUSY);
  EXPECT_EQ(hosts_.home(1).cpumask(), before);
}

// The move goes to where the new mask does not allow it to stay.
TEST_F(MoveTest, CpumaskIsSetAfterAMoveThatIsUnderWay) {
  int moved = 0;
  begin_move(1, moved);
  EXPECT_EQ(set_cpumask("0x5"), 0);
  EXPECT_EQ(moved, 0);
  EXPECT_NE(&thread_->host(), &hosts_[1]);
  EXPECT_EQ(thread_->cpumask(), *CpuMask::parse("0x5"));
}

TEST_F(MoveTest, CpumaskOfAThreadThatIsEndingIsNotSet) {
  int moved = 0;
  begin_move(1, moved);
  std::optional<int> code;
  hosts_.on(app_, [&] {
    start(threads_.set_cpumask(*thread_, hosts_.all_cpus()),
          [&code](Result<> set) { code = set ? 0 : set.error().code; });
  });
  destroy();
  EXPECT_EQ(code, EBUSY);
}

TEST_F(MoveTest, CpumaskMovesItOnlyWhereItMust) {
  EXPECT_EQ(set_cpumask("0x4"), 0);
  EXPECT_EQ(&thread_->host(), &hosts_[2]);
  EXPECT_EQ(thread_->cpumask(), *CpuMask::parse("0x4"));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(set_cpumask("0x7"), 0);
  EXPECT_EQ(&thread_->host(), &hosts_[2]);
  EXPECT_EQ(set_cpumask("0x8"), EINVAL) << "no host stands for core 3";
  EXPECT_EQ(thread_->cpumask(), *CpuMask::parse("0x7"));
}

TEST_F(MoveTest, CpumaskOfAHomeThreadStaysItsCore) {
  for (const char* mask : {"0x2", "0x7"}) {
    EXPECT_EQ(hosts_.await(app_, threads_.set_cpumask(hosts_.home(1), *CpuMask::parse(mask))).error().code, EBUSY);
    EXPECT_EQ(hosts_.home(1).cpumask(), *CpuMask::parse("0x2"));
  }
}

}  // namespace
}  // namespace sluice
