// Guest memory: two address spaces, tables, slots, and changes while rings run.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "app/conformance/memory_fixture.h"

namespace sluice::test {
namespace {

using vhost::BlkStatus;
using vhost::MemoryRegion;
using vhost::Request;

// "Memory access": descriptors hold guest addresses, SET_VRING_ADDR holds user addresses. Here each region's user
// address is another region's guest address.
CASE(VhostMemory, KeepsGuestAndUserAddressesApart, "vhost-user, Memory access") {
  open({.layout = {{.guest_address = 1 * kMiB, .size = kMiB, .user_address = 4 * kMiB, .mmap_offset = 0},
                   {.guest_address = 2 * kMiB, .size = kMiB, .user_address = 1 * kMiB, .mmap_offset = kMiB},
                   {.guest_address = 4 * kMiB, .size = kMiB, .user_address = 2 * kMiB, .mmap_offset = 2 * kMiB}}});
  ASSERT_EQ(table(memory().regions()), Verdict::kAccepted);
  start_ring();
  for (uint32_t i = 0; i < 5; i++) expect_io_works(*session_, 0, i);
}

// Regions that touch in guest addresses are one piece of memory to the guest, however they are mapped.
CASE(VhostMemory, BuffersMayCrossAdjacentRegions, "vhost-user, Memory access") {
  open();
  ASSERT_EQ(table(memory().regions()), Verdict::kAccepted);
  start_ring();
  uint64_t border = memory().regions()[kNext].guest_address;
  Bytes data = pattern(8192, 3);
  ASSERT_EQ(session_->blk().write(0, data), BlkStatus::kOk);
  for (uint64_t before : {uint64_t{4096}, uint64_t{512}, uint64_t{1}, uint64_t{8191}}) {
    memory().write(border - before, Bytes(data.size(), kUntouched));
    ASSERT_EQ(read_into(border - before, 8192), BlkStatus::kOk) << before;
    EXPECT_TRUE(memory().read(border - before, data.size()) == data) << before;
  }
}

// A request's header, too.
CASE(VhostMemory, HeadersMayCrossAdjacentRegions, "vhost-user, Memory access") {
  open();
  ASSERT_EQ(table(memory().regions()), Verdict::kAccepted);
  start_ring();
  uint64_t header = memory().regions()[kNext].guest_address - 5;
  uint64_t answer = memory().allocate(kHigh, 513);
  memory().write(header, bytes_of(vhost::BlkRequestHeader{.type = 0, .sector = 1}));
  ring().add_chain(std::vector<Segment>{{header, 16}, {answer, 513, true}});
  ring().publish();
  ring().kick_always();
  ASSERT_TRUE(ring().wait_used());
  EXPECT_EQ(memory().read(answer + 512, 1)[0], 0);
}

// "VHOST_USER_SET_MEM_TABLE" while rings run: firmware that remaps low memory makes QEMU send it.
CASE(VhostMemory, TableMayBeReplacedWhileRingsRun,
     "vhost-user, Ring states: configuration may change on the fly; VHOST_USER_SET_MEM_TABLE") {
  open();
  ASSERT_EQ(table(memory().regions()), Verdict::kAccepted);
  start_ring();
  auto regions = memory().regions();
  auto without_low = std::vector<MemoryRegion>(regions.begin() + 1, regions.end());
  for (uint32_t i = 0; i < 10; i++) {
    ASSERT_EQ(table(i % 2 == 0 ? std::span<const MemoryRegion>(without_low) : regions), Verdict::kAccepted);
    expect_io_works(*session_, 0, i);
  }
}

// The same, with requests on their way.
CASE(VhostMemory, TableMayBeReplacedWithRequestsInFlight,
     "vhost-user, Ring states: configuration may change on the fly; VHOST_USER_SET_MEM_TABLE") {
  open();
  ASSERT_EQ(table(memory().regions()), Verdict::kAccepted);
  start_ring();
  Bytes data = pattern(4096, 9);
  ASSERT_EQ(session_->blk().write(8, data), BlkStatus::kOk);
  for (int round = 0; round < 30; round++) {
    for (int i = 0; i < 16; i++) session_->blk().add(read_request(8, 4096));
    ring().publish();
    ring().kick();
    ASSERT_TRUE(fe().set_mem_table(memory()));
    for (int i = 0; i < 16; i++) {
      auto outcome = session_->blk().complete();
      ASSERT_TRUE(outcome) << "round " << round << ring().violation();
      EXPECT_EQ(outcome->status(), BlkStatus::kOk);
      EXPECT_TRUE(outcome->data() == data);
    }
  }
}

// A table that moves the ring's region in user addresses: the addresses that were set are the old ones until set again.
CASE(VhostMemory, RingMovesWithNewUserAddresses, "vhost-user, VHOST_USER_SET_VRING_ADDR; Memory access") {
  open();
  ASSERT_EQ(table(memory().regions()), Verdict::kAccepted);
  start_ring();
  expect_io_works(*session_);
  ASSERT_TRUE(session_->stop_ring(0)) << session_->error();
  auto moved = memory().regions();
  for (auto& region : moved) region.user_address += 0x10'0000'0000;
  ASSERT_EQ(table(moved), Verdict::kAccepted);
  vhost::VringAddr addr = ring().vring_addr(0);
  for (auto field : {&vhost::VringAddr::desc, &vhost::VringAddr::avail, &vhost::VringAddr::used})
    addr.*field += 0x10'0000'0000;
  ASSERT_TRUE(fe().set_vring_num(0, ring().size()));
  ASSERT_TRUE(fe().set_vring_base(0, session_->base()));
  ASSERT_TRUE(fe().set_vring_addr(addr));
  ASSERT_TRUE(session_->connect_ring(0));
  expect_io_works(*session_);
}

CASE(VhostMemory, SameTableAgainIsHarmless, "vhost-user, VHOST_USER_SET_MEM_TABLE") {
  open();
  ASSERT_EQ(table(memory().regions()), Verdict::kAccepted);
  start_ring();
  for (uint32_t i = 0; i < 100; i++) {
    ASSERT_EQ(table(memory().regions()), Verdict::kAccepted);
    if (i % 10 == 0) expect_io_works(*session_, 0, i);
  }
}

// User-Mode Linux sends its structure of two regions with one region in it.
CASE(VhostMemory, IgnoresBytesAfterTheLastRegion,
     "practice: vhost-user, Multiple memory regions description: User-Mode Linux sends room for two") {
  open({.layout = {{.guest_address = 0, .size = 8 * kMiB, .user_address = 0x6000'0000, .mmap_offset = 0}}});
  Bytes payload = mem_table_payload(memory().regions());
  payload.resize(72, 0xee);
  EXPECT_EQ(fe().judge(Request::kSetMemTable, payload, repeat(memory().fd(), 1)), Verdict::kAccepted);
  start_ring();
  expect_io_works(*session_);
}

// ---- "VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS"

// Cloud Hypervisor sends up to 32 regions in its first table once slots are agreed on.
CASE(VhostMemory, TakesATableOf32RegionsWithMemorySlots,
     "practice: vhost-user, VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS: Cloud Hypervisor sends so many at once") {
  open({.layout = GuestMemory::many_regions(vhost::kMaxRegions, kMiB)});
  SKIP_UNLESS(session_->has_protocol(vhost::kProtocolConfigureMemSlots));
  ASSERT_EQ(table(memory().regions()), Verdict::kAccepted);
  start_ring();
  for (const auto& region : memory().regions())
    EXPECT_EQ(read_into(region.guest_address + region.size - 512, 512), BlkStatus::kOk);
}

CASE(VhostMemory, TakesATableOfEightRegionsWithoutMemorySlots,
     "vhost-user, Multiple memory regions description: eight regions") {
  open({.leave_protocol = vhost::kProtocolConfigureMemSlots, .layout = GuestMemory::many_regions(8, kMiB)});
  ASSERT_EQ(table(memory().regions()), Verdict::kAccepted);
  start_ring();
  expect_io_works(*session_);
}

CASE(VhostMemory, RefusesATableThatIsTooLong,
     "practice: a front end that breaks vhost-user, Multiple memory regions description") {
  open({.layout = GuestMemory::many_regions(64, kMiB)});
  auto regions = std::span(memory().regions());
  Bytes payload = mem_table_payload(regions.first(33));
  Verdict verdict = fe().judge(Request::kSetMemTable, payload, repeat(memory().fd(), 33));
  EXPECT_TRUE(verdict == Verdict::kRefused || verdict == Verdict::kClosed) << to_string(verdict);
  session_->close();
  // A number of regions that the payload cannot hold.
  for (uint32_t count : {2U, 9U, 33U, 0x8000'0000U, 0xffff'ffffU}) {
    open();
    payload = mem_table_payload(std::span(memory().regions()).first(1));
    std::memcpy(payload.data(), &count, sizeof(count));
    verdict = fe().judge(Request::kSetMemTable, payload, repeat(memory().fd(), 1));
    EXPECT_TRUE(verdict == Verdict::kRefused || verdict == Verdict::kClosed) << count << ": " << to_string(verdict);
    session_->close();
  }
  expect_target_alive();
}

CASE(VhostMemory, TakesAsManySlotsAsItOffers, "vhost-user, VHOST_USER_GET_MAX_MEM_SLOTS") {
  open({.layout = GuestMemory::many_regions(vhost::kMaxMemSlots + 1, 64 << 10)});
  SKIP_UNLESS(session_->has_protocol(vhost::kProtocolConfigureMemSlots));
  auto slots = fe().get_u64(Request::kGetMaxMemSlots);
  ASSERT_TRUE(slots) << session_->error();
  EXPECT_GE(*slots, 32U);
  auto regions = std::span(memory().regions());
  size_t count = std::min<size_t>(*slots, regions.size() - 1);
  // The ring's region, which is the last, is one of them.
  for (size_t i = regions.size() - count; i < regions.size(); i++) ASSERT_EQ(add(regions[i]), Verdict::kAccepted) << i;
  start_ring();
  for (size_t i = regions.size() - count; i < regions.size(); i += 7)
    EXPECT_EQ(read_into(regions[i].guest_address, 512), BlkStatus::kOk) << i;
}

CASE(VhostMemory, RefusesMoreSlotsThanItOffers,
     "practice: a front end that breaks vhost-user, VHOST_USER_GET_MAX_MEM_SLOTS") {
  open({.layout = GuestMemory::many_regions(vhost::kMaxMemSlots + 1, 64 << 10)});
  SKIP_UNLESS(session_->has_protocol(vhost::kProtocolConfigureMemSlots));
  auto slots = fe().get_u64(Request::kGetMaxMemSlots);
  ASSERT_TRUE(slots) << session_->error();
  auto regions = std::span(memory().regions());
  if (*slots >= regions.size()) GTEST_SKIP() << "the target has more slots than a guest can have";
  for (size_t i = 0; i < *slots; i++) ASSERT_EQ(add(regions[i]), Verdict::kAccepted) << i;
  EXPECT_NE(add(regions[*slots]), Verdict::kAccepted);
}

// "VHOST_USER_REM_MEM_REG": the guest's hot-unplugged memory is no longer reached, the rest is.
CASE(VhostMemory, RegionsMayBeAddedAndRemovedWhileRingsRun,
     "vhost-user, VHOST_USER_ADD_MEM_REG; VHOST_USER_REM_MEM_REG") {
  open({.num_queues = 2});
  SKIP_UNLESS(session_->has_protocol(vhost::kProtocolConfigureMemSlots));
  const auto& regions = memory().regions();
  ASSERT_EQ(add(regions[kHigh]), Verdict::kAccepted);
  start_ring();
  for (int round = 0; round < 5; round++) {
    ASSERT_EQ(add(regions[kMiddle]), Verdict::kAccepted);
    EXPECT_EQ(read_into(regions[kMiddle].guest_address + 4096, 4096), BlkStatus::kOk);
    ASSERT_EQ(remove(regions[kMiddle]), Verdict::kAccepted);
    EXPECT_EQ(read_into(regions[kHigh].guest_address + 4 * kMiB, 4096), BlkStatus::kOk);
  }
  EXPECT_NE(read_into(regions[kMiddle].guest_address, 512, kQuietMs), BlkStatus::kOk);
}

// The same: named by guest address, user address and size; the offset is ignored, a descriptor is closed unused.
CASE(VhostMemory, RemovalIgnoresTheOffsetAndClosesADescriptor,
     "vhost-user, VHOST_USER_REM_MEM_REG: the mmap offset is ignored, a descriptor is closed") {
  open();
  SKIP_UNLESS(session_->has_protocol(vhost::kProtocolConfigureMemSlots));
  MemoryRegion region = memory().regions()[kMiddle];
  ASSERT_EQ(add(region), Verdict::kAccepted);
  ASSERT_EQ(add(memory().regions()[kHigh]), Verdict::kAccepted);
  region.mmap_offset = 0x1234'5000;
  FdProbe probe;
  EXPECT_EQ(fe().judge(Request::kRemMemReg, mem_reg_payload(region), repeat(probe.fd(), 1)), Verdict::kAccepted);
  probe.forget();
  EXPECT_TRUE(probe.closed_by_peer());
}

CASE(VhostMemory, RefusesToRemoveWhatIsNotThere,
     "practice: a front end that breaks vhost-user, VHOST_USER_REM_MEM_REG") {
  for (int field = 0; field < 3; field++) {
    open();
    SKIP_UNLESS(session_->has_protocol(vhost::kProtocolConfigureMemSlots));
    MemoryRegion region = memory().regions()[kMiddle];
    ASSERT_EQ(add(region), Verdict::kAccepted);
    (field == 0 ? region.guest_address : field == 1 ? region.size : region.user_address) += 4096;
    EXPECT_NE(remove(region), Verdict::kAccepted) << field;
    session_->close();
  }
  open();
  ASSERT_EQ(add(memory().regions()[kMiddle]), Verdict::kAccepted);
  ASSERT_EQ(remove(memory().regions()[kMiddle]), Verdict::kAccepted);
  EXPECT_NE(remove(memory().regions()[kMiddle]), Verdict::kAccepted) << "removed already";
  session_->close();
  expect_target_alive();
}

// Removing the region that holds a running ring stops that ring, at most; nothing else happens.
CASE(VhostMemory, RemovingTheRingsOwnMemoryCostsOnlyThatRing, "practice: a front end that takes a running ring away") {
  open();
  SKIP_UNLESS(session_->has_protocol(vhost::kProtocolConfigureMemSlots));
  for (const auto& region : memory().regions()) ASSERT_EQ(add(region), Verdict::kAccepted);
  start_ring();
  expect_io_works(*session_);
  remove(memory().regions()[kHigh]);
  session_->blk().submit(read_request(0, 512));
  ring().kick_always();
  ::usleep(kQuietMs * 1000);
  EXPECT_TRUE(fe().fence()) << session_->error();
  // Given back, the ring can be started again.
  if (fe().get_vring_base(0)) {
    EXPECT_EQ(add(memory().regions()[kHigh]), Verdict::kAccepted);
    session_->renew_ring();
    start_ring();
    expect_io_works(*session_);
  }
}

// ---- Regions that cannot be

CASE(VhostMemory, RefusesImpossibleRegions, "practice: a front end that breaks vhost-user, Memory region description") {
  auto base = GuestMemory::default_layout();
  const MemoryRegion good = base[kMiddle];
  struct Case {
    const char* what;
    MemoryRegion region;
  };
  auto with = [&](auto change) {
    MemoryRegion region = good;
    change(region);
    return region;
  };
  const Case cases[] = {
      {"empty", with([](auto& r) { r.size = 0; })},
      {"guest address wraps", with([](auto& r) { r.guest_address = ~uint64_t{0} - 4095; })},
      {"user address wraps", with([](auto& r) { r.user_address = ~uint64_t{0} - 4095; })},
      {"beyond the end of the file", with([](auto& r) { r.mmap_offset = 1 << 30; })},
      {"over the end of the file", with([](auto& r) { r.size = 1 << 30; })},
      {"offset plus size wraps", with([](auto& r) { r.mmap_offset = ~uint64_t{0} - 4095; })},
      {"guest addresses overlap",
       with([&](auto& r) { r.guest_address = base[kHigh].guest_address + base[kHigh].size - 4096; })},
      {"user addresses overlap", with([&](auto& r) { r.user_address = base[kHigh].user_address + 4096; })},
  };
  for (const auto& one : cases) {
    open();
    EXPECT_NE(table(std::vector<MemoryRegion>{base[kHigh], one.region}), Verdict::kAccepted) << one.what;
    if (fe().fence() && session_->has_protocol(vhost::kProtocolConfigureMemSlots)) {
      EXPECT_EQ(add(base[kHigh]), Verdict::kAccepted) << one.what;
      EXPECT_NE(add(one.region), Verdict::kAccepted) << one.what << ", added";
    }
    session_->close();
  }
  expect_target_alive();
}

// A descriptor that is no memory.
CASE(VhostMemory, RefusesMemoryThatCannotBeMapped,
     "practice: a front end that breaks vhost-user, VHOST_USER_SET_MEM_TABLE") {
  UniqueFd event(::eventfd(0, EFD_NONBLOCK));
  FdProbe pipe;
  for (int fd : {event.get(), pipe.fd()}) {
    open();
    MemoryRegion region = memory().regions()[kMiddle];
    EXPECT_NE(fe().judge(Request::kSetMemTable, mem_table_payload(std::span(&region, 1)), repeat(fd, 1)),
              Verdict::kAccepted);
    session_->close();
  }
  pipe.forget();
  EXPECT_TRUE(pipe.closed_by_peer());
  expect_target_alive();
}

// A refused table leaves the one before it in force.
CASE(VhostMemory, RefusedTableChangesNothing,
     "practice: a front end that breaks vhost-user, VHOST_USER_SET_MEM_TABLE") {
  open();
  ASSERT_EQ(table(memory().regions()), Verdict::kAccepted);
  start_ring();
  auto bad = memory().regions();
  bad[kMiddle].mmap_offset = 1 << 30;
  Verdict verdict = table(bad);
  EXPECT_NE(verdict, Verdict::kAccepted);
  if (verdict == Verdict::kRefused) expect_io_works(*session_);
}

// A front end that has gone takes its memory along. The kernel refuses this seal as long as a writable mapping is left.
CASE(VhostMemory, UnmapsTheMemoryWhenTheFrontEndIsGone, "practice: the memory of a guest is its own") {
  open();
  ASSERT_EQ(table(memory().regions()), Verdict::kAccepted);
  start_ring();
  expect_io_works(*session_);
  UniqueFd file(::fcntl(memory().fd(), F_DUPFD_CLOEXEC, 0));
  session_.reset();
  Deadline deadline(kTimeoutMs);
  bool unmapped = false;
  while (!unmapped && !deadline.passed()) {
    unmapped = ::fcntl(file.get(), F_ADD_SEALS, F_SEAL_WRITE) == 0;
    if (!unmapped) ::usleep(1000);
  }
  EXPECT_TRUE(unmapped);
}

}  // namespace
}  // namespace sluice::test
