// How calls are held back: a queue on hosts with a clock of their own, so that no time passes unasked.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <vector>

#include "app/conformance/guest_memory.h"
#include "app/conformance/ring_driver.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/vhost/blk_queue.h"
#include "lib/vhost/guarded_write.h"
#include "test/support/manual_host.h"
#include "test/vhost/held_bdev.h"

namespace sluice::test {
namespace {

using vhost::BlkQueue;
using vhost::Coalescing;

struct IgnoreEvents : BdevEvents {
  void on_resize() override {}
  void on_remove() override {}
};

class CoalescingTest : public testing::Test {
 protected:
  // Begins with one epoch of `iops` requests a second.
  void start(const Coalescing& coalescing, int iops, bool event_idx = false) {
    ring_.emplace(memory_, RingDriver::Options{.event_idx = event_idx});
    threads_.list(thread_);
    ring_->enable_calls();
    auto made = std::make_unique<HeldBdev>("disk", 1 << 20, 512);
    disk_ = made.get();
    CHECK(bdevs_.add(std::move(made)).has_value());
    handle_ = bdevs_.open("disk", BdevAccess::kWrite, events_, "test").value();
    device_ = std::make_unique<vhost::BlkDevice>("disk", *disk_, vhost::BlkDevice::Options{.readonly = false});
    vhost::MemoryMap map;
    const UniqueFd fd(::dup(memory_.fd()));
    for (const auto& region : memory_.regions()) map = map.with(region, fd, {}).value();
    hosts_.on(thread_, [&] {
      channel_ = thread_.get_channel(*disk_).value();
      queue_ = std::make_unique<BlkQueue>(0, thread_, *device_, coalescing, log_limiter_);
      queue_->set_size(ring_->size());
      queue_->set_addresses(ring_->vring_addr(0));
      queue_->set_call(UniqueFd(::dup(ring_->call_fd())));
    });
    hosts_.await(thread_, queue_->start({}));
    hosts_.await(thread_, queue_->update({.map = std::make_shared<const vhost::MemoryMap>(std::move(map)),
                                          .features = device_->features() & ~(event_idx ? 0 : vhost::kFeatureEventIdx),
                                          .channel = static_cast<BdevChannel*>(channel_.get()),
                                          .write_through = false,
                                          .enabled_by_default = true}));
    ASSERT_TRUE(queue_->running());
    submit(1);
    for (int i = 0; i < iops / 100; ++i) submit(1);
    hosts_.advance(vhost::kCoalescingEpochNs);
    submit(1);
    disk_->hold();
  }

  ~CoalescingTest() override {
    hosts_.await(thread_, disk_->release(threads_));
    hosts_.await(thread_, queue_->stop());
    hosts_.on(thread_, [&] {
      queue_.reset();
      channel_.reset();
    });
    handle_.reset();
    hosts_.await(thread_, bdevs_.remove_all());
  }

  void submit(int count) {
    for (int i = 0; i < count; ++i) {
      ring_->add_chain(std::vector<Segment>{{header_, 16}, {data_, 512, true}, {status_, 1, true}});
    }
    ring_->publish();
    turn();
  }
  void complete(int count) {
    hosts_.await(thread_, disk_->release_oldest(threads_, count));
    turn();
  }
  // As a hostile front end may, at any time: from now on a write to it blocks.
  void fill_call_descriptor() {
    vhost::forget_blocked_writes();
    const int fd = ring_->call_fd();
    ASSERT_EQ(::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) & ~O_NONBLOCK), 0);
    ring_->drain_call();
    const uint64_t full = UINT64_MAX - 1;
    ASSERT_EQ(::write(fd, &full, sizeof(full)), sizeof(full));
  }
  void turn() {
    for (int i = 0; i < 3; ++i) hosts_.turn();
    while (ring_->poll_used()) continue;
  }
  uint64_t calls() const { return queue_->stats().calls; }

