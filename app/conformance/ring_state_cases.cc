// When a ring runs: started or stopped, enabled or disabled, with and without descriptors.
#include <fcntl.h>
#include <unistd.h>

#include "app/conformance/target_fixture.h"

namespace sluice::test {
namespace {

using vhost::BlkStatus;
using vhost::Request;
using vhost::VringState;

class VhostRingState : public TargetFixture {
 public:
  void open(SessionOptions options = {}) {
    session_ = opened(std::move(options));
    ASSERT_FALSE(HasFailure());
  }
  // Everything but the start of rings. Without `extra_features` bit 30 is left out by leave_features.
  void configure() {
    ASSERT_TRUE(fe().set_u64(Request::kSetFeatures, session_->features())) << session_->error();
    ASSERT_TRUE(session_->send_memory()) << session_->error();
  }
  void open_and_start(SessionOptions options = {}) {
    session_ = running(std::move(options));
    ASSERT_FALSE(HasFailure());
  }
  FrontEnd& fe() { return session_->front_end(); }
  RingDriver& ring(size_t i = 0) { return session_->ring(i); }
  BlkDriver& blk(size_t i = 0) { return session_->blk(i); }
  Verdict enable(uint32_t index, bool on) {
    return fe().judge(Request::kSetVringEnable, bytes_of(VringState{index, on ? 1U : 0U}));
  }
  // A request was published and nothing happens to it.
  void expect_unserved(size_t i = 0) {
    uint16_t before = ring(i).used_idx();
    ::usleep(kQuietMs * 1000);
    EXPECT_EQ(ring(i).used_idx(), before) << "queue " << i << " was served";
  }
  void expect_completes(size_t i = 0) {
    auto outcome = blk(i).complete();
    ASSERT_TRUE(outcome) << "queue " << i << " was not served " << ring(i).violation();
    EXPECT_EQ(outcome->status(), BlkStatus::kOk);
  }

