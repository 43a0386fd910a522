// What can be seen only with the target in this process: requests that are held, flushes, a bdev that changes or goes.
#include "test/vhost/in_process_fixture.h"

namespace sluice::test {
namespace {

using vhost::BlkConfig;
using vhost::BlkStatus;
using vhost::Header;
using vhost::Request;
using vhost::VringState;

class VhostInProcess : public OneFrontEnd {
 public:
  BlkConfig config() { return config_of(*session_); }
  void submit_reads(int count, size_t size) {
    for (int i = 0; i < count; i++) blk().add(read_request(0, size));
    ring().publish();
    ring().kick_always();
  }
};

TEST_F(VhostInProcess, ConfigurationIsThatOfTheBdev) {
  start();
  EXPECT_EQ(config().capacity, options().size_bytes / vhost::kSectorSize);
  EXPECT_EQ(config().blk_size, options().block_size);
}

TEST_F(VhostInProcess, FlushesReachTheBdev) {
  start();
  EXPECT_EQ(blk().flush(), BlkStatus::kOk);
  EXPECT_GE(flush_count(), 1);
}

TEST_F(VhostInProcess, WriteBackWritesAreNotFlushed) {
  start();
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureFlush));
  int before = flush_count();
  for (uint32_t i = 0; i < 5; i++) EXPECT_EQ(blk().write(i, Bytes(512)), BlkStatus::kOk);
  EXPECT_EQ(flush_count(), before);
}

// "Device Operation": without FLUSH and CONFIG_WCE the driver has no way to ask, so each write is stable when it
// completes.
TEST_F(VhostInProcess, WritesThroughWhenNeitherFlushNorConfigWceIsNegotiated) {
  start({.leave_features = vhost::kBlkFeatureFlush | vhost::kBlkFeatureConfigWce});
  for (uint32_t i = 0; i < 3; i++) {
    int before = flush_count();
    EXPECT_EQ(blk().write(i, pattern(512, i)), BlkStatus::kOk);
    EXPECT_GT(flush_count(), before);
  }
  Bytes back(512);
  EXPECT_EQ(blk().read(2, back), BlkStatus::kOk);
  EXPECT_TRUE(back == pattern(512, 2));
}

// Statistics: the flush that follows a write moves none of its bytes.
TEST_F(VhostInProcess, FlushesOfWritesThroughCountNoBytes) {
  start({.leave_features = vhost::kBlkFeatureFlush | vhost::kBlkFeatureConfigWce});
  EXPECT_EQ(blk().write(0, pattern(8192, 1)), BlkStatus::kOk);
  EXPECT_EQ(iostat().of(IoType::kFlush).ops, 1U);
  EXPECT_EQ(iostat().of(IoType::kFlush).bytes, 0U);
  EXPECT_EQ(iostat().of(IoType::kWrite).bytes, 8192U);
}

// The same with the write cache switched off by the driver.
TEST_F(VhostInProcess, WritesThroughWithTheWriteCacheOff) {
  start();
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureConfigWce));
  ASSERT_TRUE(fe().set_config(offsetof(vhost::BlkConfig, writeback), {0}));
  ASSERT_TRUE(fe().fence());
  int before = flush_count();
  EXPECT_EQ(blk().write(0, Bytes(512)), BlkStatus::kOk);
  EXPECT_GT(flush_count(), before);
  ASSERT_TRUE(fe().set_config(offsetof(vhost::BlkConfig, writeback), {1}));
  ASSERT_TRUE(fe().fence());
  before = flush_count();
  EXPECT_EQ(blk().write(0, Bytes(512)), BlkStatus::kOk);
  EXPECT_EQ(flush_count(), before);
}

TEST_F(VhostInProcess, RequestsFailWhenTheBdevIsRemoved) {
  start();
  expect_io_works(*session_);
  remove_bdev();
  // The session may be ended, or the guest gets errors; the target itself goes on.
  auto outcome = blk().run(read_request(0, 512), kTimeoutMs);
  if (outcome) EXPECT_EQ(outcome->status(), BlkStatus::kIoErr);
  session_.reset();
  expect_target_alive(1);
}

TEST_F(VhostInProcess, CompletesHeldRequestsOfARemovedBdev) {
  start();
  hold_io();
  blk().submit(read_request(0, 4096));
  wait_until_held(1);
  remove_bdev();
  release_io();
  blk().complete();
  session_.reset();
  expect_target_alive(1);
}

// "VHOST_USER_BACKEND_CONFIG_CHANGE_MSG". QEMU asks for the configuration before it answers, so the target must not
// wait.
TEST_F(VhostInProcess, AnnouncesANewCapacityAndServesItMeanwhile) {
  for (Dialect dialect : {Dialect::kQemu72, Dialect::kCloudHypervisor, Dialect::kUml}) {
    session_.reset();
    session_ = running({.dialect = dialect});
    ASSERT_FALSE(HasFailure());
    SKIP_UNLESS(session_->backend_channel() != nullptr);
    Channel& channel = session_->backend_channel()->local;
    uint64_t capacity = config().capacity * 2;
    resize_bdev(capacity * vhost::kSectorSize);
    auto news = channel.receive();
    ASSERT_TRUE(news) << to_string(dialect);
    EXPECT_EQ(news->header.request, static_cast<uint32_t>(vhost::BackendRequest::kConfigChangeMsg));
    EXPECT_EQ(news->header.flags & vhost::kVersionMask, vhost::kVersion);
    EXPECT_EQ(news->header.flags & vhost::kReplyFlag, 0U);
    EXPECT_EQ(news->header.size, 0U);
    EXPECT_EQ(config().capacity, capacity) << "before the message is answered";
    if ((news->header.flags & vhost::kNeedReplyFlag) != 0) {
      Header header{news->header.request, vhost::kReplyFlags, 8};
      EXPECT_TRUE(channel.send_message(header, bytes_of(uint64_t{0})));
    }
    Bytes data(512);
    EXPECT_EQ(blk().read(capacity - 1, data), vhost::BlkStatus::kOk);
    expect_io_works(*session_);
  }
}