  ManualHosts hosts_{1, PollMode::kPoll};
  LwThread& thread_ = hosts_.home();
  ThreadDirectory threads_{hosts_};
  BdevManager bdevs_{threads_};
  IgnoreEvents events_;
  HeldBdev* disk_ = nullptr;
  std::unique_ptr<BdevHandle> handle_;
  std::unique_ptr<vhost::BlkDevice> device_;
  ChannelRef channel_;
  GuestMemory memory_;
  std::optional<RingDriver> ring_;
  const uint64_t header_ = memory_.allocate(0, 16);
  const uint64_t data_ = memory_.allocate(0, 512);
  const uint64_t status_ = memory_.allocate(0, 1);
  LogLimiter log_limiter_;
  std::unique_ptr<BlkQueue> queue_;
};

TEST_F(CoalescingTest, CallsOfABusyQueueComeLater) {
  start({.delay_base_ns = kNsPerMs, .iops_threshold = 1000}, 4000);
  submit(8);
  const uint64_t before = calls();
  complete(1);
  EXPECT_EQ(calls(), before) << "seven are in flight still";
  complete(2);
  hosts_.advance(3 * kNsPerMs - 1);  // a little over four times the threshold: three times the delay
  turn();
  EXPECT_EQ(calls(), before);
  hosts_.advance(kNsPerMs / 2);
  turn();
  EXPECT_EQ(calls(), before + 1) << "one for all three";
  turn();
  EXPECT_EQ(calls(), before + 1);
}

TEST_F(CoalescingTest, CallsAreNeverHeldBackAtLowDepth) {
  start({.delay_base_ns = kNsPerMs, .iops_threshold = 1000}, 4000);
  submit(5);
  const uint64_t before = calls();
  complete(1);
  EXPECT_EQ(calls(), before) << "four are in flight";
  complete(1);
  EXPECT_EQ(calls(), before + 1) << "with three the driver may be waiting: at once, and for both";
  complete(1);
  complete(2);
  EXPECT_EQ(calls(), before + 3);
  hosts_.advance(kNsPerSec);
  turn();
  EXPECT_EQ(calls(), before + 3) << "nothing is left of the first delay";
}

TEST_F(CoalescingTest, NothingIsHeldBackUpToTheThreshold) {
  start({.delay_base_ns = kNsPerMs, .iops_threshold = 4000}, 3000);
  submit(8);
  const uint64_t before = calls();
  complete(1);
  EXPECT_EQ(calls(), before + 1);
}

