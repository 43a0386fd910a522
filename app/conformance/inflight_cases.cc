// The buffer in which the back end notes which requests it has taken, so that the next one, after a crash, takes up
// what was in flight. The back end is not killed here: the connection is closed, and the buffer made what a crash would
// leave.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "app/conformance/target_fixture.h"

namespace sluice::test {
namespace {

using vhost::BlkStatus;
using vhost::InflightDescription;
using vhost::Request;

// "Inflight I/O tracking": DescStateSplit, QueueRegionSplit, DescStatePacked and QueueRegionPacked.
struct SplitState {
  uint8_t inflight;
  uint8_t padding[5];
  uint16_t next;
  uint64_t counter;
};
static_assert(sizeof(SplitState) == 16);

struct SplitRegion {
  uint64_t features;
  uint16_t version;
  uint16_t desc_num;
  uint16_t last_batch_head;
  uint16_t used_idx;
  SplitState desc[];
};
static_assert(sizeof(SplitRegion) == 16);

struct PackedState {
  uint8_t inflight;
  uint8_t padding;
  uint16_t next;
  uint16_t last;
  uint16_t num;
  uint64_t counter;
  uint16_t id;
  uint16_t flags;
  uint32_t len;
  uint64_t addr;
};
static_assert(sizeof(PackedState) == 32);

struct PackedRegion {
  uint64_t features;
  uint16_t version;
  uint16_t desc_num;
  uint16_t free_head;
  uint16_t old_free_head;
  uint16_t used_idx;
  uint16_t old_used_idx;
  uint8_t used_wrap_counter;
  uint8_t old_used_wrap_counter;
  uint8_t padding[7];
  PackedState desc[];
};
static_assert(sizeof(PackedRegion) == 32);

class VhostInflight : public TargetFixture {
 public:
  void SetUp() override {
    TargetFixture::SetUp();
    if (IsSkipped()) return;
    session_ = running();
    ASSERT_FALSE(HasFailure());
    SKIP_UNLESS(session_->has_protocol(vhost::kProtocolInflightShmfd));
    map_buffer();
  }
  void TearDown() override {
    unmap_buffer();
    TargetFixture::TearDown();
  }
  void map_buffer() {
    unmap_buffer();
    size_ = session_->inflight().mmap_size + session_->inflight().mmap_offset;
    void* map = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, session_->inflight_fd(), 0);
    ASSERT_NE(map, MAP_FAILED) << std::strerror(errno);
    buffer_ = static_cast<uint8_t*>(map);
  }
  void unmap_buffer() {
    if (buffer_ != nullptr) ::munmap(buffer_, size_);
    buffer_ = nullptr;
  }

  bool packed() const { return session_->has(vhost::kFeatureRingPacked); }
  RingDriver& ring() { return session_->ring(); }
  BlkDriver& blk() { return session_->blk(); }
  // Of queue 0.
  SplitRegion& split() { return *reinterpret_cast<SplitRegion*>(buffer_ + session_->inflight().mmap_offset); }
  PackedRegion& packed_region() { return *reinterpret_cast<PackedRegion*>(buffer_ + session_->inflight().mmap_offset); }
  const vhost::PackedDesc& packed_desc(uint32_t offset) {
    return *session_->memory().as<vhost::PackedDesc>(ring().desc_gpa() + offset % ring().size() * 16);
  }

  // Makes a request available, and notes that it was taken. Requires: the connection is closed. Returns its first
  // entry.
  uint16_t taken(const Exchange& exchange, uint64_t counter) {
    const RingPosition at = ring().avail_position();
    const uint16_t head = blk().add(exchange);
    ring().publish();
    if (!packed()) {
      split().desc[head].counter = counter;
      split().desc[head].inflight = 1;
      return head;
    }
    PackedRegion& notes = packed_region();
    const uint16_t first = notes.old_free_head;
    notes.desc[first].counter = counter;
    notes.desc[first].inflight = 1;
    notes.desc[first].num = 0;
    for (uint32_t i = 0;; i++) {
      const vhost::PackedDesc desc = packed_desc(at.offset + i);
      PackedState& entry = notes.desc[notes.free_head];
      entry.addr = desc.addr;
      entry.len = desc.len;
      entry.flags = desc.flags;
      entry.id = desc.id;
      notes.desc[first].last = notes.free_head;
      notes.desc[first].num++;
      notes.free_head = entry.next;
      if ((desc.flags & vhost::kDescNext) == 0) break;
    }
    notes.old_free_head = notes.free_head;
    return first;
  }
  // As after a crash: with the buffer as it is, and the base that the used ring tells, if it tells one.
  bool reconnect() {
    session_->close();
    if (!session_->open(socket_path())) return false;
    session_->set_base(0, packed() ? ring().base() : ring().used_idx());
    return session_->start();
  }
  void expect_completes() {
    auto outcome = blk().complete();
    ASSERT_TRUE(outcome) << ring().violation();
    EXPECT_EQ(outcome->status(), BlkStatus::kOk);
  }
  void expect_no_more() {
    ::usleep(kQuietMs * 1000);
    EXPECT_FALSE(ring().poll_used()) << "completed more often than it was made available";
    EXPECT_EQ(ring().violation(), "");
    expect_io_works(*session_, 0, 2);
  }

