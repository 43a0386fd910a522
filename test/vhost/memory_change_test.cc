// Guest memory that changes, vanishes or is too much while requests are on their way.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "app/conformance/memory_fixture.h"
#include "lib/vhost/limits.h"
#include "test/vhost/in_process_fixture.h"

namespace sluice::test {
namespace {

using vhost::BlkStatus;
using vhost::MemoryRegion;
using vhost::Request;
using vhost::RingFault;

class VhostMemoryChange : public InProcess<VhostMemory> {
 public:
  // A ring that runs, in memory that was given by slots.
  void start_with_slots() {
    open();
    for (const MemoryRegion& region : memory().regions()) ASSERT_EQ(add(region), Verdict::kAccepted);
    start_ring();
    data_ = pattern(4096, 9);
    ASSERT_EQ(session_->blk().write(8, data_), BlkStatus::kOk);
  }
  void expect_reads(int count) {
    for (int i = 0; i < count; i++) {
      auto outcome = session_->blk().complete();
      ASSERT_TRUE(outcome) << i << " of " << count << " " << ring().violation();
      EXPECT_EQ(outcome->status(), BlkStatus::kOk);
      EXPECT_TRUE(outcome->data() == data_);
    }
    EXPECT_EQ(ring().outstanding(), 0U);
  }
  // Another table each time, which has no mapping in common with the one before.
  std::vector<MemoryRegion> variant(int i) {
    std::vector<MemoryRegion> regions = memory().regions();
    for (MemoryRegion& region : regions) region.size -= i % 2 == 0 ? 0U : 4096U;
    return regions;
  }
  vhost::SessionInfo::Queue queue() { return session_info().queues.at(0); }

