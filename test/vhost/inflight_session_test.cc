// Requests in flight through the whole target: what there is besides the Inflight cases, which cannot hold requests.
#include <sys/mman.h>

#include "test/vhost/in_process_fixture.h"

namespace sluice::test {
namespace {

using vhost::Request;
using vhost::RingFault;

class VhostInflightSession : public OneFrontEnd {
 public:
  bool packed() { return session_->has(vhost::kFeatureRingPacked); }
  RingFault fault(size_t queue = 0) { return session_info().queues.at(queue).fault; }
  bool reconnect() {
    session_->close();
    if (!session_->open(socket_path())) return false;
    session_->set_base(0, packed() ? 0x8000'8000 : ring().used_idx());
    return session_->start();
  }
  // The bytes of a file, all of it.
  static Bytes contents(int fd) {
    Bytes bytes(static_cast<size_t>(::lseek(fd, 0, SEEK_END)));
    EXPECT_EQ(::pread(fd, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    return bytes;
  }
  static void set_contents(int fd, const Bytes& bytes) {
    ASSERT_EQ(::pwrite(fd, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  }
  uint8_t* notes(size_t queue = 0) {
    const auto& description = session_->inflight();
    void* map = ::mmap(nullptr, description.mmap_size, PROT_READ | PROT_WRITE, MAP_SHARED, session_->inflight_fd(), 0);
    EXPECT_NE(map, MAP_FAILED);
    return static_cast<uint8_t*>(map) + queue * description.mmap_size / description.num_queues;
  }
};

// With requests held in the bdev, memory is as a back end leaves it that is killed at that moment. It is put back once
// the target has let go of the connection, as if it had never completed them.
TEST_F(VhostInflightSession, KilledBackEndsRequestsAreDoneAgainInTheirOrder) {
  start({.queue_size = 64});
  for (uint32_t round = 0; round < 5; round++) {
    SCOPED_TRACE("round " + std::to_string(round));
    if (round % 2 == 1) hand_over();
    for (uint32_t i = 0; i < 7; i++) expect_io_works(*session_, 0, i);
    hold_io();
    std::vector<uint16_t> heads;
    for (uint32_t i = 0; i < 16; i++) heads.push_back(blk().add(write_request(8 * i, pattern(512, 100 * round + i))));
    ring().publish();
    ring().kick_always();
    wait_until_held(16);
    release_oldest_io(6);
    for (size_t i = 0; i < 6; i++) {
      uint16_t head = 0;
      ASSERT_TRUE(blk().complete(kTimeoutMs, false, &head));
      EXPECT_EQ(head, heads[i]);
    }
    // The notes are made up after the ring: these have to be, too.
    const uint32_t before = session_info().in_flight;
    EXPECT_EQ(before, 10U);
    const Bytes memory = contents(session_->memory().fd());
    const Bytes inflight = contents(session_->inflight_fd());
    session_->close();
    release_io();
    expect_target_alive();  // once the old session has ended
    set_contents(session_->memory().fd(), memory);
    set_contents(session_->inflight_fd(), inflight);
    hold_io();
    const uint64_t writes = iostat().of(IoType::kWrite).ops;
    ASSERT_TRUE(reconnect()) << session_->error();
    wait_until_held(10);
    EXPECT_EQ(held_io_count(), 10);
    for (size_t i = 6; i < heads.size(); i++) {
      release_oldest_io(1);
      uint16_t head = 0;
      ASSERT_TRUE(blk().complete(kTimeoutMs, false, &head)) << ring().violation();
      EXPECT_EQ(head, heads[i]) << "they were submitted again in another order";
    }
    release_io();
    EXPECT_EQ(iostat().of(IoType::kWrite).ops, writes + 10);
    for (uint32_t i = 0; i < 16; i++) {
      Bytes back(512);
      ASSERT_EQ(blk().read(8 * i, back), vhost::BlkStatus::kOk);
      EXPECT_EQ(back, pattern(512, 100 * round + i));
    }
    EXPECT_EQ(ring().violation(), "");
  }
}

TEST_F(VhostInflightSession, BufferCannotChangeWhileARingRuns) {
  start();
  FrontEnd& fe = session_->front_end();
  const int fd = session_->inflight_fd();
  EXPECT_EQ(fe.judge(Request::kSetInflightFd, bytes_of(session_->inflight()), repeat(fd, 1)), Verdict::kRefused);
  ASSERT_TRUE(session_->stop_ring(0)) << session_->error();
  EXPECT_EQ(fe.judge(Request::kSetInflightFd, bytes_of(session_->inflight()), repeat(fd, 1)), Verdict::kAccepted);
  ASSERT_TRUE(session_->start_ring(0)) << session_->error();
  expect_io_works(*session_);
}

TEST_F(VhostInflightSession, DamagedBufferBreaksItsRingOnly) {
  start({.num_queues = 2});
  expect_io_works(*session_, 0);
  session_->close();
  notes()[10] = 77;  // desc_num
  session_->set_base(1, session_->ring(1).base());
  ASSERT_TRUE(reconnect()) << session_->error();
  EXPECT_TRUE(ring().err_signalled());
  EXPECT_EQ(fault(0), RingFault::kBadInflight);
  EXPECT_STREQ(to_string(fault(0)), "the buffer for requests in flight is damaged");
  EXPECT_EQ(fault(1), RingFault::kNone);
  expect_io_works(*session_, 1);
  // It breaks again until it is given another one.
  ASSERT_TRUE(session_->stop_ring(0) && session_->start_ring(0)) << session_->error();
  EXPECT_TRUE(eventually([&] { return fault(0) == RingFault::kBadInflight; }));
  ASSERT_TRUE(session_->stop_ring(0) && session_->stop_ring(1)) << session_->error();
  session_->renew_ring(0);
  session_->renew_ring(1);
  ASSERT_TRUE(session_->start()) << session_->error();
  expect_io_works(*session_, 0);
  expect_io_works(*session_, 1);
}

TEST_F(VhostInflightSession, BufferThatIsCutOffBreaksItsRings) {
  start();
  session_->close();
  UniqueFd own(::memfd_create("own", MFD_CLOEXEC));
  set_contents(own.get(), Bytes(session_->inflight().mmap_size));
  session_->set_inflight_fd(std::move(own));
  ASSERT_TRUE(session_->open(socket_path()) && session_->start()) << session_->error();
  expect_io_works(*session_);
  ASSERT_EQ(::ftruncate(session_->inflight_fd(), 0), 0);
  blk().submit(read_request(0, 512));
  EXPECT_TRUE(eventually([&] { return fault() == RingFault::kInflightLost; }));
  session_.reset();
  expect_target_alive();
}

// The front end has asked for a buffer for shorter rings.
TEST_F(VhostInflightSession, RingThatIsTooLongForTheBufferDoesNotRun) {
  start({.queue_size = 64});
  ASSERT_TRUE(session_->stop_ring(0)) << session_->error();
  ASSERT_TRUE(session_->front_end().set_vring_num(0, 128));
  ASSERT_TRUE(session_->front_end().set_vring_fd(Request::kSetVringKick, 0, ring().kick_fd()));
  EXPECT_TRUE(eventually([&] { return fault() == RingFault::kInflightSize; }));
}

}  // namespace
}  // namespace sluice::test
