// The virtqueue with a driver that behaves, split, or with SLUICE_TEST_PACKED packed: layouts, wrap-around, batches,
// notifications in both directions.
#include <poll.h>
#include <unistd.h>

#include <set>

#include "app/conformance/target_fixture.h"

namespace sluice::test {
namespace {

using vhost::BlkStatus;

class VhostRing : public TargetFixture {
 public:
  void start(SessionOptions options = {}) {
    session_ = running(std::move(options));
    ASSERT_FALSE(HasFailure());
  }
  RingDriver& ring(size_t i = 0) { return session_->ring(i); }
  BlkDriver& blk(size_t i = 0) { return session_->blk(i); }
  // Completes `n` requests by looking, without touching the event index.
  void complete_by_looking(int n) {
    for (int i = 0; i < n; i++) {
      auto outcome = blk().complete(kTimeoutMs, false);
      ASSERT_TRUE(outcome) << i << " of " << n << ring().violation();
      EXPECT_EQ(outcome->status(), BlkStatus::kOk);
    }
  }
  // Publishes a read and kicks without asking whether that is needed.
  void submit_silently(int n) {
    for (int i = 0; i < n; i++) blk().add(read_request(0, 512));
    ring().publish();
    ring().kick_always();
  }
  // The number of calls, once the target has had time to make them.
  uint64_t calls_after_a_while() {
    ::usleep(20'000);
    return ring().drain_call();
  }

 protected:
  std::unique_ptr<Session> session_;
};

// VIRTIO, "The Virtqueue Used Ring": each chain comes back once, with the number of bytes written.
CASE(VhostRing, ReturnsEachChainOnceWithTheBytesWritten,
     "virtio 1.2, 2.7.8.2 Device Requirements: The Virtqueue Used Ring") {
  start();
  auto read = blk().run(read_request(0, 4096));
  ASSERT_TRUE(read);
  EXPECT_EQ(read->used_len, 4097U);
  auto write = blk().run(write_request(0, Bytes(1024)));
  ASSERT_TRUE(write);
  EXPECT_EQ(write->used_len, 1U);
  auto flush = blk().run(flush_request());
  ASSERT_TRUE(flush);
  EXPECT_EQ(flush->used_len, 1U);
  EXPECT_TRUE(read->intact && write->intact && flush->intact);
}

// A full ring published at once, several times round the 16-bit index.
CASE(VhostRing, CompletesFullRingsAcrossTheIndexWrap, "virtio 1.2, 2.7.6 The Virtqueue Available Ring") {
  start({.queue_size = 64, .start_index = 65500});
  for (int round = 0; round < 8; round++) {
    std::set<uint16_t> heads;
    while (ring().free_descriptors() >= 3) heads.insert(blk().add(read_request(heads.size(), 512)));
    EXPECT_EQ(heads.size(), 21U);
    ring().publish();
    ring().kick();
    while (!heads.empty()) {
      uint16_t head = 0;
      auto outcome = blk().complete(kTimeoutMs, true, &head);
      ASSERT_TRUE(outcome) << "round " << round << ": " << ring().violation();
      EXPECT_EQ(outcome->status(), BlkStatus::kOk);
      EXPECT_EQ(heads.erase(head), 1U);
    }
  }
}

// VIRTIO, "Split Virtqueues": any power of two.
CASE(VhostRing, WorksWithManySizes, "virtio 1.2, 2.7 Split Virtqueues: any power of two") {
  for (uint16_t size : std::initializer_list<uint16_t>{4, 8, 256, 1024}) {
    start({.queue_size = size});
    for (uint32_t i = 0; i < 6; i++) expect_io_works(*session_, 0, i);
    session_.reset();
  }
}

CASE(VhostRing, QueuesAreIndependent, "virtio 1.2, 5.2.2 Virtqueues") {
  start({.num_queues = 4});
  for (uint32_t round = 0; round < 5; round++) {
    for (uint32_t i = 0; i < session_->num_queues(); i++) blk(i).submit(write_request(8 * i, pattern(4096, round + i)));
    for (uint32_t i = static_cast<uint32_t>(session_->num_queues()); i-- > 0;) {
      auto outcome = blk(i).complete();
      ASSERT_TRUE(outcome) << "queue " << i;
      EXPECT_EQ(outcome->status(), BlkStatus::kOk);
    }
    for (uint32_t i = 0; i < session_->num_queues(); i++) {
      Bytes data(4096);
      EXPECT_EQ(blk(i).read(8 * ((i + 1) % session_->num_queues()), data), BlkStatus::kOk);
      EXPECT_TRUE(data == pattern(4096, round + (i + 1) % static_cast<uint32_t>(session_->num_queues())));
    }
  }
}

// ---- VIRTIO, "Indirect Descriptors"

CASE(VhostRing, FollowsIndirectTables, "virtio 1.2, 2.7.5.3 Indirect Descriptors") {
  start();
  SKIP_UNLESS(session_->has(vhost::kFeatureIndirectDesc));
  Bytes data = pattern(16384, 5);
  Exchange write = write_request(100, data);
  write.indirect = true;
  write.readable_split = {16, 4096, 1, 511, 8192};
  auto written = blk().run(write);
  ASSERT_TRUE(written);
  EXPECT_EQ(written->status(), BlkStatus::kOk);
  Exchange read = read_request(100, data.size());
  read.indirect = true;
  read.writable_split = {4096, 4096, 100, 8092};
  auto outcome = blk().run(read);
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->status(), BlkStatus::kOk);
  EXPECT_TRUE(outcome->data() == data);
  EXPECT_EQ(outcome->used_len, data.size() + 1);
}

// The same: a device handles zero or more direct descriptors that are followed by a single indirect one.
CASE(VhostRing, FollowsDirectDescriptorsThatEndInAnIndirectTable,
     "virtio 1.2, 2.7.5.3.2 Device Requirements: Indirect Descriptors") {
  start();
  SKIP_UNLESS(!session_->has(vhost::kFeatureRingPacked));
  SKIP_UNLESS(session_->has(vhost::kFeatureIndirectDesc));
  Bytes data = pattern(4096, 6);
  ASSERT_EQ(blk().write(40, data), BlkStatus::kOk);
  for (size_t direct : {1U, 2U}) {
    Exchange read = read_request(40, data.size());
    read.writable_split = {1024, 1024, 2048};
    read.indirect = true;
    read.direct_before_indirect = direct;
    auto outcome = blk().run(read);
    ASSERT_TRUE(outcome) << direct;
    EXPECT_EQ(outcome->status(), BlkStatus::kOk);
    EXPECT_TRUE(outcome->data() == data) << direct;
  }
}

// The flag that makes a buffer writable says nothing about the table itself.
CASE(VhostRing, IgnoresTheWriteFlagOfAnIndirectDescriptor,
     "virtio 1.2, 2.7.5.3.2 Device Requirements: Indirect Descriptors") {
  start();
  SKIP_UNLESS(session_->has(vhost::kFeatureIndirectDesc));
  Exchange read = read_request(0, 512);
  read.indirect = true;
  read.table_flags = vhost::kDescIndirect | vhost::kDescWrite;
  auto outcome = blk().run(read);
  ASSERT_TRUE(outcome) << ring().violation();
  EXPECT_EQ(outcome->status(), BlkStatus::kOk);
}

// A table may be longer than the ring: it is bounded by seg_max, not by the queue's size.
CASE(VhostRing, IndirectTablesMayBeLongerThanTheRing,
     "practice: virtio 1.2, 2.7.5.3: Linux makes tables as long as seg_max allows") {
  start({.queue_size = 16});
  SKIP_UNLESS(session_->has(vhost::kFeatureIndirectDesc));
  Bytes data = pattern(64 * 512, 7);
  Exchange write = write_request(0, data);
  write.indirect = true;
  write.readable_split = {16};
  for (int i = 0; i < 64; i++) write.readable_split.push_back(512);
  auto outcome = blk().run(write);
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->status(), BlkStatus::kOk);
  Bytes back(data.size());
  EXPECT_EQ(blk().read(0, back), BlkStatus::kOk);
  EXPECT_TRUE(back == data);
}

// ---- VIRTIO, "Used Buffer Notification Suppression": calls

CASE(VhostRing, CallsWhenTheUsedEventIsPassed,
     "virtio 1.2, 2.7.7.2 Device Requirements: Used Buffer Notification Suppression") {
  start();
  SKIP_UNLESS(!session_->has(vhost::kFeatureRingPacked));
  SKIP_UNLESS(session_->has(vhost::kFeatureEventIdx));
  expect_io_works(*session_);
  calls_after_a_while();  // a call when the ring starts, or for the first buffer, is allowed
  ring().set_used_event(static_cast<uint16_t>(ring().used_taken() + 4));  // that is when the fifth buffer is used
  for (int i = 0; i < 4; i++) {
    submit_silently(1);
    complete_by_looking(1);
  }
  EXPECT_EQ(calls_after_a_while(), 0U) << "called before the event";
  submit_silently(1);
  complete_by_looking(1);
  EXPECT_NE(wait_for(ring().call_fd(), POLLIN, Deadline(kTimeoutMs)), 0) << "not called at the event";
  ring().drain_call();
  for (int i = 0; i < 5; i++) {
    submit_silently(1);
    complete_by_looking(1);
  }
  EXPECT_EQ(calls_after_a_while(), 0U) << "called again without a new event";
}

// With EVENT_IDX the flags are not looked at, in either direction.
CASE(VhostRing, IgnoresAvailFlagsWithEventIdx,
     "virtio 1.2, 2.7.7.2 Device Requirements: Used Buffer Notification Suppression") {
  start();
  SKIP_UNLESS(!session_->has(vhost::kFeatureRingPacked));
  SKIP_UNLESS(session_->has(vhost::kFeatureEventIdx));
  ring().set_avail_flags(vhost::kAvailNoInterrupt);
  for (uint32_t i = 0; i < 3; i++) expect_io_works(*session_, 0, i);
}

CASE(VhostRing, HonoursNoInterruptWithoutEventIdx,
     "virtio 1.2, 2.7.7.2 Device Requirements: Used Buffer Notification Suppression") {
  start({.leave_features = vhost::kFeatureEventIdx});
  expect_io_works(*session_);
  ring().suppress_calls();
  ring().drain_call();
  submit_silently(3);
  complete_by_looking(3);
  EXPECT_EQ(calls_after_a_while(), 0U);
  ring().enable_calls();
  expect_io_works(*session_, 0, 2);
}

// One batch is one call at most per turn of the target, never one per request after the driver has been told.
CASE(VhostRing, DoesNotCallForEachRequestOfABatch,
     "virtio 1.2, 2.7.7.2 Device Requirements: Used Buffer Notification Suppression") {
  start();
  SKIP_UNLESS(session_->has(vhost::kFeatureEventIdx));
  expect_io_works(*session_);
  calls_after_a_while();
  ring().enable_calls();
  submit_silently(32);
  complete_by_looking(32);
  EXPECT_LE(calls_after_a_while(), 1U);
}

// ---- "Available Buffer Notification Suppression": kicks

// A driver that kicks only when it is asked to is never left waiting.
CASE(VhostRing, NeverSleepsThroughANeededKick, "virtio 1.2, 2.7.10 Available Buffer Notification Suppression") {
  start();
  for (int i = 0; i < 3000; i++) {
    blk().submit(read_request(0, 512));
    if (i % 3 == 0) ::usleep(static_cast<useconds_t>(i % 50));
    if (i % 100 == 0) ::usleep(5000);
    ASSERT_TRUE(blk().complete()) << "request " << i << " " << ring().violation();
  }
}

CASE(VhostRing, NeverSleepsThroughANeededKickWithoutEventIdx,
     "virtio 1.2, 2.7.10 Available Buffer Notification Suppression") {
  start({.leave_features = vhost::kFeatureEventIdx});
  for (int i = 0; i < 1000; i++) {
    blk().submit(read_request(0, 512));
    if (i % 3 == 0) ::usleep(static_cast<useconds_t>(i % 50));
    ASSERT_TRUE(blk().complete()) << "request " << i << " " << ring().violation();
  }
}

// An idle target must ask for the next kick: it has nothing else to notice a request by.
CASE(VhostRing, AsksForAKickWhenIdle, "virtio 1.2, 2.7.10 Available Buffer Notification Suppression") {
  start();
  expect_io_works(*session_);
  ::usleep(100'000);
  blk().add(read_request(0, 512));
  ring().publish();
  Deadline deadline(kTimeoutMs);
  bool served = false;  // or it polls
  while (!ring().kick_needed() && !served && !deadline.passed()) served = ring().used_idx() != ring().used_taken();
  EXPECT_TRUE(served || ring().kick_needed());
  ring().kick();
  EXPECT_TRUE(blk().complete());
}

CASE(VhostRing, ToleratesSpuriousKicks,
     "virtio 1.2, 2.7.10.2 Device Requirements: Available Buffer Notification Suppression") {
  start({.num_queues = 2});
  for (uint32_t i = 0; i < 200; i++) {
    ring(0).kick_always();
    ring(1).kick_always();
  }
  expect_io_works(*session_, 0);
  EXPECT_EQ(ring(1).used_idx(), 0);
  expect_io_works(*session_, 1);
}

// Kicks that come before the avail index is visible, or long after, lose nothing.
CASE(VhostRing, LosesNothingUnderLoad, "virtio 1.2, 2.7.13 Supplying Buffers to The Device") {
  start({.num_queues = 2, .queue_size = 128});
  uint64_t submitted[2] = {}, completed[2] = {};
  Deadline deadline(kTimeoutMs * 5);
  constexpr uint64_t kTotal = 5000;
  while ((completed[0] < kTotal || completed[1] < kTotal) && !deadline.passed()) {
    for (size_t q = 0; q < 2; q++) {
      bool any = false;
      while (submitted[q] < kTotal && ring(q).free_descriptors() >= 3 && ring(q).outstanding() < 32) {
        blk(q).add(read_request(submitted[q] % 1024, 512));
        submitted[q]++;
        any = true;
      }
      if (any) {
        ring(q).publish();
        ring(q).kick();
      }
      bool first = true;
      while (completed[q] < submitted[q]) {
        auto outcome = blk(q).complete(first ? kTimeoutMs : 0, first);
        if (!outcome) break;
        ASSERT_EQ(outcome->status(), BlkStatus::kOk);
        completed[q]++;
        first = false;
      }
      ASSERT_EQ(ring(q).violation(), "");
    }
  }
  EXPECT_EQ(completed[0], kTotal);
  EXPECT_EQ(completed[1], kTotal);
}

}  // namespace
}  // namespace sluice::test
