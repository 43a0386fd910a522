// Moving a guest to another host: the log of the pages that the back end writes meanwhile.
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "app/conformance/log_file.h"
#include "app/conformance/target_fixture.h"

namespace sluice::test {
namespace {

using ::testing::IsEmpty;
using ::testing::IsSubsetOf;
using ::testing::IsSupersetOf;
using ::testing::Not;
using vhost::LogDescription;
using vhost::Request;

// Between two regions: no guest memory at all.
constexpr uint64_t kElsewhere = 0x8000'0000;

class VhostDirtyLog : public TargetFixture {
 public:
  void SetUp() override {
    TargetFixture::SetUp();
    if (!IsSkipped()) open();
  }
  void open(SessionOptions options = {}) {
    session_.reset();
    session_ = running(std::move(options));
    ASSERT_FALSE(HasFailure());
    SKIP_UNLESS(session_->has_protocol(vhost::kProtocolLogShmfd));
    SKIP_UNLESS((session_->offered() & vhost::kFeatureLogAll) != 0);
  }
  FrontEnd& fe() { return session_->front_end(); }
  RingDriver& ring() { return session_->ring(); }
  BlkDriver& blk() { return session_->blk(); }
  GuestMemory& memory() { return session_->memory(); }
  bool packed() const { return session_->has(vhost::kFeatureRingPacked); }

  // Answered even without need_reply.
  bool set_log_base(const LogFile& log) {
    return fe().query(Request::kSetLogBase, bytes_of(log.description()), repeat(log.fd(), 1)).has_value();
  }
  bool set_logging(bool on) {
    return fe().set_u64(Request::kSetFeatures, session_->features() | (on ? vhost::kFeatureLogAll : 0)) && fe().fence();
  }
  bool log_used_ring(bool on, uint64_t at) {
    vhost::VringAddr addr = ring().vring_addr(0);
    addr.flags = on ? vhost::kVringLogFlag : 0;
    addr.log = at;
    return fe().set_vring_addr(addr) && fe().fence();
  }
  // As QEMU and Cloud Hypervisor begin.
  void start_logging(const LogFile& log) {
    ASSERT_TRUE(set_log_base(log)) << session_->error();
    ASSERT_TRUE(set_logging(true)) << session_->error();
    ASSERT_TRUE(log_used_ring(true, ring().used_gpa())) << session_->error();
  }
  // Where the device may write whatever the requests are.
  Pages ring_pages() {
    const Pages used = pages_of(ring().used_gpa(), vhost::split_used_bytes(ring().size()));
    return packed() ? used | pages_of(ring().desc_gpa(), ring().size() * sizeof(vhost::PackedDesc)) : used;
  }
  // One request of these descriptors, whose header is in a page of its own.
  void run(vhost::BlkRequestType type, std::vector<Segment> segments, const Bytes& data = {}) {
    const uint64_t header = memory().allocate(kMiddle, kPage, kPage);
    memory().write(header, bytes_of(vhost::BlkRequestHeader{.type = static_cast<uint32_t>(type)}) + data);
    segments.insert(segments.begin(), {header, static_cast<uint32_t>(16 + data.size())});
    ring().add_chain(segments);
    ring().publish();
    ring().kick_always();
    ASSERT_TRUE(ring().wait_used()) << ring().violation();
    ASSERT_EQ(memory().read(segments.back().gpa + segments.back().len - 1, 1)[0], 0) << "the request failed";
  }
  // Reads of a page each, into pages of their own, made available but not waited for.
  std::vector<uint64_t> submit_reads(int count) {
    std::vector<uint64_t> data;
    const uint64_t header = memory().allocate(kMiddle, 16);
    memory().write(header, bytes_of(vhost::BlkRequestHeader{.type = 0}));
    for (int i = 0; i < count; i++) {
      data.push_back(memory().allocate(kNext, kPage, kPage));
      const uint64_t status = memory().allocate(kHigh, 1);
      heads_[ring().add_chain(std::vector<Segment>{
          {header, 16}, {data.back(), static_cast<uint32_t>(kPage), true}, {status, 1, true}})] = data.back();
    }
    ring().publish();
    ring().kick_always();
    return data;
  }
  // The pages of `count` of them, in the order in which they are completed.
  std::vector<uint64_t> complete(size_t count) {
    std::vector<uint64_t> data;
    while (data.size() < count) {
      const auto used = ring().wait_used(kTimeoutMs, false);
      if (!used) {
        ADD_FAILURE() << data.size() << " of " << count << " completed; " << ring().violation();
        break;
      }
      data.push_back(heads_[static_cast<uint16_t>(used->id)]);
    }
    return data;
  }