// The same: an answer that never comes, or a channel that is gone, disturbs nothing.
TEST_F(VhostInProcess, UnansweredOrClosedBackendChannelIsHarmless) {
  start();
  SKIP_UNLESS(session_->backend_channel() != nullptr);
  uint64_t bytes = options().size_bytes;
  for (int i = 0; i < 5; i++) {
    bytes += 1 << 20;
    resize_bdev(bytes);
    EXPECT_EQ(config().capacity, bytes / vhost::kSectorSize);
    expect_io_works(*session_);
  }
  session_->backend_channel()->local.close();
  bytes += 1 << 20;
  resize_bdev(bytes);
  EXPECT_EQ(config().capacity, bytes / vhost::kSectorSize);
  expect_io_works(*session_);
}

TEST_F(VhostInProcess, FrontEndMayDieWhileRequestsAreHeld) {
  start();
  hold_io();
  submit_reads(8, 4096);
  wait_until_held(8);
  session_.reset();
  ::usleep(kQuietMs * 1000);
  release_io();
  expect_target_alive();
}

// Requests that are in flight when the ring breaks are completed, each once.
TEST_F(VhostInProcess, CompletesWhatIsInFlight) {
  start({.num_queues = 2, .leave_features = vhost::kFeatureRingPacked});
  hold_io();
  submit_reads(8, 512);
  wait_until_held(8);
  ring().publish_head(0xffff);
  ring().publish();
  ring().kick_always();
  EXPECT_TRUE(ring().err_signalled());
  release_io();
  // The ring as it is cannot be trusted, so whether the guest hears of them is open; the stop must wait for them.
  EXPECT_TRUE(session_->stop_ring(0)) << session_->error();
  while (blk().complete(0, false)) {
  }
  EXPECT_EQ(ring().violation(), "");
  expect_io_works(*session_, 1);
}

// A turn takes half of what is available, at least 16 and at most 64; each batch is published, and told, once.
TEST_F(VhostInProcess, IsServedInHalves) {
  start({.queue_size = 512, .leave_features = vhost::kFeatureEventIdx | vhost::kFeatureRingPacked});
  expect_io_works(*session_);
  const auto calls = [this] { return session_info().queues.at(0).stats.calls; };
  uint64_t expected = calls();
  struct Case {
    int available;
    uint64_t batches;
  };
  for (const Case& test : {Case{1, 1}, Case{16, 1}, Case{17, 2}, Case{32, 2}, Case{48, 3}, Case{128, 4}}) {
    ring().enable_calls();
    submit_reads(test.available, 512);
    for (int i = 0; i < test.available; i++) ASSERT_TRUE(blk().complete(kTimeoutMs, false)) << ring().violation();
    expected += test.batches;
    // The last call may come later than what it tells of. One too many would show in the next round.
    EXPECT_TRUE(eventually([&] { return calls() >= expected; }));
    EXPECT_EQ(calls(), expected) << test.available;
  }
}

// After the ack of disabling, nothing writes into guest memory: a snapshot may be taken.
TEST_F(VhostInProcess, DisablingWaitsForRequestsInFlight) {
  start({.num_queues = 2});
  hold_io();
  blk().submit(read_request(0, 4096));
  wait_until_held(1);
  ASSERT_TRUE(
      fe().send(Request::kSetVringEnable, bytes_of(VringState{0, 0}), {}, vhost::kVersion | vhost::kNeedReplyFlag));
  EXPECT_TRUE(fe().channel().stays_silent()) << "acked with a request in flight";
  release_io();
  EXPECT_EQ(fe().judge_ack(Request::kSetVringEnable), Verdict::kAccepted);
  EXPECT_EQ(ring().used_idx(), 1) << "the request in flight must be complete when the ack arrives";
  auto outcome = blk().complete();
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->status(), BlkStatus::kOk);
}

TEST_F(VhostInProcess, GetVringBaseWaitsForRequestsInFlightAndForNobodyElse) {
  start({.num_queues = 2});
  hold_io();
  submit_reads(3, 4096);
  wait_until_held(3);
  ASSERT_TRUE(fe().send(Request::kGetVringBase, bytes_of(VringState{0, 0})));
  EXPECT_TRUE(fe().channel().stays_silent()) << "answered with requests in flight";
  expect_target_alive(1);
  release_io();
  auto reply = fe().receive();
  ASSERT_TRUE(reply);
  auto state = reply->as<VringState>();
  ASSERT_TRUE(state);
  EXPECT_EQ(state->num, ring().base());
  EXPECT_EQ(ring().used_idx(), 3) << "all must be complete when the answer arrives";
}

}  // namespace
}  // namespace sluice::test
