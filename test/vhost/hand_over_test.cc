// A front end whose target gives it up, and another one takes it over, without its noticing more than a pause.
#include <fcntl.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>

#include <future>

#include "app/conformance/log_file.h"
#include "test/vhost/in_process_fixture.h"

namespace sluice::test {
namespace {

using vhost::BlkStatus;
using vhost::ControllerState;
using vhost::Request;
using vhost::RingFault;

UniqueFd copy_of(const UniqueFd& fd) { return UniqueFd(fd ? ::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0) : -1); }

// What another process gets: descriptors of its own of the same open files.
std::vector<ControllerState> copy_of(const std::vector<ControllerState>& states) {
  std::vector<ControllerState> copies;
  for (const ControllerState& state : states) {
    ControllerState copy{.name = state.name, .listener = copy_of(state.listener), .session = {}};
    if (state.session) {
      const vhost::SessionState& from = *state.session;
      vhost::SessionState& to =
          copy.session.emplace(vhost::SessionState{.socket = copy_of(from.socket),
                                                   .features = from.features,
                                                   .protocol_features = from.protocol_features,
                                                   .rings_enabled = from.rings_enabled,
                                                   .writeback = from.writeback,
                                                   .status = from.status,
                                                   .backend_channel = copy_of(from.backend_channel),
                                                   .memory = from.memory,
                                                   .inflight = from.inflight,
                                                   .log = from.log,
                                                   .rings = {}});
      for (const vhost::RingState& ring : from.rings) {
        to.rings.push_back({.index = ring.index,
                            .size = ring.size,
                            .addresses = ring.addresses,
                            .base = ring.base,
                            .enabled = ring.enabled,
                            .started = ring.started,
                            .fault = ring.fault,
                            .kick = copy_of(ring.kick),
                            .call = copy_of(ring.call),
                            .error = copy_of(ring.error)});
      }
    }
    copies.push_back(std::move(copy));
  }
  return copies;
}

class VhostHandOver : public OneFrontEnd {
 public:
  void start(SessionOptions options = {.num_queues = 2}) { OneFrontEnd::start(std::move(options)); }
  void submit_reads(int count, size_t queue = 0) {
    for (int i = 0; i < count; i++) blk(queue).add(read_request(64, 8192));
    ring(queue).publish();
    ring(queue).kick();
  }
  void expect_reads(int count, const Bytes& data, size_t queue = 0) {
    for (int i = 0; i < count; i++) {
      const auto outcome = blk(queue).complete();
      ASSERT_TRUE(outcome) << i << " of " << count << " " << ring(queue).violation();
      EXPECT_EQ(outcome->status(), BlkStatus::kOk);
      EXPECT_TRUE(outcome->data() == data);
    }
    EXPECT_EQ(ring(queue).outstanding(), 0U);
    EXPECT_EQ(ring(queue).violation(), "");
  }
};

TEST_F(VhostHandOver, AFrontEndOfAnyDialectGoesOn) {
  for (const Dialect dialect : kAllDialects) {
    session_.reset();
    start({.dialect = dialect});
    ASSERT_FALSE(HasFailure()) << to_string(dialect);
    for (uint32_t round = 0; round < 3; round++) {
      expect_io_works(*session_, 0, round);
      hand_over();
      expect_io_works(*session_, 0, round + 10);
      EXPECT_TRUE(fe().fence()) << to_string(dialect);
    }
    if (dialect != Dialect::kQemu72 && dialect != Dialect::kQemu9) continue;  // the others do not stop rings
    ASSERT_TRUE(session_->stop()) << session_->error();
    hand_over();
    ASSERT_TRUE(session_->start()) << session_->error();
    expect_io_works(*session_);
  }
}

// A guest may have all rings that there are, but use none.
TEST_F(VhostHandOver, AFrontEndWithoutRunningQueuesGoesOn) {
  session_ = opened({.num_queues = vhost::kMaxQueues});
  ASSERT_FALSE(HasFailure());
  hand_over();
  ASSERT_TRUE(session_->start()) << session_->error();
  hand_over();
  expect_io_works(*session_);
}

TEST_F(VhostHandOver, WhatIsInFlightIsDoneBeforeAndWhatIsKickedMeanwhileAfterwards) {
  start();
  const Bytes data = pattern(8192, 4);
  ASSERT_EQ(blk().write(64, data), BlkStatus::kOk);
  hold_io();
  submit_reads(8, 0);
  submit_reads(8, 1);
  wait_until_held(16);
  auto giving_up = std::async(std::launch::async, [this] { return knobs().give_up(); });
  EXPECT_EQ(giving_up.wait_for(std::chrono::milliseconds(kQuietMs)), std::future_status::timeout);
  knobs().release_io(0);
  auto states = giving_up.get();
  submit_reads(4, 0);
  EXPECT_TRUE(fe().send(Request::kGetFeatures)) << "a message, too, is answered by the next one";
  EXPECT_TRUE(fe().channel().stays_silent());
  expect_reads(8, data, 1);
  knobs().take_over(std::move(states));
  knobs().go_on();
  expect_reads(12, data, 0);
  EXPECT_TRUE(fe().receive());
  expect_io_works(*session_, 1);
}

TEST_F(VhostHandOver, NothingIsLostUnderLoad) {
  start();
  const Repeated handing_over([this] {
    hand_over();
    return true;
  });
  const Deadline deadline(5 * kTimeoutMs);
  for (uint32_t i = 0; (i < 200 || handing_over.count() < 50) && !deadline.passed() && !HasFailure(); i++) {
    const Bytes data = pattern(8192, i);
    ASSERT_EQ(blk(i % 2).write(64, data), BlkStatus::kOk);
    submit_reads(16, 0);
    submit_reads(16, 1);
    expect_reads(16, data, 1);  // in this order the guest's memory is given back
    expect_reads(16, data, 0);
  }
  EXPECT_GE(handing_over.count(), 50U);
}

// What the driver has negotiated, and set since.
TEST_F(VhostHandOver, TheStateOfTheDeviceIsKept) {
  start();
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureConfigWce));
  ASSERT_TRUE(fe().set_config(offsetof(vhost::BlkConfig, writeback), {0}));
  ASSERT_TRUE(fe().fence());
  hand_over();
  EXPECT_EQ(config_of(*session_).writeback, 0);
  const int before = flush_count();
  EXPECT_EQ(blk().write(0, Bytes(512)), BlkStatus::kOk);
  EXPECT_GT(flush_count(), before) << "written through";
  SKIP_UNLESS(session_->backend_channel() != nullptr);
  resize_bdev(2 * options().size_bytes);
  EXPECT_TRUE(session_->backend_channel()->local.receive());
}