TEST_F(CoalescingTest, IsOffByDefault) {
  start({}, 100'000);
  submit(8);
  const uint64_t before = calls();
  complete(1);
  EXPECT_EQ(calls(), before + 1);
}

TEST_F(CoalescingTest, TurningItOffMakesTheCallThatIsDue) {
  start({.delay_base_ns = kNsPerMs, .iops_threshold = 1000}, 4000);
  submit(8);
  const uint64_t before = calls();
  complete(1);
  EXPECT_EQ(calls(), before);
  hosts_.on(thread_, [&] { queue_->set_coalescing({}); });
  EXPECT_EQ(calls(), before + 1);
  complete(1);
  EXPECT_EQ(calls(), before + 2);
}

// The driver is not told, so it does not move its used event: the ring asks for the call once only.
TEST_F(CoalescingTest, CallIsNotHeldBackAtLowDepthWithEventIdx) {
  start({.delay_base_ns = kNsPerMs, .iops_threshold = 1000}, 4000, true);
  ring_->enable_calls();
  submit(5);
  const uint64_t before = calls();
  complete(1);
  EXPECT_EQ(calls(), before) << "four are in flight";
  complete(4);
  EXPECT_EQ(calls(), before + 1);
  hosts_.advance(kNsPerSec);
  turn();
  EXPECT_EQ(calls(), before + 1);
}

TEST_F(CoalescingTest, CallThatIsDueAndBlocksWhenTheRingStopsCostsTheRingOnly) {
  start({.delay_base_ns = kNsPerMs, .iops_threshold = 1000}, 4000);
  submit(8);
  complete(1);
  fill_call_descriptor();
  hosts_.on(thread_, [&] { queue_->set_enabled(false); });
  hosts_.await(thread_, disk_->release(threads_));
  hosts_.await(thread_, queue_->update({}));
  EXPECT_FALSE(queue_->running());
  EXPECT_EQ(queue_->fault(), vhost::RingFault::kCallBlocked);
}

TEST_F(CoalescingTest, CallThatIsDueAndBlocksWhenTheRingBreaksCostsTheRingOnly) {
  start({.delay_base_ns = kNsPerMs, .iops_threshold = 1000}, 4000);
  submit(8);
  complete(1);
  fill_call_descriptor();
  ring_->set_avail_idx(30'000);
  hosts_.turn();
  EXPECT_FALSE(queue_->running());
  EXPECT_NE(queue_->fault(), vhost::RingFault::kNone);
}

TEST_F(CoalescingTest, StoppingMakesTheCallThatIsDue) {
  start({.delay_base_ns = kNsPerMs, .iops_threshold = 1000}, 4000);
  submit(8);
  const uint64_t before = calls();
  complete(1);
  hosts_.on(thread_, [&] { queue_->set_enabled(false); });
  hosts_.await(thread_, disk_->release(threads_));
  hosts_.await(thread_, queue_->update({}));
  EXPECT_FALSE(queue_->running());
  EXPECT_GT(calls(), before);
}

// ---- A queue's share of its thread

class QueueShareTest : public CoalescingTest {};

// A block device may copy the bytes there and then: 16 requests of the largest size are gigabytes.
TEST_F(QueueShareTest, PollEndsWithItsBytesToo) {
  start({}, 0);
  constexpr uint32_t kBytes = vhost::kQueueBudgetBytes / 4;
  const uint64_t data = memory_.allocate(kHigh, kBytes);
  for (int i = 0; i < 16; ++i)
    ring_->add_chain(std::vector<Segment>{{header_, 16}, {data, kBytes, true}, {status_, 1, true}});
  ring_->publish();
  for (int polls = 1; polls <= 4; ++polls) {
    hosts_.turn();
    EXPECT_EQ(disk_->held_count(), 4 * polls);
  }
}

// A ring without a kick has to be looked at. A front end may make 64 of them, and use none.
TEST_F(QueueShareTest, RingWithoutAKickIsLookedAtLessAndLessOften) {
  start({}, 0);
  hosts_.set_mode(PollMode::kInterrupt);
  hosts_.run_until_idle();
  const auto looks_in_a_second = [this] {
    const uint64_t before = queue_->stats().kicks;
    for (uint64_t ns = 0; ns < kNsPerSec; ns += vhost::kKicklessPeriodNs) {
      hosts_.advance(vhost::kKicklessPeriodNs);
      hosts_.run_until_idle();
    }
    return queue_->stats().kicks - before;
  };
  looks_in_a_second();
  const uint64_t most = kNsPerSec / vhost::kMaxKicklessPeriodNs;
  EXPECT_GE(looks_in_a_second(), most - 1);
  EXPECT_LE(looks_in_a_second(), most + 1);
  // Once there is work, it is looked at soon again.
  ring_->add_chain(std::vector<Segment>{{header_, 16}, {data_, 512, true}, {status_, 1, true}});
  ring_->publish();
  hosts_.advance(vhost::kMaxKicklessPeriodNs);
  hosts_.run_until_idle();
  EXPECT_EQ(disk_->held_count(), 1);
  const uint64_t before = queue_->stats().kicks;
  hosts_.advance(vhost::kKicklessPeriodNs);
  hosts_.run_until_idle();
  EXPECT_EQ(queue_->stats().kicks, before + 1);
}

}  // namespace
}  // namespace sluice::test
