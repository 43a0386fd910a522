// Packed rings through the whole target: what there is besides running the other tests with SLUICE_TEST_PACKED.
#include "test/vhost/in_process_fixture.h"

namespace sluice::test {
namespace {

using vhost::kFeatureRingPacked;
using vhost::PackedDesc;
using vhost::Request;
using vhost::RingFault;

class VhostPacked : public OneFrontEnd {
 public:
  VhostPacked() : OneFrontEnd({.packed_ring = true}) {}
  RingFault fault() { return session_info().queues.at(0).fault; }
  // A chain of its own making, made available.
  void add(const std::vector<PackedDesc>& descs) {
    session_->ring(0).add_raw(descs);
    session_->ring(0).publish();
    session_->ring(0).kick_always();
  }
};

TEST_F(VhostPacked, IsOfferedAndLeftToTheDriver) {
  start();
  EXPECT_TRUE(session_->has(kFeatureRingPacked));
  expect_io_works(*session_);
  session_.reset();
  start({.leave_features = kFeatureRingPacked});
  EXPECT_FALSE(session_->has(kFeatureRingPacked));
  expect_io_works(*session_);
}

// A guest that reboots into a driver of the other kind, on the same connection.
TEST_F(VhostPacked, RingBecomesSplitWhenItIsSetUpAnew) {
  start();
  expect_io_works(*session_);
  ASSERT_TRUE(session_->stop_ring(0)) << session_->error();
  FrontEnd& fe = session_->front_end();
  ASSERT_TRUE(fe.set_u64(Request::kSetFeatures, session_->features() & ~kFeatureRingPacked));
  RingDriver split(session_->memory(), {.size = 64, .event_idx = true});
  BlkDriver blk(session_->memory(), split);
  EXPECT_EQ(fe.judge(Request::kSetVringBase, bytes_of(vhost::VringState{0, 0x8000'8000})), Verdict::kRefused);
  ASSERT_TRUE(fe.set_vring_num(0, 64) && fe.set_vring_base(0, 0) && fe.set_vring_addr(split.vring_addr(0)));
  ASSERT_TRUE(fe.set_vring_fd(Request::kSetVringCall, 0, split.call_fd()));
  ASSERT_TRUE(fe.set_vring_fd(Request::kSetVringKick, 0, split.kick_fd()));
  for (uint32_t i = 0; i < 50; i++) EXPECT_EQ(blk.write(i, pattern(512, i)), vhost::BlkStatus::kOk);
  EXPECT_EQ(split.violation(), "");
}

// A ring that is cut off from its memory with requests in flight, and then becomes shorter, of the other kind, and
// begins elsewhere: these have to be over first.
TEST_F(VhostPacked, RequestsInFlightEndInTheRingTheyCameFrom) {
  for (const bool split : {false, true}) {
    start({.dialect = Dialect::kQemu9, .queue_size = 128});
    hold_io();
    for (int i = 0; i < 8; i++) session_->blk().add(read_request(0, 512));
    session_->ring().publish();
    session_->ring().kick_always();
    wait_until_held(8);
    FrontEnd& fe = session_->front_end();
    const vhost::MemoryRegion region = session_->memory().regions()[kHigh];
    ASSERT_EQ(fe.judge(Request::kRemMemReg, mem_reg_payload(region)), Verdict::kAccepted);
    EXPECT_FALSE(session_info().queues.at(0).running);
    const uint64_t features = session_->features() & ~(split ? kFeatureRingPacked : 0);
    ASSERT_TRUE(fe.set_u64(Request::kSetFeatures, features));
    // Read as an available index, the flags that suppress_calls() has left are 1: as a split ring it is empty.
    ASSERT_TRUE(fe.set_vring_num(0, 4) && fe.set_vring_base(0, split ? 1 : 0x8003'8003));
    ASSERT_TRUE(fe.send(Request::kAddMemReg, mem_reg_payload(region), repeat(session_->memory().fd(), 1)));
    release_io();
    ASSERT_TRUE(fe.fence()) << session_->error();
    EXPECT_EQ(session_info().in_flight, 0U);
    EXPECT_EQ(session_->ring().used_idx(), 8);
    EXPECT_TRUE(session_info().queues.at(0).running);
    session_.reset();
    expect_target_alive();
  }
}

TEST_F(VhostPacked, BaseOutsideTheRingDoesNotRun) {
  start();
  ASSERT_TRUE(session_->stop_ring(0)) << session_->error();
  session_->set_base(0, 0x8080'8080);  // the ring has 128 descriptors
  ASSERT_TRUE(session_->start_ring(0)) << session_->error();
  ASSERT_TRUE(session_->front_end().fence());
  EXPECT_FALSE(session_info().queues.at(0).running);
  ASSERT_TRUE(session_->stop_ring(0)) << session_->error();
  session_->renew_ring();
  ASSERT_TRUE(session_->start_ring(0)) << session_->error();
  expect_io_works(*session_);
}

// The same id twice: the ring stops; the first request ends where it belongs, and the ring works again once it has been
// set up anew.
TEST_F(VhostPacked, IdThatIsInFlightBreaksTheRing) {
  start({.num_queues = 2});
  hold_io();
  const uint16_t id = session_->blk().submit(read_request(0, 512));
  wait_until_held(1);
  const uint64_t header = session_->memory().allocate(kHigh, 16);
  session_->memory().write(header, bytes_of(vhost::BlkRequestHeader{.type = 0}));
  add({{.addr = header, .len = 16, .id = 0, .flags = vhost::kDescNext},
       {.addr = header, .len = 1, .id = id, .flags = vhost::kDescWrite}});
  EXPECT_TRUE(session_->ring(0).err_signalled());
  EXPECT_EQ(fault(), RingFault::kIdInFlight);
  release_io();
  const auto outcome = session_->blk().complete(kTimeoutMs, false);
  ASSERT_TRUE(outcome);
  EXPECT_TRUE(outcome->intact);
  expect_io_works(*session_, 1);
  ASSERT_TRUE(session_->stop_ring(0)) << session_->error();
  session_->renew_ring();
  ASSERT_TRUE(session_->start_ring(0)) << session_->error();
  for (uint32_t i = 0; i < 100; i++) expect_io_works(*session_, 0, i);
}

// A chain that is no request has been taken with its id: the id is free again in the ring that is set up anew.
TEST_F(VhostPacked, IdOfABrokenRequestIsFreeAfterwards) {
  start();
  for (int round = 0; round < 3; round++) {
    add({{.addr = session_->memory().allocate(kHigh, 16), .len = 8, .id = 3}});
    EXPECT_TRUE(session_->ring(0).err_signalled());
    EXPECT_EQ(fault(), RingFault::kNoHeader);
    ASSERT_TRUE(session_->stop_ring(0)) << session_->error();
    session_->renew_ring();
    ASSERT_TRUE(session_->start_ring(0)) << session_->error();
    while (session_->ring().free_descriptors() >= 3) session_->blk().add(read_request(0, 512));
    session_->ring().publish();
    session_->ring().kick_always();
    while (session_->ring().outstanding() > 0) ASSERT_TRUE(session_->blk().complete());
    uint64_t errors = 0;
    std::ignore = ::read(session_->ring().err_fd(), &errors, sizeof(errors));
  }
}

// A guest that rewrites its ring all the time gets what it deserves and nobody else does.
TEST_F(VhostPacked, SurvivesARingThatChangesMeanwhile) {
  start({.num_queues = 2, .queue_size = 16});
  GuestMemory& memory = session_->memory();
  const vhost::VringAddr addresses = session_->ring().vring_addr(0);
  const uint64_t ring = session_->ring().desc_gpa();
  ASSERT_EQ(memory.user_address(ring), addresses.desc);
  const uint64_t data = memory.allocate(kHigh, 4096);
  uint32_t state = 54321;
  const auto random = [&state] { return state = state * 1664525U + 1013904223U; };
  for (int round = 0; round < 200; round++) {
    for (int change = 0; change < 200; change++) {
      const uint32_t r = random() >> 8;
      const PackedDesc desc{.addr = (r & 7) != 0 ? data : random(),
                            .len = (r & 8) != 0 ? 16U : 512U,
                            .id = static_cast<uint16_t>(r >> 12 & 15),
                            .flags = static_cast<uint16_t>(random() >> 16)};
      memory.write(ring + (r >> 4 & 15) * sizeof(desc), bytes_of(desc));
      memory.write(data, bytes_of(vhost::BlkRequestHeader{.type = random() >> 28, .sector = random() >> 16}));
      if (change % 20 == 0) session_->ring().kick_always();
    }
    if (!session_->stop_ring(0)) FAIL() << session_->error();
    session_->renew_ring();
    ASSERT_TRUE(session_->start_ring(0)) << session_->error();
    if (round % 50 == 49) {
      expect_io_works(*session_, 0, static_cast<uint32_t>(round));
      expect_io_works(*session_, 1, static_cast<uint32_t>(round));
    }
  }
  session_.reset();
  expect_target_alive();
}

}  // namespace
}  // namespace sluice::test