TEST_F(VhostHandOver, PagesAreLoggedAsBefore) {
  start();
  SKIP_UNLESS(session_->has_protocol(vhost::kProtocolLogShmfd));
  const LogFile log;
  ASSERT_TRUE(fe().query(Request::kSetLogBase, bytes_of(log.description()), repeat(log.fd(), 1)));
  ASSERT_TRUE(fe().set_u64(Request::kSetFeatures, session_->features() | vhost::kFeatureLogAll) && fe().fence());
  hand_over();
  EXPECT_TRUE(log.marked().empty());
  submit_reads(1);
  expect_reads(1, Bytes(8192));
  EXPECT_FALSE(log.marked().empty());
}

TEST_F(VhostHandOver, ABrokenRingStaysBrokenAndADisabledOneDisabled) {
  start({.num_queues = 2, .leave_features = vhost::kFeatureRingPacked});
  ring(0).set_avail_idx(static_cast<uint16_t>(ring(0).avail_idx() + 1000));
  ring(0).kick_always();
  EXPECT_TRUE(eventually([&] { return session_info().queues.at(0).fault == RingFault::kAvailJump; }));
  hand_over();
  EXPECT_EQ(session_info().queues.at(0).fault, RingFault::kAvailJump);
  expect_io_works(*session_, 1);
  ASSERT_TRUE(fe().set_vring_enable(1, false));
  ASSERT_TRUE(fe().fence());
  hand_over();
  EXPECT_FALSE(session_info().queues.at(1).running);
  ASSERT_TRUE(fe().set_vring_enable(1, true));
  expect_io_works(*session_, 1);
}

TEST_F(VhostHandOver, WhoConnectsMeanwhileIsServedAfterwards) {
  auto states = knobs().give_up();
  FrontEnd waiting;
  ASSERT_TRUE(waiting.connect(socket_path()));
  ASSERT_TRUE(waiting.send(Request::kGetFeatures));
  EXPECT_TRUE(waiting.channel().stays_silent());
  knobs().take_over(std::move(states));
  knobs().go_on();
  EXPECT_TRUE(waiting.receive());
  waiting.channel().close();
  expect_target_alive();
}

TEST_F(VhostHandOver, AHalfMessageIsWaitedForAndItsGuestServedMeanwhile) {
  start();
  const Bytes message = bytes_of(vhost::Header{static_cast<uint32_t>(Request::kGetFeatures), vhost::kVersion, 0});
  ASSERT_TRUE(fe().channel().send_bytes(std::span(message).first(5)));
  int unread = -1;
  EXPECT_TRUE(eventually([&] { return ::ioctl(fe().channel().fd(), SIOCOUTQ, &unread) == 0 && unread == 0; }));
  auto giving_up = std::async(std::launch::async, [this] { return knobs().give_up(); });
  EXPECT_EQ(giving_up.wait_for(std::chrono::milliseconds(kQuietMs)), std::future_status::timeout);
  expect_io_works(*session_);
  ASSERT_TRUE(fe().channel().send_bytes(std::span(message).subspan(5)));
  EXPECT_TRUE(fe().receive());
  knobs().take_over(giving_up.get());
  knobs().go_on();
  expect_io_works(*session_);
}

TEST_F(VhostHandOver, OneThatFailsBeforeItGoesOnLeavesEverythingToTheFirst) {
  start();
  expect_io_works(*session_);
  auto states = knobs().give_up();
  const Bytes data = pattern(8192, 1);
  submit_reads(4);
  knobs().take_over(copy_of(states));
  EXPECT_EQ(ring().used_idx(), ring().used_taken()) << "it has not gone on";
  knobs().abandon();
  EXPECT_TRUE(fe().channel().stays_silent());
  knobs().take_over(std::move(states));
  knobs().go_on();
  expect_reads(4, data);
  session_.reset();
  expect_target_alive();
}

}  // namespace
}  // namespace sluice::test