 protected:
  std::unique_ptr<Session> session_;
};

// ---- "Ring states": enabled and disabled

CASE(VhostRingState, StartsEnabledWithoutProtocolFeatures,
     "vhost-user, Ring states: enabled from the start without protocol features") {
  open({.leave_features = vhost::kFeatureProtocolFeatures});
  configure();
  ASSERT_TRUE(session_->start_ring(0)) << session_->error();
  expect_io_works(*session_);
}

CASE(VhostRingState, StaysDisabledUntilEnabledWithProtocolFeatures,
     "vhost-user, Ring states: disabled until VHOST_USER_SET_VRING_ENABLE") {
  open();
  configure();
  ASSERT_TRUE(session_->start_ring(0)) << session_->error();
  blk().submit(read_request(0, 512));
  ring().kick_always();
  expect_unserved();
  // Enabling must look at the ring: the driver's kick is long over.
  EXPECT_EQ(enable(0, true), Verdict::kAccepted);
  expect_completes();
}

// A SET_FEATURES without bit 30 enables all rings, and no later one disables any: drivers repeat the message.
CASE(VhostRingState, FeaturesNeverDisableARing,
     "practice: vhost-user, Ring states: QEMU repeats VHOST_USER_SET_FEATURES") {
  open({.num_queues = 2, .leave_features = vhost::kFeatureProtocolFeatures});
  configure();
  ASSERT_TRUE(session_->start_ring(0)) << session_->error();
  expect_io_works(*session_, 0);
  ASSERT_TRUE(fe().set_u64(Request::kSetFeatures, session_->features() | vhost::kFeatureProtocolFeatures));
  expect_io_works(*session_, 0);
  ASSERT_TRUE(session_->start_ring(1)) << session_->error();
  expect_io_works(*session_, 1);
  // What SET_VRING_ENABLE says counts from then on.
  EXPECT_EQ(enable(0, false), Verdict::kAccepted);
  ASSERT_TRUE(fe().set_u64(Request::kSetFeatures, session_->features()));
  ASSERT_TRUE(fe().fence());
  blk().submit(read_request(0, 512));
  ring().kick_always();
  expect_unserved();
  EXPECT_EQ(enable(0, true), Verdict::kAccepted);
  expect_completes();
}

// Started and enabled are independent: either may come first.
CASE(VhostRingState, MayBeEnabledBeforeItStarts, "vhost-user, Ring states: started and enabled are independent") {
  open({.num_queues = 2});
  configure();
  EXPECT_EQ(enable(0, true), Verdict::kAccepted);
  EXPECT_EQ(enable(1, true), Verdict::kAccepted);
  ASSERT_TRUE(session_->start_ring(0)) << session_->error();
  expect_io_works(*session_, 0);
  ASSERT_TRUE(session_->start_ring(1)) << session_->error();
  expect_io_works(*session_, 1);
}

CASE(VhostRingState, EnablingAnUnconfiguredRingSucceeds, "vhost-user, VHOST_USER_SET_VRING_ENABLE") {
  open();
  for (uint32_t i = 0; i < session_->max_queues(); i++) {
    EXPECT_EQ(enable(i, true), Verdict::kAccepted) << i;
    EXPECT_EQ(enable(i, false), Verdict::kAccepted) << i;
  }
}

// Cloud Hypervisor pauses a guest by disabling its rings and nothing else.
CASE(VhostRingState, DisabledRingIsLeftAloneAndGoesOnWhenEnabled,
     "vhost-user, Ring states: disabled rings have no side effects") {
  open_and_start({.num_queues = 2});
  for (uint32_t round = 0; round < 3; round++) {
    expect_io_works(*session_, 0, round);
    EXPECT_EQ(enable(0, false), Verdict::kAccepted);
    blk().submit(read_request(0, 512));
    ring().kick_always();
    expect_unserved();
    expect_io_works(*session_, 1, round);
    EXPECT_EQ(enable(0, true), Verdict::kAccepted);
    expect_completes();
  }
}

// ---- Starting

// The ring starts with SET_VRING_KICK and is looked at once: what was published before needs no kick.
CASE(VhostRingState, ServesWhatWasPublishedBeforeItStarted,
     "practice: vhost-user, Ring states: Linux does not kick again after a reconnect") {
  open();
  configure();
  EXPECT_EQ(enable(0, true), Verdict::kAccepted);
  blk().add(read_request(0, 512));
  ring().publish();
  ASSERT_TRUE(session_->start_ring(0)) << session_->error();
  expect_completes();
}

// "VHOST_USER_SET_VRING_KICK": without a descriptor "polling should be used instead of waiting for the kick".
CASE(VhostRingState, PollsARingWithoutKickDescriptor, "vhost-user, VHOST_USER_SET_VRING_KICK: polling should be used") {
  open();
  configure();
  ASSERT_TRUE(session_->set_up_ring(0)) << session_->error();
  ASSERT_TRUE(fe().set_vring_fd(Request::kSetVringCall, 0, ring().call_fd()));
  ASSERT_TRUE(fe().set_vring_fd(Request::kSetVringKick, 0, -1));
  EXPECT_EQ(enable(0, true), Verdict::kAccepted);
  for (int i = 0; i < 10; i++) {
    blk().add(read_request(0, 512));
    ring().publish();
    expect_completes();
    ::usleep(5000);
  }
}

// "VHOST_USER_SET_VRING_CALL": without a descriptor the driver looks by itself.
CASE(VhostRingState, WorksWithoutCallDescriptor, "vhost-user, VHOST_USER_SET_VRING_CALL: polling will be used") {
  open();
  configure();
  ASSERT_TRUE(session_->set_up_ring(0)) << session_->error();
  ASSERT_TRUE(fe().set_vring_fd(Request::kSetVringCall, 0, -1));
  ASSERT_TRUE(fe().set_vring_fd(Request::kSetVringKick, 0, ring().kick_fd()));
  EXPECT_EQ(enable(0, true), Verdict::kAccepted);
  blk().poll_instead_of_calls(true);
  expect_io_works(*session_);
  // Taken away from a running ring, too.
  blk().poll_instead_of_calls(false);
  ASSERT_TRUE(fe().set_vring_fd(Request::kSetVringCall, 0, ring().call_fd()));
  expect_io_works(*session_);
  ASSERT_TRUE(fe().set_vring_fd(Request::kSetVringCall, 0, -1));
  ASSERT_TRUE(fe().fence());
  ring().drain_call();
  ring().enable_calls();
  blk().poll_instead_of_calls(true);
  blk().submit(read_request(0, 512));
  ASSERT_TRUE(blk().complete());
  EXPECT_EQ(ring().drain_call(), 0U) << "the old descriptor was signalled";
}

// libblkio gives the kick first; requests may complete before there is a call descriptor.
CASE(VhostRingState, CallDescriptorThatComesLateIsSignalledForWhatIsNew,
     "practice: vhost-user, VHOST_USER_SET_VRING_CALL: libblkio sends it after the kick") {
  open();
  configure();
  ASSERT_TRUE(session_->set_up_ring(0)) << session_->error();
  ASSERT_TRUE(fe().set_vring_fd(Request::kSetVringKick, 0, ring().kick_fd()));
  EXPECT_EQ(enable(0, true), Verdict::kAccepted);
  blk().submit(read_request(0, 512));
  ASSERT_TRUE(blk().complete(kTimeoutMs, false));
  ASSERT_TRUE(fe().set_vring_fd(Request::kSetVringCall, 0, ring().call_fd()));
  expect_io_works(*session_);
}

CASE(VhostRingState, ReplacedCallDescriptorIsTheOneThatIsSignalled,
     "vhost-user, VHOST_USER_SET_VRING_CALL; Ring states: configuration may change on the fly") {
  open_and_start();
  UniqueFd old(::fcntl(ring().call_fd(), F_DUPFD_CLOEXEC, 0));
  ring().renew_call_fd();
  ASSERT_TRUE(fe().set_vring_fd(Request::kSetVringCall, 0, ring().call_fd()));
  ASSERT_TRUE(fe().fence());
  uint64_t drained = 0;
  [[maybe_unused]] ssize_t n = ::read(old.get(), &drained, sizeof(drained));
  expect_io_works(*session_);
  EXPECT_LT(::read(old.get(), &drained, sizeof(drained)), 0) << "the old descriptor was signalled";
}

// ---- Stopping

// "VHOST_USER_GET_VRING_BASE" stops the ring that it names; the others go on.
CASE(VhostRingState, GetVringBaseStopsOnlyItsRing, "vhost-user, Ring states: VHOST_USER_GET_VRING_BASE stops a ring") {
  open_and_start({.num_queues = 2});
  expect_io_works(*session_, 0);
  expect_io_works(*session_, 1);
  auto base = fe().get_vring_base(0);
  ASSERT_TRUE(base) << session_->error();
  EXPECT_EQ(*base, ring(0).base());
  blk(0).submit(read_request(0, 512));
  ring(0).kick_always();
  expect_unserved(0);
  for (uint32_t i = 0; i < 5; i++) expect_io_works(*session_, 1, i);
}

// "Ring states": set up again at the answered base, it goes on with the first request that was not taken.
CASE(VhostRingState, RestartContinuesWhereItStopped,
     "vhost-user, VHOST_USER_GET_VRING_BASE; VHOST_USER_SET_VRING_BASE") {
  open_and_start();
  for (uint32_t round = 0; round < 5; round++) {
    expect_io_works(*session_, 0, round);
    ASSERT_TRUE(session_->stop_ring(0)) << session_->error();
    EXPECT_EQ(session_->base(), ring().base());
    blk().submit(read_request(0, 512));
    expect_unserved();
    ASSERT_TRUE(session_->start_ring(0)) << session_->error();
    expect_completes();
    EXPECT_EQ(ring().violation(), "");
  }
}

CASE(VhostRingState, GetVringBaseOfARingThatNeverStartedAnswersWhatWasSet, "vhost-user, VHOST_USER_GET_VRING_BASE") {
  open({.num_queues = 2});
  EXPECT_EQ(fe().get_vring_base(0), 0U) << session_->error();
  ASSERT_TRUE(fe().set_vring_base(1, 41));
  EXPECT_EQ(fe().get_vring_base(1), 41U) << session_->error();
  EXPECT_EQ(fe().get_vring_base(1), 41U) << "again: " << session_->error();
}

CASE(VhostRingState, StartsAtTheBaseThatWasSetAndWrapsAround, "vhost-user, VHOST_USER_SET_VRING_BASE") {
  open_and_start({.start_index = 65530});
  for (uint32_t i = 0; i < 10; i++) expect_io_works(*session_, 0, i);
  EXPECT_EQ(ring().used_idx(), static_cast<uint16_t>(65530 + 20));
  ASSERT_TRUE(session_->stop_ring(0)) << session_->error();
  EXPECT_EQ(session_->base(), ring().base());
  if (!session_->has(vhost::kFeatureRingPacked)) EXPECT_EQ(session_->base(), 14U);
}

// "VHOST_USER_GET_VRING_BASE": when the answer is there, what the device has taken is complete and nothing follows.
CASE(VhostRingState, GetVringBaseAnswersWhenAllThatWasTakenIsComplete,
     "vhost-user, VHOST_USER_GET_VRING_BASE; Suspended device state") {
  open_and_start();
  for (uint32_t round = 0; round < 10; round++) {
    for (int i = 0; i < 32; i++) blk().add(read_request(0, 32768));
    ring().publish();
    ring().kick_always();
    ASSERT_TRUE(session_->stop_ring(0)) << session_->error();
    const uint16_t used = ring().used_idx();
    if (!session_->has(vhost::kFeatureRingPacked)) {
      EXPECT_EQ(used, static_cast<uint16_t>(session_->base())) << "round " << round;
    }
    ::usleep(2000);
    EXPECT_EQ(ring().used_idx(), used) << "round " << round << ": completed after the answer";
    ASSERT_TRUE(session_->start_ring(0)) << session_->error();
    for (int i = 0; i < 32; i++) expect_completes();
    if (HasFailure()) return;
  }
}

// When disabling is acknowledged, nothing that was taken is still on its way: a snapshot may be taken.
CASE(VhostRingState, NothingIsCompletedOnceDisablingIsAcknowledged,
     "practice: vhost-user, VHOST_USER_SET_VRING_ENABLE: Cloud Hypervisor pauses a guest by it") {
  open_and_start();
  SKIP_UNLESS(session_->has_protocol(vhost::kProtocolReplyAck));
  for (uint32_t round = 0; round < 10; round++) {
    for (int i = 0; i < 32; i++) blk().add(read_request(0, 32768));
    ring().publish();
    ring().kick_always();
    ASSERT_EQ(enable(0, false), Verdict::kAccepted);
    const uint16_t used = ring().used_idx();
    ::usleep(2000);
    EXPECT_EQ(ring().used_idx(), used) << "round " << round;
    ASSERT_EQ(enable(0, true), Verdict::kAccepted);
    for (int i = 0; i < 32; i++) expect_completes();
    if (HasFailure()) return;
  }
}

// "Suspended device": with all rings stopped the back end writes nothing and signals nothing.
CASE(VhostRingState, SuspendedDeviceIsSilent, "vhost-user, Suspended device state") {
  open_and_start({.num_queues = 2});
  expect_io_works(*session_, 0);
  for (uint32_t i = 0; i < 2; i++) ASSERT_TRUE(session_->stop_ring(i)) << session_->error();
  for (uint32_t i = 0; i < 2; i++) {
    ring(i).drain_call();
    ring(i).enable_calls();
    blk(i).submit(read_request(0, 512));
    ring(i).kick_always();
    expect_unserved(i);
    EXPECT_EQ(ring(i).drain_call(), 0U);
  }
  if (session_->backend_channel() != nullptr) EXPECT_TRUE(session_->backend_channel()->local.stays_silent());
  EXPECT_TRUE(fe().channel().stays_silent());
}

// "VHOST_USER_SET_STATUS": QEMU announces the reset before it stops the rings, whose bases it still wants to know.
CASE(VhostRingState, StatusZeroDoesNotResetRings,
     "practice: vhost-user, VHOST_USER_SET_STATUS: QEMU asks for the bases afterwards") {
  open_and_start();
  SKIP_UNLESS(session_->has_protocol(vhost::kProtocolStatus));
  expect_io_works(*session_);
  ASSERT_TRUE(fe().set_u64(Request::kSetStatus, 0));
  auto base = fe().get_vring_base(0);
  ASSERT_TRUE(base) << session_->error();
  EXPECT_EQ(*base, ring().base());
}

// "VHOST_USER_GET_STATUS" answers what SET_STATUS set.
CASE(VhostRingState, RemembersTheStatus, "vhost-user, VHOST_USER_GET_STATUS") {
  open();
  SKIP_UNLESS(session_->has_protocol(vhost::kProtocolStatus));
  for (uint64_t status : {1U, 3U, 11U, 15U, 0U}) {
    ASSERT_TRUE(fe().set_u64(Request::kSetStatus, status));
    EXPECT_EQ(fe().get_u64(Request::kGetStatus), status) << session_->error();
  }
}

// "VHOST_USER_RESET_DEVICE": rings stop and are disabled, the connection and its owner stay.
CASE(VhostRingState, ResetDeviceStopsAllRingsAndKeepsTheSession, "vhost-user, VHOST_USER_RESET_DEVICE") {
  open_and_start({.num_queues = 2});
  SKIP_UNLESS(session_->has_protocol(vhost::kProtocolResetDevice));
  expect_io_works(*session_, 0);
  EXPECT_EQ(fe().judge(Request::kResetDevice), Verdict::kAccepted);
  blk(0).submit(read_request(0, 512));
  ring(0).kick_always();
  expect_unserved(0);
  for (uint32_t i = 0; i < 2; i++) {
    session_->renew_ring(i);
  }
  ASSERT_TRUE(session_->start()) << session_->error();
  for (uint32_t i = 0; i < 2; i++) expect_io_works(*session_, i);
}

// "VHOST_USER_SET_VRING_NUM": a split ring's size is a power of two, 32,768 at most.
CASE(VhostRingState, RefusesOrNeverRunsImpossibleSizes,
     "practice: a front end that breaks virtio 1.2, 2.7 Split Virtqueues: queue size") {
  open({.num_queues = 2});
  configure();
  for (uint32_t num : {0U, 3U, 100U, 65536U, 0x8000'0000U, 0xffff'ffffU}) {
    Verdict verdict = fe().judge(Request::kSetVringNum, bytes_of(VringState{0, num}));
    if (verdict == Verdict::kAccepted) {  // then starting must fail, or serve nothing
      fe().judge(Request::kSetVringAddr, bytes_of(ring().vring_addr(0)));
      fe().judge(Request::kSetVringKick, bytes_of(uint64_t{0}), repeat(ring().kick_fd(), 1));
      fe().judge(Request::kSetVringEnable, bytes_of(VringState{0, 1}));
      blk().submit(read_request(0, 512));
      ring().kick_always();
      expect_unserved();
      blk().reset();
    } else {
      EXPECT_NE(verdict, Verdict::kSilent) << num;
    }
    if (!fe().fence()) {
      open({.num_queues = 2});
      configure();
    }
  }
  session_->close();
  expect_target_alive();
}

// Ring addresses outside memory, misaligned or running over a region's end must not be used.
CASE(VhostRingState, NeverRunsARingAtAnImpossibleAddress,
     "practice: a front end that breaks virtio 1.2, 2.7 Split Virtqueues: alignment, and vhost-user, Memory access") {
  struct Case {
    const char* what;
    uint64_t vhost::VringAddr::* field;
    uint64_t change;  // added
  };
  const Case cases[] = {{"desc unmapped", &vhost::VringAddr::desc, uint64_t{1} << 60},
                        {"avail unmapped", &vhost::VringAddr::avail, uint64_t{1} << 60},
                        {"used unmapped", &vhost::VringAddr::used, uint64_t{1} << 60},
                        {"desc misaligned", &vhost::VringAddr::desc, 8},
                        {"avail misaligned", &vhost::VringAddr::avail, 1},
                        {"used misaligned", &vhost::VringAddr::used, 2},
                        {"desc over the end", &vhost::VringAddr::desc, (8 << 20) - 32},
                        {"used over the end", &vhost::VringAddr::used, ((8 << 20) - 8192)},
                        {"desc wraps", &vhost::VringAddr::desc, ~uint64_t{0x7f76'ffff'ffff}}};
  for (const auto& one : cases) {
    // There is a structure of four bytes only in a packed ring's place.
    const bool fits_if_packed = std::string_view(one.what) == "used over the end";
    open({.num_queues = 2, .leave_features = fits_if_packed ? vhost::kFeatureRingPacked : 0});
    configure();
    ASSERT_TRUE(fe().set_vring_num(0, ring().size()));
    ASSERT_TRUE(fe().set_vring_base(0, ring().base()));
    vhost::VringAddr addr = ring().vring_addr(0);
    addr.*one.field += one.change;
    blk().add(read_request(0, 512));
    ring().publish();
    fe().judge(Request::kSetVringAddr, bytes_of(addr));
    fe().judge(Request::kSetVringKick, bytes_of(uint64_t{0}), repeat(ring().kick_fd(), 1));
    fe().judge(Request::kSetVringEnable, bytes_of(VringState{0, 1}));
    uint16_t before = ring().used_idx();
    ::usleep(20'000);
    EXPECT_EQ(ring().used_idx(), before) << one.what;
    // The other ring of the session works, if the session has survived.
    if (fe().fence()) {
      ASSERT_TRUE(session_->start_ring(1)) << one.what << ": " << session_->error();
      ASSERT_TRUE(fe().set_vring_enable(1, true));
      expect_io_works(*session_, 1);
    }
    session_->close();
  }
  expect_target_alive();
}

}  // namespace
}  // namespace sluice::test
