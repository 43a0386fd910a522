// The order in which real front ends set a device up, start it and stop it.
#include "app/conformance/target_fixture.h"

namespace sluice::test {
namespace {

using vhost::BlkStatus;
using vhost::Request;

class VhostHandshake : public TargetFixture, public ::testing::WithParamInterface<Dialect> {};

INSTANTIATE_TEST_SUITE_P(Dialects, VhostHandshake, ::testing::ValuesIn(kAllDialects),
                         [](const auto& info) { return std::string(to_string(info.param)); });

// "Front-end message types": the order of messages is the front end's, as long as a ring is complete when it is kicked.
CASE_P(VhostHandshake, ServesAllQueues, "vhost-user, Front-end message types; Multiple queue support") {
  Session session({.dialect = GetParam(), .num_queues = 4});
  ASSERT_TRUE(session.open(socket_path())) << session.error();
  ASSERT_TRUE(session.start()) << session.error();
  for (uint32_t i = 0; i < session.num_queues(); i++) expect_io_works(session, i, i);
  EXPECT_TRUE(session.front_end().fence()) << session.error();
}

// "Ring states": GET_VRING_BASE stops a ring; set up again with the base it answered, the ring goes on where it was.
CASE_P(VhostHandshake, StopsAndStartsAgain, "vhost-user, Ring states; VHOST_USER_GET_VRING_BASE") {
  Session session({.dialect = GetParam(), .num_queues = 2});
  ASSERT_TRUE(session.open_and_start(socket_path())) << session.error();
  for (uint32_t round = 0; round < 3; round++) {
    for (uint32_t i = 0; i < session.num_queues(); i++) expect_io_works(session, i, 10 * round + i);
    auto before = session.ring().base();
    ASSERT_TRUE(session.stop()) << session.error();
    if (GetParam() != Dialect::kFirecracker && GetParam() != Dialect::kLibblkio && GetParam() != Dialect::kUml) {
      EXPECT_EQ(session.base(0), before);
      ASSERT_TRUE(session.start()) << session.error();
    }
  }
}

// A guest that resets its rings starts over at their beginning, on the same connection.
CASE_P(VhostHandshake, StartsOverWithFreshRingsAfterStop, "vhost-user, Ring states; virtio 1.2, 2.4 Device Reset") {
  auto dialect = GetParam();
  if (dialect == Dialect::kFirecracker || dialect == Dialect::kLibblkio || dialect == Dialect::kUml)
    GTEST_SKIP() << "this front end never stops a ring";
  Session session({.dialect = dialect});
  ASSERT_TRUE(session.open_and_start(socket_path())) << session.error();
  expect_io_works(session);
  ASSERT_TRUE(session.stop()) << session.error();
  session.renew_ring();
  ASSERT_TRUE(session.start()) << session.error();
  expect_io_works(session, 0, 2);
}

// A front end that has gone is followed by the next one, of any kind.
CASE_P(VhostHandshake, FollowsOnAnyOtherFrontEnd, "practice: vhost-user, Communication: one front end after another") {
  for (Dialect before : kAllDialects) {
    {
      Session session({.dialect = before});
      ASSERT_TRUE(session.open_and_start(socket_path())) << session.error();
      expect_io_works(session, 0, 1);
    }
    Session session({.dialect = GetParam()});
    ASSERT_TRUE(session.open_and_start(socket_path())) << "after " << to_string(before) << ": " << session.error();
    expect_io_works(session, 0, 2);
  }
}

class VhostHandshakeDetail : public TargetFixture {};

// "VHOST_USER_SET_VRING_ENABLE": a firmware that drives one queue makes QEMU enable all of them nevertheless.
CASE(VhostHandshakeDetail, EnablingQueuesThatWereNeverSetUpSucceeds,
     "practice: vhost-user, VHOST_USER_SET_VRING_ENABLE: QEMU enables all queues") {
  auto session = running({.dialect = Dialect::kQemu9, .num_queues = 1});
  ASSERT_FALSE(HasFailure());
  for (uint32_t i = 0; i < session->max_queues(); i++)
    EXPECT_TRUE(session->front_end().set_vring_enable(i, true)) << session->error();
  expect_io_works(*session);
}

// "VHOST_USER_SET_FEATURES" twice before each start must change nothing but the features.
CASE(VhostHandshakeDetail, RepeatedSetFeaturesKeepsMemoryAndRings,
     "practice: vhost-user, VHOST_USER_SET_FEATURES: QEMU repeats it") {
  auto session = running();
  ASSERT_FALSE(HasFailure());
  for (uint32_t i = 0; i < 5; i++) {
    ASSERT_TRUE(session->front_end().set_u64(Request::kSetFeatures, session->features()));
    expect_io_works(*session, 0, i);
  }
}

// "Memory access": a stopped and started device keeps its memory; QEMU sends nothing about it again with memory slots.
CASE(VhostHandshakeDetail, MemoryPersistsAcrossStopAndStart, "vhost-user, VHOST_USER_ADD_MEM_REG") {
  auto session = running();
  ASSERT_FALSE(HasFailure());
  SKIP_UNLESS(session->has_protocol(vhost::kProtocolConfigureMemSlots));
  ASSERT_TRUE(session->stop()) << session->error();
  ASSERT_TRUE(session->start()) << session->error();
  expect_io_works(*session);
}

// "VHOST_USER_SET_VRING_ADDR" before the memory it points into: addresses are translated when the ring starts.
CASE(VhostHandshakeDetail, RingAddressesMayComeBeforeTheMemory,
     "practice: vhost-user, VHOST_USER_SET_VRING_ADDR: no order is told") {
  Session session({.dialect = Dialect::kCloudHypervisor});
  ASSERT_TRUE(session.open(socket_path())) << session.error();
  ASSERT_TRUE(session.front_end().set_u64(Request::kSetFeatures, session.features()));
  ASSERT_TRUE(session.set_up_ring(0)) << session.error();
  ASSERT_TRUE(session.send_memory()) << session.error();
  ASSERT_TRUE(session.connect_ring(0)) << session.error();
  ASSERT_TRUE(session.enable_all(true)) << session.error();
  expect_io_works(session);
}

// "Per-ring descriptors": CALL, KICK and ERR are accepted at any time, also twice and after the ring has started.
CASE(VhostHandshakeDetail, RingDescriptorsMayBeReplacedAtAnyTime,
     "vhost-user, Ring states: configuration may change on the fly") {
  auto session = running({.dialect = Dialect::kCloudHypervisor});
  ASSERT_FALSE(HasFailure());
  auto& fe = session->front_end();
  for (uint32_t i = 0; i < 3; i++) {
    session->ring().renew_call_fd();
    ASSERT_TRUE(fe.set_vring_fd(Request::kSetVringCall, 0, session->ring().call_fd())) << session->error();
    ASSERT_TRUE(fe.set_vring_fd(Request::kSetVringErr, 0, session->ring().err_fd())) << session->error();
    expect_io_works(*session, 0, i);
    session->ring().renew_kick_fd();
    ASSERT_TRUE(fe.set_vring_fd(Request::kSetVringKick, 0, session->ring().kick_fd())) << session->error();
    expect_io_works(*session, 0, i + 10);
  }
}

}  // namespace
}  // namespace sluice::test
