// The buffer in which the back end keeps track of requests, so that a front end can connect again after a crash.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "app/conformance/target_fixture.h"

namespace sluice::test {
namespace {

using vhost::BlkStatus;
using vhost::InflightDescription;
using vhost::Request;

// "Inflight I/O tracking": QueueRegionSplit and DescStateSplit.
struct DescState {
  uint8_t inflight;
  uint8_t padding[5];
  uint16_t next;
  uint64_t counter;
};
static_assert(sizeof(DescState) == 16);

struct QueueRegion {
  uint64_t features;
  uint16_t version;
  uint16_t desc_num;
  uint16_t last_batch_head;
  uint16_t used_idx;
  DescState desc[];
};
static_assert(sizeof(QueueRegion) == 16);

class VhostInflight : public TargetFixture {
 public:
  void SetUp() override {
    TargetFixture::SetUp();
    if (IsSkipped()) return;
    session_ = running();
    ASSERT_FALSE(HasFailure());
    SKIP_UNLESS(session_->has_protocol(vhost::kProtocolInflightShmfd));
    size_ = session_->inflight().mmap_size + session_->inflight().mmap_offset;
    void* map = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, session_->inflight_fd(), 0);
    ASSERT_NE(map, MAP_FAILED) << std::strerror(errno);
    buffer_ = static_cast<uint8_t*>(map);
  }
  void TearDown() override {
    if (buffer_ != nullptr) ::munmap(buffer_, size_);
    TargetFixture::TearDown();
  }
  // Of queue 0.
  QueueRegion& region() { return *reinterpret_cast<QueueRegion*>(buffer_ + session_->inflight().mmap_offset); }
  RingDriver& ring() { return session_->ring(); }
  BlkDriver& blk() { return session_->blk(); }
  // As after a crash: with the buffer as it is, and the base that the used ring tells.
  bool reconnect() {
    session_->close();
    if (!session_->open(socket_path())) return false;
    session_->set_base(0, ring().used_idx());
    return session_->start();
  }
  void expect_completes() {
    auto outcome = blk().complete();
    ASSERT_TRUE(outcome) << ring().violation();
    EXPECT_EQ(outcome->status(), BlkStatus::kOk);
  }

 protected:
  std::unique_ptr<Session> session_;
  uint8_t* buffer_ = nullptr;
  size_t size_ = 0;
};

CASE(VhostInflight, GivesABufferForAllQueues, "vhost-user, VHOST_USER_GET_INFLIGHT_FD; Inflight description") {
  const InflightDescription wanted{.num_queues = 1, .queue_size = 64};
  auto reply = session_->front_end().query(Request::kGetInflightFd, bytes_of(wanted));
  ASSERT_TRUE(reply) << session_->error();
  ASSERT_TRUE(reply->as<InflightDescription>()) << reply->payload.size() << " bytes";
  ASSERT_EQ(reply->fds.size(), 1U);
  const InflightDescription given = *reply->as<InflightDescription>();
  EXPECT_EQ(given.num_queues, 1);
  EXPECT_EQ(given.queue_size, 64);
  EXPECT_GE(given.mmap_size, sizeof(QueueRegion) + 64 * sizeof(DescState));
  EXPECT_GE(::lseek(reply->fds[0].get(), 0, SEEK_END), static_cast<off_t>(given.mmap_offset + given.mmap_size));
}

CASE(VhostInflight, KeepsTrackOfRequests, "vhost-user, Inflight I/O tracking: when receiving and supplying buffers") {
  for (uint32_t i = 0; i < 20; i++) expect_io_works(*session_, 0, i);
  ASSERT_TRUE(session_->stop_ring(0)) << session_->error();
  EXPECT_EQ(region().version, 1);
  EXPECT_EQ(region().desc_num, session_->inflight().queue_size);
  EXPECT_EQ(region().used_idx, ring().used_idx());
  for (uint16_t i = 0; i < ring().size(); i++) EXPECT_EQ(region().desc[i].inflight, 0) << "descriptor " << i;
}

CASE(VhostInflight, ResubmitsWhatWasInFlightOnce, "vhost-user, Inflight I/O tracking: when reconnecting") {
  expect_io_works(*session_);
  session_->close();
  // The first was taken before the crash, the second was not.
  const uint16_t taken = blk().add(write_request(8, pattern(512, 5)));
  blk().add(write_request(9, pattern(512, 6)));
  ring().publish();
  region().desc[taken].inflight = 1;
  region().desc[taken].counter = 1'000;
  ASSERT_TRUE(reconnect()) << session_->error();
  for (int i = 0; i < 2; i++) expect_completes();
  ::usleep(kQuietMs * 1000);
  EXPECT_FALSE(ring().poll_used()) << "completed more often than it was made available";
  EXPECT_EQ(ring().violation(), "");
  expect_io_works(*session_, 0, 2);
}

CASE(VhostInflight, DoesNotResubmitTheBatchThatWasJustSupplied,
     "vhost-user, Inflight I/O tracking: used_idx does not match idx of the used ring") {
  expect_io_works(*session_);
  const uint16_t head = blk().submit(read_request(0, 512));
  expect_completes();
  session_->close();
  // It crashed between two steps: the used index is out, its own notes are behind.
  region().used_idx = static_cast<uint16_t>(ring().used_idx() - 1);
  region().last_batch_head = head;
  region().desc[head].inflight = 1;
  ASSERT_TRUE(reconnect()) << session_->error();
  ::usleep(kQuietMs * 1000);
  EXPECT_FALSE(ring().poll_used()) << "completed twice";
  EXPECT_EQ(ring().violation(), "");
  expect_io_works(*session_, 0, 2);
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
  for (size_t i = 0; i < all.size(); i++) {
    Session session;
    ASSERT_TRUE(session.open(socket_path())) << session.error();
    const Verdict verdict = session.front_end().judge(Request::kSetInflightFd, bytes_of(all[i]), repeat(fd.get(), 1));
    EXPECT_TRUE(verdict == Verdict::kRefused || verdict == Verdict::kClosed)
        << "description " << i << ": " << to_string(verdict);
  }
  session_->close();
  expect_target_alive();
}

CASE(VhostInflight, SurvivesAnyContents, "practice: a front end that writes into the buffer (CVE-2021-3839)") {
  const uint32_t count = session_->inflight().queue_size;
  for (int field = 0; field < 7; field++) {
    SCOPED_TRACE("field " + std::to_string(field));
    session_->close();
    if (field == 0) region().version = 0xffff;
    if (field == 1) region().desc_num = 0xffff;
    if (field == 2) region().last_batch_head = 0xffff;
    if (field == 3) region().used_idx = static_cast<uint16_t>(ring().used_idx() + 0x7fff);
    for (uint32_t i = 0; i < count && field > 3; i++) {
      if (field == 4) region().desc[i].next = 0xffff;
      if (field == 5) region().desc[i].inflight = 0xff;
      if (field == 6) region().desc[i].counter = ~uint64_t{0};
    }
    reconnect();  // or is refused
    session_->close();
    expect_target_alive();
  }
}

}  // namespace
}  // namespace sluice::test