 protected:
  std::unique_ptr<Session> session_;
  std::map<uint16_t, uint64_t> heads_;
};

// "VHOST_USER_SET_FEATURES" with LOG_ALL on a running ring changes logging and nothing else.
CASE(VhostDirtyLog, StartsAndEndsWithoutDisturbingTheRing,
     "vhost-user, Migration; Ring states: configuration may change on the fly") {
  const LogFile log;
  for (uint32_t i = 0; i < 3; i++) {
    start_logging(log);
    expect_io_works(*session_, 0, i);
    ASSERT_TRUE(set_logging(false));
    ASSERT_TRUE(log_used_ring(false, 0));
    expect_io_works(*session_, 0, i + 10);
  }
}

CASE(VhostDirtyLog, SetLogBaseIsAnsweredOnceInAnyCase,
     "vhost-user, Communication: VHOST_USER_SET_LOG_BASE has a reply if LOG_SHMFD is negotiated") {
  const LogFile log;
  for (uint32_t flags : {vhost::kVersion, vhost::kVersion | vhost::kNeedReplyFlag}) {
    ASSERT_TRUE(fe().query(Request::kSetLogBase, bytes_of(log.description()), repeat(log.fd(), 1), flags))
        << session_->error();
    EXPECT_TRUE(fe().channel().stays_silent());
  }
}

CASE(VhostDirtyLog, AcceptsAnEventfdForTheLog, "vhost-user, VHOST_USER_SET_LOG_FD") {
  SKIP_UNLESS(session_->has_protocol(vhost::kProtocolReplyAck));
  const UniqueFd eventfd(::eventfd(0, EFD_CLOEXEC));
  EXPECT_EQ(fe().judge(Request::kSetLogFd, {}, repeat(eventfd.get(), 1)), Verdict::kAccepted);
  expect_io_works(*session_);
}

// The pages of data, status byte and used ring are marked; pages that are only read are not.
CASE(VhostDirtyLog, MarksTheWrittenPagesOnly, "vhost-user, Migration: all modifications are marked") {
  const LogFile log;
  start_logging(log);
  const uint64_t data = memory().allocate(kMiddle, 3 * kPage, kPage);
  const uint64_t status = memory().allocate(kHigh, kPage, kPage);
  run(vhost::BlkRequestType::kIn, {{data + 4000, 4608, true}, {status, 1, true}});
  const Pages expected = pages_of(data, 3 * kPage) | pages_of(status, 1);
  EXPECT_THAT(log.marked(), IsSupersetOf(expected | pages_of(packed() ? ring().desc_gpa() : ring().used_gpa(), 1)));
  EXPECT_THAT(log.marked(), IsSubsetOf(expected | ring_pages()));
}

CASE(VhostDirtyLog, MarksEachDescriptorOfARequest, "vhost-user, Migration: all modifications are marked") {
  const LogFile log;
  start_logging(log);
  std::vector<Segment> segments;
  Pages expected;
  for (uint64_t i = 0; i < 8; i++) {
    const uint64_t gpa = memory().allocate(i % 2 == 0 ? kMiddle : kNext, 3 * kPage, kPage) + kPage + 512 * i;
    segments.push_back({gpa, 512, true});
    expected = expected | pages_of(gpa, 512);
  }
  const uint64_t last = memory().allocate(kHigh, 2 * kPage, kPage) + kPage - 512;
  segments.push_back({last, 513, true});  // the status byte is the first of a page
  run(vhost::BlkRequestType::kIn, segments);
  expected = expected | pages_of(last, 513);
  EXPECT_THAT(log.marked(), IsSupersetOf(expected));
  EXPECT_THAT(log.marked(), IsSubsetOf(expected | ring_pages()));
}

CASE(VhostDirtyLog, MarksABufferThatCrossesRegions,
     "vhost-user, Migration: by guest physical address; Memory access: adjacent regions") {
  const LogFile log;
  start_logging(log);
  const uint64_t seam = memory().regions()[kNext].guest_address;
  const uint64_t status = memory().allocate(kHigh, kPage, kPage);
  run(vhost::BlkRequestType::kIn, {{seam - 5000, 8192, true}, {status, 1, true}});
  const Pages expected = pages_of(seam - 5000, 8192) | pages_of(status, 1);
  EXPECT_THAT(log.marked(), IsSupersetOf(expected));
  EXPECT_THAT(log.marked(), IsSubsetOf(expected | ring_pages()));
}

CASE(VhostDirtyLog, MarksOnlyTheStatusOfAWrite, "vhost-user, Migration: all modifications are marked, and no more") {
  const LogFile log;
  start_logging(log);
  const uint64_t status = memory().allocate(kHigh, kPage, kPage);
  run(vhost::BlkRequestType::kOut, {{status, 1, true}}, Bytes(1024));
  run(vhost::BlkRequestType::kFlush, {{status + 1, 1, true}});
  EXPECT_TRUE(log.marked(status));
  EXPECT_THAT(log.marked(), IsSubsetOf(pages_of(status, 1) | ring_pages()));
}

CASE(VhostDirtyLog, MarksWhatGetIdWrites, "vhost-user, Migration: all modifications are marked, and no more") {
  const LogFile log;
  start_logging(log);
  const uint64_t id = memory().allocate(kMiddle, 2 * kPage, kPage) + kPage - 4;
  const uint64_t status = memory().allocate(kHigh, kPage, kPage);
  run(vhost::BlkRequestType::kGetId, {{id, vhost::kBlkIdSize, true}, {status, 1, true}});
  const Pages expected = pages_of(id, vhost::kBlkIdSize) | pages_of(status, 1);
  EXPECT_THAT(log.marked(), IsSupersetOf(expected));
  EXPECT_THAT(log.marked(), IsSubsetOf(expected | ring_pages()));
}

// The used ring is marked where SET_VRING_ADDR says, which need not be where it is; and only if it says so.
CASE(VhostDirtyLog, MarksTheUsedRingAtItsLogAddressAndOnlyIfAsked,
     "vhost-user, Migration: log_guest_addr, VHOST_VRING_F_LOG") {
  LogFile log;
  ASSERT_TRUE(set_log_base(log) && set_logging(true)) << session_->error();
  const uint64_t status = memory().allocate(kMiddle, kPage, kPage);
  run(vhost::BlkRequestType::kFlush, {{status, 1, true}});
  EXPECT_THAT(log.marked(), IsSubsetOf(pages_of(status, 1))) << "without the flag";
  ASSERT_TRUE(log_used_ring(true, kElsewhere));
  // Of a packed ring only the device's event structure has an address to be logged at: it is written before the device
  // waits for a kick, so not with each request.
  for (int i = 0; i < 2; i++) run(vhost::BlkRequestType::kFlush, {{status, 1, true}});
  if (packed()) {
    EXPECT_TRUE(log.marked(ring().desc_gpa()));
  } else {
    EXPECT_TRUE(log.marked(kElsewhere));
    EXPECT_FALSE(log.marked(ring().used_gpa()));
  }
  ASSERT_TRUE(log_used_ring(false, kElsewhere));
  log.clear();
  run(vhost::BlkRequestType::kFlush, {{status, 1, true}});
  EXPECT_THAT(log.marked(), IsSubsetOf(pages_of(status, 1))) << "without the flag, again";
}

// A used ring of three pages: the entry's page and the index's, and where the device says when to be kicked.
CASE(VhostDirtyLog, MarksTheEntryAndTheIndexOfALargeUsedRing, "vhost-user, Migration: log_guest_addr") {
  for (const uint16_t index : {uint16_t{5}, uint16_t{700}, uint16_t{1023}}) {
    LogFile log;
    open({.queue_size = 1024, .leave_features = vhost::kFeatureRingPacked, .start_index = index});
    if (IsSkipped() || HasFailure()) return;
    ASSERT_TRUE(set_log_base(log) && set_logging(true) && log_used_ring(true, kElsewhere)) << session_->error();
    log.clear();
    const uint64_t status = memory().allocate(kMiddle, kPage, kPage);
    run(vhost::BlkRequestType::kFlush, {{status, 1, true}});
    const Pages entry = pages_of(kElsewhere + sizeof(vhost::SplitUsed) + index * sizeof(vhost::SplitUsedElem), 8);
    const Pages expected = pages_of(status, 1) | pages_of(kElsewhere, 4) | entry;
    EXPECT_THAT(log.marked(), IsSupersetOf(expected)) << "entry " << index;
    EXPECT_THAT(log.marked(), IsSubsetOf(expected | pages_of(kElsewhere + vhost::split_avail_event_offset(1024), 2)))
        << "entry " << index;
  }
}

CASE(VhostDirtyLog, MarksTheUsedDescriptorOfALargePackedRing,
     "vhost-user, Migration; virtio 1.2, 2.8.6: the device writes used descriptors into the ring") {
  for (const uint16_t index : {uint16_t{0}, uint16_t{300}, uint16_t{767}}) {
    const LogFile log;
    open({.queue_size = 1024, .start_index = index});
    if (IsSkipped() || HasFailure()) return;
    SKIP_UNLESS(session_->has(vhost::kFeatureRingPacked));
    start_logging(log);
    const uint64_t status = memory().allocate(kMiddle, kPage, kPage);
    run(vhost::BlkRequestType::kFlush, {{status, 1, true}});
    const Pages expected = pages_of(status, 1) |
                           pages_of(ring().desc_gpa() + index * sizeof(vhost::PackedDesc), sizeof(vhost::PackedDesc));
    EXPECT_THAT(log.marked(), IsSupersetOf(expected)) << "descriptor " << index;
    EXPECT_THAT(log.marked(), IsSubsetOf(expected | pages_of(ring().used_gpa(), sizeof(vhost::PackedEvent))))
        << "descriptor " << index;
  }
}

CASE(VhostDirtyLog, MarksNothingUnlessAsked, "vhost-user, Migration: VHOST_F_LOG_ALL") {
  LogFile log;
  ASSERT_TRUE(set_log_base(log)) << session_->error();
  ASSERT_TRUE(log_used_ring(true, ring().used_gpa()));
  expect_io_works(*session_);
  EXPECT_THAT(log.marked(), IsEmpty());
  start_logging(log);
  expect_io_works(*session_);
  EXPECT_THAT(log.marked(), Not(IsEmpty()));
  ASSERT_TRUE(set_logging(false));
  log.clear();
  expect_io_works(*session_);
  EXPECT_THAT(log.marked(), IsEmpty()) << "after the end";
}

// Whatever is completed once the feature is acknowledged is marked, also if it was taken before.
CASE(VhostDirtyLog, LosesNothingWhenSwitchedUnderLoad, "vhost-user, Migration: logging starts on the fly") {
  LogFile log;
  ASSERT_TRUE(set_log_base(log)) << session_->error();
  const auto mark = memory().mark();
  for (int round = 0; round < 50 && !HasFailure(); round++) {
    memory().release(mark);
    submit_reads(32);
    ASSERT_TRUE(set_logging(true)) << session_->error();
    const auto before = static_cast<uint16_t>(ring().used_idx() - ring().used_taken());
    const std::vector<uint64_t> done = complete(32);
    for (size_t i = before; i < done.size(); i++)
      EXPECT_TRUE(log.marked(done[i])) << "round " << round << ", " << i << " was completed after " << before;
    ASSERT_TRUE(set_logging(false)) << session_->error();
    log.clear();
  }
}

// Cloud Hypervisor reads the old log once the new one is acknowledged.
CASE(VhostDirtyLog, LosesNothingWhenTheLogIsReplacedUnderLoad,
     "practice: vhost-user, VHOST_USER_SET_LOG_BASE: Cloud Hypervisor replaces the log each time it reads it") {
  const auto mark = memory().mark();
  std::unique_ptr<LogFile> old;
  for (int round = 0; round < 50 && !HasFailure(); round++) {
    memory().release(mark);
    auto log = std::make_unique<LogFile>();
    if (old == nullptr) {
      start_logging(*log);
      old = std::move(log);
      continue;
    }
    const std::vector<uint64_t> data = submit_reads(32);
    ASSERT_TRUE(set_log_base(*log)) << session_->error();
    const Pages read = old->marked();
    complete(data.size());
    EXPECT_EQ(old->marked(), read) << "round " << round << ": marked in the old log";
    for (const uint64_t page : data)
      EXPECT_TRUE(read.contains(page / kPage) || log->marked(page)) << "round " << round << ": page " << page / kPage;
    old = std::move(log);
  }
}

CASE(VhostDirtyLog, LogMayBeginAnywhereInItsFile, "vhost-user, Log description: mmap offset") {
  for (const size_t offset : {size_t{4096}, size_t{100}, size_t{12'345}}) {
    const LogFile log(offset);
    start_logging(log);
    const uint64_t data = memory().allocate(kMiddle, kPage, kPage);
    const uint64_t status = memory().allocate(kHigh, kPage, kPage);
    run(vhost::BlkRequestType::kIn, {{data, 512, true}, {status, 1, true}});
    const Pages expected = pages_of(data, 1) | pages_of(status, 1);
    EXPECT_THAT(log.marked(), IsSupersetOf(expected)) << "offset " << offset;
    EXPECT_THAT(log.marked(), IsSubsetOf(expected | ring_pages())) << "offset " << offset;
    EXPECT_TRUE(log.intact_before()) << "offset " << offset;
  }
}

CASE(VhostDirtyLog, LogTooSmallIsNotRunOver,
     "practice: a front end whose log covers too little; vhost-user, VHOST_USER_SET_LOG_BASE") {
  LogFile log;
  start_logging(log);
  for (const uint64_t size : {uint64_t{4096}, uint64_t{1}}) {
    log.clear();
    ASSERT_TRUE(fe().query(Request::kSetLogBase, bytes_of(LogDescription{size, 0}), repeat(log.fd(), 1)))
        << session_->error();
    log.clear();
    blk().submit(read_request(0, 512));
    blk().complete();  // may fail: the log does not cover the ring
    for (const uint64_t page : log.marked()) EXPECT_LT(page, 8 * size);
    if (!fe().fence()) break;
  }
  session_->close();
  expect_target_alive();
}

CASE(VhostDirtyLog, LogThatIsCutOffHarmsNobodyElse,
     "practice: a front end that truncates the file of vhost-user, Log description") {
  for (const off_t size : {off_t{0}, off_t{4096}}) {
    const UniqueFd fd(::memfd_create("log", MFD_CLOEXEC));
    ASSERT_EQ(::ftruncate(fd.get(), LogFile::kBytes), 0);
    open();
    if (IsSkipped() || HasFailure()) return;
    ASSERT_TRUE(fe().query(Request::kSetLogBase, bytes_of(LogDescription{LogFile::kBytes, 0}), repeat(fd.get(), 1)))
        << session_->error();
    ASSERT_TRUE(set_logging(true));
    ASSERT_TRUE(log_used_ring(true, ring().used_gpa()));
    ASSERT_EQ(::ftruncate(fd.get(), size), 0);
    for (int i = 0; i < 3; i++) {
      blk().submit(read_request(0, 512));
      if (!blk().complete(kQuietMs)) break;
    }
    session_->close();
    expect_target_alive();
  }
}

CASE(VhostDirtyLog, RefusesALogBeyondItsFile,
     "practice: a front end that breaks vhost-user, Log description (CVE-2020-10722)") {
  const LogFile log;
  for (auto [size, offset] : {std::pair{uint64_t{LogFile::kBytes} + 4096, uint64_t{0}},
                              {uint64_t{LogFile::kBytes}, uint64_t{4096}},
                              {~uint64_t{0}, uint64_t{4096}},
                              {uint64_t{4096}, ~uint64_t{0} - 4095},
                              {uint64_t{0}, uint64_t{0}}}) {
    EXPECT_NE(fe().judge(Request::kSetLogBase, bytes_of(LogDescription{size, offset}), repeat(log.fd(), 1)),
              Verdict::kAccepted)
        << size << ", " << offset;
    if (!fe().fence()) open();
  }
  session_->close();
  expect_target_alive();
}

CASE(VhostDirtyLog, RefusesALogWithoutOneFile,
     "practice: a front end that breaks vhost-user, VHOST_USER_SET_LOG_BASE: the log's descriptor") {
  const LogFile log;
  const UniqueFd eventfd(::eventfd(0, EFD_CLOEXEC));
  for (const std::vector<int>& fds : {std::vector<int>{}, repeat(log.fd(), 2), repeat(eventfd.get(), 1)}) {
    EXPECT_NE(fe().judge(Request::kSetLogBase, bytes_of(log.description()), fds), Verdict::kAccepted)
        << fds.size() << " descriptors";
    if (!fe().fence()) open();
  }
  session_->close();
  expect_target_alive();
}

}  // namespace
}  // namespace sluice::test
