// Migration with requests that are held: what is in flight when the log comes, goes, or is replaced; and the parts of
// it.
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <tuple>

#include "app/conformance/log_file.h"
#include "lib/vhost/device_state.h"
#include "lib/vhost/dirty_log.h"
#include "lib/vhost/memory_map.h"
#include "test/vhost/in_process_fixture.h"

namespace sluice::test {
namespace {

using ::testing::IsEmpty;
using ::testing::IsSupersetOf;
using vhost::DirtyLog;
using vhost::LogDescription;
using vhost::Request;
using vhost::VringState;

class VhostMigration : public OneFrontEnd {
 public:
  GuestMemory& memory() { return session_->memory(); }
  bool set_log_base(const LogFile& log) {
    return fe().query(Request::kSetLogBase, bytes_of(log.description()), repeat(log.fd(), 1)).has_value();
  }
  bool set_logging(bool on) {
    vhost::VringAddr addresses = ring().vring_addr(0);
    addresses.flags = on ? vhost::kVringLogFlag : 0;
    addresses.log = ring().used_gpa();
    return fe().set_u64(Request::kSetFeatures, session_->features() | (on ? vhost::kFeatureLogAll : 0)) &&
           fe().set_vring_addr(addresses) && fe().fence();
  }
  // Reads of a page each that have reached the bdev and stay there; the pages that they will write.
  Pages hold_reads(int count, size_t region = kNext) {
    hold_io();
    Pages pages;
    const uint64_t header = memory().allocate(kMiddle, 16);
    memory().write(header, bytes_of(vhost::BlkRequestHeader{.type = 0}));
    for (int i = 0; i < count; i++) {
      const uint64_t data = memory().allocate(region, kPage, kPage);
      const uint64_t status = memory().allocate(kMiddle, kPage, kPage);
      ring().add_chain(
          std::vector<Segment>{{header, 16}, {data, static_cast<uint32_t>(kPage), true}, {status, 1, true}});
      pages = pages | pages_of(data, 1) | pages_of(status, 1);
    }
    ring().publish();
    ring().kick_always();
    wait_until_held(count);
    return pages;
  }
  void complete(int count) {
    for (int i = 0; i < count; i++) ASSERT_TRUE(ring().wait_used(kTimeoutMs, false)) << i << ring().violation();
  }
};

TEST_F(VhostMigration, RequestsInFlightAreLoggedOnceItIsSwitchedOn) {
  start();
  const Pages pages = hold_reads(40);
  const LogFile log;
  ASSERT_TRUE(set_log_base(log) && set_logging(true)) << session_->error();
  release_io();
  complete(40);
  EXPECT_THAT(log.marked(), IsSupersetOf(pages));
}

TEST_F(VhostMigration, RequestsInFlightAreNotLoggedOnceItIsSwitchedOff) {
  start();
  LogFile log;
  ASSERT_TRUE(set_log_base(log) && set_logging(true)) << session_->error();
  hold_reads(40);
  ASSERT_TRUE(set_logging(false)) << session_->error();
  log.clear();
  release_io();
  complete(40);
  EXPECT_THAT(log.marked(), IsEmpty());
}

TEST_F(VhostMigration, RequestsInFlightAreLoggedInTheLogThatIsThereWhenTheyEnd) {
  start();
  const LogFile first;
  const LogFile second;
  ASSERT_TRUE(set_log_base(first) && set_logging(true)) << session_->error();
  const Pages pages = hold_reads(40);
  ASSERT_TRUE(set_log_base(second)) << session_->error();
  const Pages before = first.marked();
  release_io();
  complete(40);
  EXPECT_EQ(first.marked(), before);
  EXPECT_THAT(second.marked(), IsSupersetOf(pages));
}

// The device may have written a part of it.
TEST_F(VhostMigration, ReadThatFailsIsLogged) {
  start();
  const LogFile log;
  ASSERT_TRUE(set_log_base(log) && set_logging(true)) << session_->error();
  const Pages pages = hold_reads(4);
  remove_bdev();
  release_io();
  complete(4);
  EXPECT_THAT(log.marked(), IsSupersetOf(pages));
}

TEST_F(VhostMigration, RequestIsLoggedAtTheAddressItHadAlsoIfItsMemoryHasGone) {
  start();
  const LogFile log;
  ASSERT_TRUE(set_log_base(log) && set_logging(true)) << session_->error();
  const Pages pages = hold_reads(4, kNext);
  ASSERT_EQ(fe().judge(Request::kRemMemReg, mem_reg_payload(memory().regions()[kNext])), Verdict::kAccepted);
  release_io();
  complete(4);
  EXPECT_THAT(log.marked(), IsSupersetOf(pages));
}

// A slow disk, 80 requests in flight, and other front ends that go on: the base comes when the last one is done, and
// with it all is in the log.
TEST_F(VhostMigration, GetVringBaseWaitsForManyRequestsAndNobodyElseForIt) {
  start({.num_queues = 2, .queue_size = 256});
  const LogFile log;
  ASSERT_TRUE(set_log_base(log) && set_logging(true)) << session_->error();
  const Pages pages = hold_reads(80);
  ASSERT_TRUE(fe().send(Request::kGetVringBase, bytes_of(VringState{0, 0})));
  Session other;
  ASSERT_TRUE(other.open_and_start(socket_path(1))) << other.error();
  for (int left = 80; left > 0; left -= 8) {
    EXPECT_EQ(held_io_count(), left);
    EXPECT_TRUE(fe().channel().stays_silent(5)) << left << " are in flight";
    expect_io_works(other, 0, static_cast<uint32_t>(left));
    release_oldest_io(8);
  }
  const auto reply = fe().receive();
  ASSERT_TRUE(reply && reply->as<VringState>());
  EXPECT_THAT(log.marked(), IsSupersetOf(pages));
  complete(80);
  EXPECT_EQ(reply->as<VringState>()->num, ring().base());
  EXPECT_EQ(ring().violation(), "");
  session_->set_base(0, reply->as<VringState>()->num);
  release_io();
  ASSERT_TRUE(session_->start_ring(0)) << session_->error();
  expect_io_works(*session_);
}

// What was saved from a larger disk would have the guest read beyond the end of this one.
TEST_F(VhostMigration, StateOfALargerDiskIsRefused) {
  resize_bdev(options().size_bytes * 2);
  std::array<int, 2> ends{};
  for (const unsigned controller : {1U, 0U}) {
    auto source = opened({.dialect = Dialect::kQemu9}, controller);
    ASSERT_FALSE(HasFailure());
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    const UniqueFd from(ends[0]);
    const UniqueFd to(ends[1]);
    ASSERT_TRUE(source->front_end().query(Request::kSetDeviceStateFd, bytes_of(vhost::DeviceStateTransfer{0, 0}),
                                          repeat(to.get(), 1)));
    ASSERT_EQ(source->front_end().get_u64(Request::kCheckDeviceState), 0U);
    source.reset();
    auto target = opened({.dialect = Dialect::kQemu9}, 1 - controller);
    ASSERT_FALSE(HasFailure());
    ASSERT_TRUE(target->front_end().query(Request::kSetDeviceStateFd, bytes_of(vhost::DeviceStateTransfer{1, 0}),
                                          repeat(from.get(), 1)));
    ::dup3(from.get(), to.get(), O_CLOEXEC);  // closes the end that is written to
    const auto result = target->front_end().get_u64(Request::kCheckDeviceState);
    ASSERT_TRUE(result) << target->error();
    EXPECT_EQ(*result == 0, controller == 1) << "from controller " << controller;
  }
}

// ---- The parts

TEST(DirtyLog, MarksWholeRangesAndNothingBeyondItsSize) {
  LogFile file;
  const UniqueFd fd(::dup(file.fd()));
  const auto log = DirtyLog::map(fd, LogDescription{4, 0});  // 32 pages
  ASSERT_TRUE(log);
  for (const auto& [address, length, expected] : {std::tuple{0UL, 1UL, pages_of(0, 1)},
                                                  {3 * kPage - 1, 2UL, pages_of(3 * kPage - 1, 2)},
                                                  {5 * kPage, 20 * kPage, pages_of(5 * kPage, 20 * kPage)},
                                                  {7 * kPage + 5, 0UL, Pages{}}}) {
    file.clear();
    (*log)->mark(address, length);
    EXPECT_EQ(file.marked(), expected) << address << ", " << length;
  }
  EXPECT_FALSE((*log)->overrun());
  file.clear();
  (*log)->mark(30 * kPage, 1 << 20);
  EXPECT_EQ(file.marked(), pages_of(30 * kPage, 2 * kPage));
  EXPECT_TRUE((*log)->overrun());
  for (const uint64_t address : {32 * kPage, ~uint64_t{0}, ~uint64_t{0} - kPage}) {
    file.clear();
    (*log)->mark(address, 3 * kPage);
    EXPECT_THAT(file.marked(), IsEmpty()) << address;
  }
}

TEST(DirtyLog, MemoryThatIsInTwoRegionsIsWrittenInBoth) {
  const GuestMemory memory;
  const UniqueFd fd(::dup(memory.fd()));
  vhost::MemoryRegion region = memory.regions()[kMiddle];
  const auto one = vhost::MemoryMap().with(region, fd, {});
  ASSERT_TRUE(one);
  region.guest_address = kPage << 20;
  region.user_address += kPage << 20;
  const auto two = one->with(region, fd, *one);
  ASSERT_TRUE(two);
  std::vector<iovec> pieces;
  ASSERT_TRUE(two->translate(region.guest_address + 100, 50, pieces));
  std::vector<std::pair<uint64_t, uint64_t>> places;
  two->for_each_guest_place(pieces.at(0).iov_base, 50,
                            [&](uint64_t at, uint64_t size) { places.emplace_back(at, size); });
  EXPECT_THAT(places,
              ::testing::UnorderedElementsAre(std::pair(memory.regions()[kMiddle].guest_address + 100, uint64_t{50}),
                                              std::pair(region.guest_address + 100, uint64_t{50})));
}

TEST(DeviceState, IsReadAsItWasWrittenAndNotIfAnyOtherByteDiffers) {
  const vhost::DeviceState state{
      .capacity = 0x1122'3344'5566, .block_size = 4096, .readonly = true, .writeback = false};
  const auto bytes = encode(state);
  const auto back = vhost::decode(bytes);
  ASSERT_TRUE(back);
  EXPECT_EQ(back->capacity, state.capacity);
  EXPECT_EQ(back->block_size, state.block_size);
  EXPECT_EQ(back->readonly, state.readonly);
  EXPECT_EQ(back->writeback, state.writeback);
  for (size_t i = 0; i < bytes.size(); i++) {
    auto other = bytes;
    other[i] ^= std::byte{0x80};
    const bool is_a_value = i >= 12 && i < 24;  // any block size and capacity can be
    EXPECT_EQ(vhost::decode(other).has_value(), is_a_value) << "byte " << i;
  }
  for (size_t size = 0; size < bytes.size(); size++) EXPECT_FALSE(vhost::decode(std::span(bytes).first(size))) << size;
}

}  // namespace
}  // namespace sluice::test