 protected:
  std::unique_ptr<Session> session_;
  uint8_t* buffer_ = nullptr;
  size_t size_ = 0;
};

CASE(VhostInflight, GivesABufferForAllQueues, "vhost-user, VHOST_USER_GET_INFLIGHT_FD; Inflight description") {
  const InflightDescription wanted{.num_queues = 3, .queue_size = 64};
  auto reply = session_->front_end().query(Request::kGetInflightFd, bytes_of(wanted));
  ASSERT_TRUE(reply) << session_->error();
  ASSERT_TRUE(reply->as<InflightDescription>()) << reply->payload.size() << " bytes";
  ASSERT_EQ(reply->fds.size(), 1U);
  const InflightDescription given = *reply->as<InflightDescription>();
  EXPECT_EQ(given.num_queues, 3);
  EXPECT_EQ(given.queue_size, 64);
  const size_t each = packed() ? 29 + 64 * sizeof(PackedState) : sizeof(SplitRegion) + 64 * sizeof(SplitState);
  EXPECT_GE(given.mmap_size, 3 * each);
  EXPECT_GE(::lseek(reply->fds[0].get(), 0, SEEK_END), static_cast<off_t>(given.mmap_offset + given.mmap_size));
}

CASE(VhostInflight, KeepsTrackOfRequests, "vhost-user, Inflight I/O tracking: when receiving and supplying buffers") {
  for (uint32_t i = 0; i < 20; i++) expect_io_works(*session_, 0, i);
  ASSERT_TRUE(session_->stop_ring(0)) << session_->error();
  if (!packed()) {
    EXPECT_EQ(split().version, 1);
    EXPECT_EQ(split().desc_num, session_->inflight().queue_size);
    EXPECT_EQ(split().used_idx, ring().used_idx());
    for (uint16_t i = 0; i < ring().size(); i++) EXPECT_EQ(split().desc[i].inflight, 0) << "descriptor " << i;
    return;
  }
  const PackedRegion& notes = packed_region();
  EXPECT_EQ(notes.version, 1);
  EXPECT_EQ(notes.desc_num, session_->inflight().queue_size);
  EXPECT_EQ(notes.used_idx, ring().used_position().offset);
  EXPECT_EQ(notes.used_wrap_counter, ring().used_position().wrap);
  EXPECT_EQ(notes.old_used_idx, notes.used_idx);
  EXPECT_EQ(notes.old_used_wrap_counter, notes.used_wrap_counter);
  EXPECT_EQ(notes.old_free_head, notes.free_head);
  for (uint16_t i = 0; i < ring().size(); i++) EXPECT_EQ(notes.desc[i].inflight, 0) << "entry " << i;
}

CASE(VhostInflight, ResubmitsWhatWasInFlightOnce, "vhost-user, Inflight I/O tracking: when reconnecting") {
  expect_io_works(*session_);
  session_->close();
  // Of five, the first four were taken before the crash.
  for (uint32_t i = 0; i < 4; i++) taken(write_request(8 + i, pattern(512, i)), 1'000 + i);
  blk().add(write_request(12, pattern(512, 4)));
  ring().publish();
  ASSERT_TRUE(reconnect()) << session_->error();
  for (int i = 0; i < 5; i++) expect_completes();
  expect_no_more();
  for (uint32_t i = 0; i < 5; i++) {
    Bytes back(512);
    EXPECT_EQ(blk().read(8 + i, back), BlkStatus::kOk);
    EXPECT_EQ(back, pattern(512, i)) << "request " << i;
  }
}

CASE(VhostInflight, ResubmitsABatchThatWasNotShown,
     "vhost-user, Inflight I/O tracking: roll back any in-progress update") {
  expect_io_works(*session_);
  session_->close();
  const uint16_t first = taken(write_request(8, pattern(512, 5)), 1'000);
  // It crashed when it had noted the batch, and before the ring told of it.
  if (packed()) {
    PackedRegion& notes = packed_region();
    const PackedState& chain = notes.desc[first];
    notes.desc[chain.last].next = notes.free_head;
    notes.free_head = first;
    const uint32_t after = notes.used_idx + chain.num;
    notes.used_wrap_counter = after >= ring().size() ? !notes.used_wrap_counter : notes.used_wrap_counter;
    notes.used_idx = static_cast<uint16_t>(after % ring().size());
  } else {
    split().desc[first].next = split().last_batch_head;
    split().last_batch_head = first;
  }
  ASSERT_TRUE(reconnect()) << session_->error();
  expect_completes();
  expect_no_more();
}

CASE(VhostInflight, DoesNotResubmitTheBatchThatWasJustSupplied,
     "vhost-user, Inflight I/O tracking: used_idx does not match idx of the used ring") {
  expect_io_works(*session_);
  const RingPosition before = ring().used_position();
  const uint16_t first = packed() ? packed_region().free_head : 0;
  const uint16_t head = blk().submit(read_request(0, 512));
  expect_completes();
  session_->close();
  // It crashed between two steps: the used index is out, its own notes are behind.
  if (packed()) {
    PackedRegion& notes = packed_region();
    notes.old_used_idx = before.offset;
    notes.old_used_wrap_counter = before.wrap;
    notes.old_free_head = notes.desc[notes.desc[first].last].next;
    notes.desc[first].inflight = 1;
  } else {
    split().used_idx = static_cast<uint16_t>(ring().used_idx() - 1);
    split().last_batch_head = head;
    split().desc[head].inflight = 1;
  }
  ASSERT_TRUE(reconnect()) << session_->error();
  expect_no_more();
}

CASE(VhostInflight, RequestsAreDoneOnceWhenTheConnectionIsLost,
     "vhost-user, Inflight I/O tracking: when reconnecting; the back end lives on") {
  for (uint32_t round = 0; round < 10; round++) {
    SCOPED_TRACE("round " + std::to_string(round));
    constexpr uint32_t kRequests = 24;
    for (uint32_t i = 0; i < kRequests; i++) blk().add(write_request(100 + i, pattern(512, round * 100 + i)));
    ring().publish();
    ring().kick_always();
    // The front end reads the used index when it finds the connection gone; the back end may still be at work.
    const uint16_t base = ring().used_idx();
    session_->close();
    ASSERT_TRUE(session_->open(socket_path())) << session_->error();
    session_->set_base(0, packed() ? 0x8000'8000 : base);
    ASSERT_TRUE(session_->start()) << session_->error();
    for (uint32_t i = 0; i < kRequests; i++) expect_completes();
    expect_no_more();
    for (uint32_t i = 0; i < kRequests; i++) {
      Bytes back(512);
      EXPECT_EQ(blk().read(100 + i, back), BlkStatus::kOk);
      EXPECT_EQ(back, pattern(512, round * 100 + i)) << "request " << i;
    }
  }
}

CASE(VhostInflight, RefusesADescriptionThatCannotBe,
     "practice: a front end that breaks vhost-user, VHOST_USER_SET_INFLIGHT_FD (CVE-2021-3839)") {
  const InflightDescription good = session_->inflight();
  std::vector<InflightDescription> all(6, good);
  all[0].num_queues = 0xffff;
  all[1].queue_size = 0xffff;
  all[2].mmap_size = 1;
  all[3].mmap_size = ~uint64_t{0};
  all[4].mmap_offset = uint64_t{1} << 40;
  all[5].mmap_offset = ~uint64_t{0} - 4095;
  UniqueFd fd(::dup(session_->inflight_fd()));
  session_->close();
  for (size_t i = 0; i < all.size(); i++) {
    Session session;
    ASSERT_TRUE(session.open(socket_path())) << session.error();
    const Verdict verdict = session.front_end().judge(Request::kSetInflightFd, bytes_of(all[i]), repeat(fd.get(), 1));
    EXPECT_TRUE(verdict == Verdict::kRefused || verdict == Verdict::kClosed)
        << "description " << i << ": " << to_string(verdict);
  }
  expect_target_alive();
}

CASE(VhostInflight, RefusesDescriptorsThatAreNoBuffer,
     "practice: a front end that breaks vhost-user, VHOST_USER_SET_INFLIGHT_FD (CVE-2022-0669)") {
  const Bytes good = bytes_of(session_->inflight());
  const UniqueFd whole(::dup(session_->inflight_fd()));
  session_->close();
  const UniqueFd empty(::memfd_create("empty", MFD_CLOEXEC));
  const UniqueFd device(::open("/dev/zero", O_RDWR | O_CLOEXEC));
  const Bytes shorter(good.begin(), good.end() - 5);
  const std::vector<std::pair<Bytes, std::vector<int>>> all = {{good, {}},
                                                               {good, {whole.get(), whole.get()}},
                                                               {good, {empty.get()}},
                                                               {good, {device.get()}},
                                                               {shorter, {whole.get()}}};
  for (size_t i = 0; i < all.size(); i++) {
    Session session;
    ASSERT_TRUE(session.open(socket_path())) << session.error();
    const Verdict verdict = session.front_end().judge(Request::kSetInflightFd, all[i].first, all[i].second);
    EXPECT_TRUE(verdict == Verdict::kRefused || verdict == Verdict::kClosed)
        << "message " << i << ": " << to_string(verdict);
  }
  expect_target_alive();
}

CASE(VhostInflight, SurvivesWishesThatCannotBe,
     "practice: a front end that breaks vhost-user, VHOST_USER_GET_INFLIGHT_FD") {
  session_->close();
  for (const InflightDescription wanted :
       {InflightDescription{.num_queues = 0, .queue_size = 128}, InflightDescription{.num_queues = 1, .queue_size = 0},
        InflightDescription{.num_queues = 0xffff, .queue_size = 0xffff}}) {
    Session session;
    ASSERT_TRUE(session.open(socket_path())) << session.error();
    session.front_end().query(Request::kGetInflightFd, bytes_of(wanted));  // whatever is answered
    session.close();
    expect_target_alive();
  }
}

CASE(VhostInflight, SurvivesAnyContents, "practice: a front end that writes into the buffer (CVE-2021-3839)") {
  expect_io_works(*session_);
  session_->close();
  for (uint32_t i = 0; i < 3; i++) taken(write_request(8 + i, pattern(512, i)), 1'000 + i);
  const Bytes good(buffer_, buffer_ + size_);
  const size_t header = packed() ? sizeof(PackedRegion) : sizeof(SplitRegion);
  const size_t entry = packed() ? sizeof(PackedState) : sizeof(SplitState);
  // Each field of the header, then each of all entries.
  for (size_t field = 0; field < header + entry; field += 2) {
    for (const uint16_t value : std::initializer_list<uint16_t>{0, 1, 0x7fff, 0xffff}) {
      SCOPED_TRACE("field at " + std::to_string(field) + " is " + std::to_string(value));
      std::memcpy(buffer_, good.data(), good.size());
      uint8_t* notes = buffer_ + session_->inflight().mmap_offset;
      if (field < header) {
        std::memcpy(notes + field, &value, sizeof(value));
      } else {
        for (size_t i = 0; i < session_->inflight().queue_size; i++) {
          std::memcpy(notes + i * entry + field, &value, sizeof(value));
        }
      }
      reconnect();  // or is refused
      session_->close();
    }
    expect_target_alive();
  }
}

CASE(VhostInflight, BufferThatIsTruncatedCostsTheRingOnly,
     "practice: a front end that truncates the buffer under the back end's mapping") {
  expect_io_works(*session_);
  session_->close();
  // One of the front end's own, which no seal keeps it from truncating.
  UniqueFd own(::memfd_create("own", MFD_CLOEXEC));
  ASSERT_EQ(::pwrite(own.get(), buffer_, size_, 0), static_cast<ssize_t>(size_));
  session_->set_inflight_fd(std::move(own));
  ASSERT_TRUE(reconnect()) << session_->error();
  expect_io_works(*session_);
  ASSERT_EQ(::ftruncate(session_->inflight_fd(), 0), 0) << std::strerror(errno);
  for (uint32_t i = 0; i < 3; i++) {
    blk().submit(write_request(i, pattern(512, i)));
    blk().complete(kQuietMs, false);  // or not
  }
  session_->close();
  expect_target_alive();
}

}  // namespace
}  // namespace sluice::test