 protected:
  Bytes data_;
};

// ---- Requests in flight while the memory changes

TEST_F(VhostMemoryChange, TableMayBeReplacedWhileRequestsAreHeld) {
  open();
  ASSERT_EQ(table(memory().regions()), Verdict::kAccepted);
  start_ring();
  data_ = pattern(4096, 9);
  ASSERT_EQ(session_->blk().write(8, data_), BlkStatus::kOk);
  hold_io();
  session_->blk().submit(read_request(8, 4096));
  wait_until_held(1);
  ASSERT_TRUE(fe().set_mem_table(memory()));
  ::usleep(kQuietMs * 1000);
  release_io();
  expect_reads(1);
  EXPECT_TRUE(fe().fence());
}

// REM_MEM_REG of the ring's own memory pauses the ring. Who completes meanwhile is not lost.
TEST_F(VhostMemoryChange, RequestsThatCompleteInAPausedRingAreInIt) {
  start_with_slots();
  const MemoryRegion region = memory().regions()[kHigh];
  for (const bool completes_before_it_goes_on : {true, false}) {
    hold_io();
    session_->blk().submit(read_request(8, 4096));
    wait_until_held(1);
    ASSERT_EQ(remove(region), Verdict::kAccepted);
    EXPECT_FALSE(queue().running);
    if (completes_before_it_goes_on) release_io();
    ASSERT_EQ(add(region), Verdict::kAccepted);
    EXPECT_TRUE(queue().running);
    if (!completes_before_it_goes_on) release_io();
    expect_reads(1);
    expect_io_works(*session_);
  }
}

// The same without waiting for anything, so that completions fall between any two steps.
TEST_F(VhostMemoryChange, RequestsAreNotLostWhileRegionsComeAndGo) {
  start_with_slots();
  const Bytes removal = mem_reg_payload(memory().regions()[kHigh]);
  for (int round = 0; round < 200 && !HasFailure(); round++) {
    for (int i = 0; i < 16; i++) session_->blk().add(read_request(8, 4096));
    ring().publish();
    ring().kick();
    for (int i = 0; i < 1 + round % 3; i++) {
      ASSERT_TRUE(fe().send(Request::kRemMemReg, removal));
      for (int j = 0; j < round % 4; j++) ASSERT_TRUE(fe().send(Request::kSetOwner));
      ASSERT_TRUE(fe().add_mem_reg(memory(), kHigh));
    }
    expect_reads(16);
  }
}

// So many completions that they take several turns of the reactor, with changes between any two of them.
TEST_F(VhostMemoryChange, NoneOfManyRequestsIsLostWhileRegionsComeAndGo) {
  constexpr size_t kQueues = 4;
  constexpr int kRequests = 300;
  open({.num_queues = kQueues, .queue_size = 1024});
  for (const MemoryRegion& region : memory().regions()) ASSERT_EQ(add(region), Verdict::kAccepted);
  for (uint32_t q = 0; q < kQueues; q++) ASSERT_TRUE(session_->start_ring(q)) << session_->error();
  ASSERT_TRUE(session_->enable_all(true));
  const Bytes removal = mem_reg_payload(memory().regions()[kHigh]);
  for (int round = 0; round < 10 && !HasFailure(); round++) {
    hold_io();
    // One queue after the other, so that they complete in this order, too.
    for (size_t q = 0; q < kQueues; q++) {
      for (int i = 0; i < kRequests; i++) session_->blk(q).add(read_request(8, 512));
      session_->ring(q).publish();
      session_->ring(q).kick();
      wait_until_held(static_cast<int>(q + 1) * kRequests);
    }
    const Repeated changes(
        [&] { return fe().send(Request::kRemMemReg, removal) && fe().add_mem_reg(memory(), kHigh); });
    EXPECT_TRUE(eventually([&] { return changes.count() > 2; }));
    release_io();
    for (size_t q = 0; q < kQueues; q++) {
      int completed = 0;
      while (completed < kRequests && session_->blk(q).complete()) completed++;
      EXPECT_EQ(completed, kRequests) << "round " << round << ", queue " << q << ", " << session_->ring(q).violation();
    }
  }
}

// Where the last request ended is where the target looks first for the next one: not once that is another memory.
TEST_F(VhostMemoryChange, NothingIsFoundWhereMemoryHasBeen) {
  start_with_slots();
  const MemoryRegion low = memory().regions()[kLow];
  const uint64_t header = memory().allocate(kHigh, 16);
  const uint64_t data = memory().allocate(kLow, 4096 + 1);
  memory().write(header, bytes_of(vhost::BlkRequestHeader{.type = 0, .reserved = 0, .sector = 8}));
  const auto read = [&] {
    ring().add_chain(std::vector<Segment>{{header, 16}, {data, 4096, true}, {data + 4096, 1, true}});
    ring().publish();
    ring().kick_always();
  };
  read();
  ASSERT_TRUE(ring().wait_used());
  EXPECT_TRUE(memory().read(data, 4096) == data_);

  // The same addresses, but another file.
  const UniqueFd other(::memfd_create("other", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(other.get(), static_cast<off_t>(low.mmap_offset + low.size)), 0);
  memory().write(data, Bytes(4096, kUntouched));
  ASSERT_EQ(remove(low), Verdict::kAccepted);
  ASSERT_EQ(add(low, other.get()), Verdict::kAccepted);
  read();
  ASSERT_TRUE(ring().wait_used());
  EXPECT_TRUE(memory().read(data, 4096) == Bytes(4096, kUntouched));
  Bytes in_other(4096);
  ASSERT_EQ(::pread(other.get(), in_other.data(), 4096, static_cast<off_t>(low.mmap_offset + data - low.guest_address)),
            4096);
  EXPECT_TRUE(in_other == data_);

  ASSERT_EQ(remove(low), Verdict::kAccepted);
  read();
  EXPECT_TRUE(eventually([&] { return queue().fault == RingFault::kNotMapped; }));
}

// ---- Many maps at once

int count_mappings(const std::string& name) {
  std::ifstream maps("/proc/self/maps");
  int count = 0;
  for (std::string line; std::getline(maps, line);) count += line.contains("/memfd:" + name + " ") ? 1 : 0;
  return count;
}

TEST_F(VhostMemoryChange, OneRequestInFlightKeepsOnlyItsOwnMap) {
  open();
  ASSERT_EQ(table(variant(0)), Verdict::kAccepted);
  start_ring();
  data_ = pattern(4096, 9);
  ASSERT_EQ(session_->blk().write(8, data_), BlkStatus::kOk);
  const int before = count_mappings("guest");
  EXPECT_GT(before, 1);
  hold_io();
  session_->blk().submit(read_request(8, 4096));
  wait_until_held(1);
  for (int i = 1; i <= 100; i++) ASSERT_EQ(table(variant(i)), Verdict::kAccepted) << i;
  EXPECT_LE(count_mappings("guest"), 2 * before);
  release_io();
  expect_reads(1);
  ASSERT_EQ(table(variant(0)), Verdict::kAccepted);
  EXPECT_LE(count_mappings("guest"), before);
  expect_io_works(*session_);
}

// Each request in flight in a map of its own: only so many maps; then the next one waits, but not for all requests.
TEST_F(VhostMemoryChange, RequestsInFlightKeepOnlySoManyMaps) {
  open();
  ASSERT_EQ(table(variant(0)), Verdict::kAccepted);
  start_ring();
  data_ = pattern(4096, 9);
  ASSERT_EQ(session_->blk().write(8, data_), BlkStatus::kOk);
  hold_io();
  constexpr int kMaps = vhost::kMaxMapsInUse;
  for (int i = 1; i <= kMaps; i++) {
    session_->blk().submit(read_request(8, 4096));
    wait_until_held(i);
    if (i < kMaps) ASSERT_EQ(table(variant(i)), Verdict::kAccepted) << i;
  }
  const std::vector<MemoryRegion> regions = variant(kMaps);
  ASSERT_TRUE(fe().send(Request::kSetMemTable, mem_table_payload(regions), repeat(memory().fd(), regions.size()),
                        vhost::kVersion | vhost::kNeedReplyFlag));
  EXPECT_TRUE(fe().channel().stays_silent());
  expect_target_alive(1);
  release_oldest_io(1);
  EXPECT_EQ(fe().judge_ack(Request::kSetMemTable), Verdict::kAccepted) << "the oldest map has ended";
  EXPECT_EQ(held_io_count(), kMaps - 1);
  release_io();
  expect_reads(kMaps);
  expect_io_works(*session_);
}

// ---- Too much memory

TEST_F(VhostMemoryChange, RefusesMoreMemoryThanAGuestCanHave) {
  UniqueFd sparse(::memfd_create("sparse", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(sparse.get(), int64_t{64} << 40), 0);
  for (const uint64_t size : {vhost::kMaxGuestBytes + 4096, 4 * vhost::kMaxGuestBytes, vhost::kMaxGuestBytes}) {
    open();
    const MemoryRegion small{.guest_address = 0, .size = kMiB, .user_address = 0, .mmap_offset = 0};
    // With the small one, the last of them is too much as well.
    const MemoryRegion large{.guest_address = kMiB, .size = size, .user_address = kMiB, .mmap_offset = 0};
    EXPECT_EQ(add(small, sparse.get()), Verdict::kAccepted);
    EXPECT_EQ(add(large, sparse.get()), Verdict::kRefused) << size;
    EXPECT_EQ(fe().judge(Request::kSetMemTable, mem_table_payload(std::vector{small, large}), repeat(sparse.get(), 2)),
              Verdict::kRefused)
        << size;
    EXPECT_LE(count_mappings("sparse"), 1);
    session_->close();
  }
  expect_target_alive();
  EXPECT_TRUE(eventually([] { return count_mappings("sparse") == 0; }));
}

// ---- Memory that vanishes

// The buffers are in a file that is cut off, the ring is not: it would go on, with zeroes in the place of what is lost.
TEST_F(VhostMemoryChange, ABrokenRingStaysBrokenUntilItsMemoryIsThere) {
  constexpr uint64_t kGpa = uint64_t{1} << 40;
  constexpr uint32_t kSize = 64 << 10;
  open();
  // Written and read by system calls only: the test would not survive touching what is gone.
  UniqueFd file(::memfd_create("buffers", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(file.get(), kSize), 0);
  std::vector<MemoryRegion> regions = memory().regions();
  regions.push_back({.guest_address = kGpa, .size = kSize, .user_address = kGpa, .mmap_offset = 0});
  std::vector<int> fds = repeat(memory().fd(), regions.size() - 1);
  fds.push_back(file.get());
  const auto send_table = [&] { return fe().judge(Request::kSetMemTable, mem_table_payload(regions), fds); };
  const auto fill = [&](uint32_t seed) {
    const Bytes content = pattern(4096, seed);
    ASSERT_EQ(::pwrite(file.get(), content.data(), content.size(), 0), static_cast<ssize_t>(content.size()));
  };
  // From the file to the disk.
  const auto write = [&](uint64_t sector) {
    const uint64_t header = memory().allocate(kHigh, sizeof(vhost::BlkRequestHeader));
    const uint64_t status = memory().allocate(kHigh, 1);
    memory().write(header, bytes_of(vhost::BlkRequestHeader{.type = 1, .sector = sector}));
    ring().add_chain(std::vector<Segment>{{header, sizeof(vhost::BlkRequestHeader)}, {kGpa, 4096}, {status, 1, true}});
    ring().publish();
    ring().kick_always();
  };
  const auto start_anew = [&] {
    ASSERT_TRUE(fe().set_vring_fd(Request::kSetVringKick, 0, ring().kick_fd()));
    ASSERT_TRUE(fe().fence()) << session_->error();
  };
  const auto broken = [&] { return queue().fault == RingFault::kMemoryLost && !queue().running; };
  const auto content_of = [&](uint64_t sector) {
    Bytes content(4096);
    EXPECT_EQ(session_->blk().read(sector, content), BlkStatus::kOk);
    return content;
  };

  ASSERT_EQ(send_table(), Verdict::kAccepted);
  start_ring();
  ASSERT_FALSE(HasFailure());
  fill(1);
  write(8);
  ASSERT_TRUE(ring().wait_used());
  EXPECT_TRUE(content_of(8) == pattern(4096, 1));

  ASSERT_EQ(::ftruncate(file.get(), 0), 0);
  write(16);  // what it was under way with may end, whatever it has written
  EXPECT_TRUE(eventually(broken));
  ring().wait_used(kQuietMs, false);
  const uint16_t used = ring().used_idx();
  write(8);
  for (int i = 0; i < 3; i++) {
    start_anew();
    EXPECT_TRUE(eventually(broken)) << i;
  }
  // Even a table with the same regions, as long as the file lacks them.
  EXPECT_NE(send_table(), Verdict::kAccepted);
  EXPECT_EQ(ring().used_idx(), used);

  ASSERT_EQ(::ftruncate(file.get(), kSize), 0);
  start_anew();
  EXPECT_TRUE(eventually(broken)) << "the mapping is not the file's any more";
  EXPECT_EQ(ring().used_idx(), used);
  fill(2);
  ASSERT_EQ(send_table(), Verdict::kAccepted);
  start_anew();
  ASSERT_TRUE(ring().wait_used());
  EXPECT_EQ(queue().fault, RingFault::kNone);
  EXPECT_TRUE(content_of(8) == pattern(4096, 2)) << "what waited in the ring, with what is in the file now";
  expect_io_works(*session_);
}

// ---- Rings at odd places

// Aligned in the front end's addresses, and not in the file: the region begins at an odd offset.
TEST_F(VhostMemoryChange, NeverRunsARingThatIsMisalignedInItsFile) {
  open({.num_queues = 1});
  for (const uint64_t offset : {1U, 2U, 8U}) {
    SCOPED_TRACE(offset);
    std::vector<MemoryRegion> regions = memory().regions();
    for (MemoryRegion& region : regions) {
      region.mmap_offset += offset;
      region.size -= 4096;
    }
    ASSERT_EQ(table(regions), Verdict::kAccepted);
    session_->blk().add(read_request(0, 512));
    ring().publish();
    start_ring();
    ASSERT_TRUE(fe().fence()) << session_->error();
    EXPECT_FALSE(queue().running);
    EXPECT_EQ(ring().used_idx(), ring().used_taken());
    // In its place, it runs.
    ASSERT_EQ(table(memory().regions()), Verdict::kAccepted);
    EXPECT_TRUE(queue().running);
    ASSERT_TRUE(session_->blk().complete());
    ASSERT_TRUE(session_->stop_ring(0)) << session_->error();
  }
}

}  // namespace
}  // namespace sluice::test
