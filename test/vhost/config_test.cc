// The configuration space of the block device, and the news that it has changed.
#include "test/vhost/target_fixture.h"

namespace sluice::test {
namespace {

using ::testing::AnyOf;
using vhost::BlkConfig;
using vhost::ConfigHeader;
using vhost::Header;
using vhost::Request;

class VhostConfig : public TargetFixture {
 public:
  void SetUp() override {
    TargetFixture::SetUp();
    if (IsSkipped()) return;
    session_ = std::make_unique<Session>(SessionOptions{.dialect = Dialect::kQemu72});
    ASSERT_TRUE(session_->open(socket_path())) << session_->error();
  }
  FrontEnd& fe() { return session_->front_end(); }
  BlkConfig config() {
    BlkConfig config;
    auto bytes = fe().get_config(0, sizeof(config));
    EXPECT_TRUE(bytes) << fe().error();
    if (bytes) std::memcpy(&config, bytes->data(), sizeof(config));
    return config;
  }

 protected:
  std::unique_ptr<Session> session_;
};

// VIRTIO, "Block Device / Device configuration layout".
TEST_F(VhostConfig, DescribesTheDevice) {
  BlkConfig blk = config();
  EXPECT_EQ(blk.capacity, options().size_bytes / vhost::kSectorSize);
  if (session_->has(vhost::kBlkFeatureBlkSize)) EXPECT_EQ(blk.blk_size, options().block_size);
  if (session_->has(vhost::kBlkFeatureMq)) EXPECT_EQ(blk.num_queues, session_->max_queues());
  if (session_->has(vhost::kBlkFeatureSegMax)) EXPECT_GT(blk.seg_max, 0U);
  if (session_->has(vhost::kBlkFeatureConfigWce)) EXPECT_LE(blk.writeback, 1);
  if (session_->has(vhost::kBlkFeatureDiscard)) {
    EXPECT_GT(blk.max_discard_sectors, 0U);
    EXPECT_GT(blk.max_discard_seg, 0U);
  }
  if (session_->has(vhost::kBlkFeatureWriteZeroes)) {
    EXPECT_GT(blk.max_write_zeroes_sectors, 0U);
    EXPECT_GT(blk.max_write_zeroes_seg, 0U);
  }
}

// VIRTIO, "Block Device / Feature bits": CONFIG_WCE can be offered only with FLUSH.
TEST_F(VhostConfig, OffersFlushWithConfigWce) {
  if ((session_->offered() & vhost::kBlkFeatureConfigWce) != 0)
    EXPECT_NE(session_->offered() & vhost::kBlkFeatureFlush, 0U);
  EXPECT_NE(session_->offered() & vhost::kFeatureVersion1, 0U);
  EXPECT_NE(session_->offered() & vhost::kFeatureProtocolFeatures, 0U);
}

// "VHOST_USER_GET_CONFIG": the reply has the request's size, whatever part of the space it asks for.
TEST_F(VhostConfig, AnswersAnyOffsetAndLengthWithinTheSpace) {
  auto whole = fe().get_config(0, vhost::kMaxConfigSize);
  ASSERT_TRUE(whole) << fe().error();
  for (size_t i = sizeof(BlkConfig); i < whole->size(); i++) EXPECT_EQ((*whole)[i], 0) << "offset " << i;
  std::vector<std::pair<uint32_t, uint32_t>> ranges = {{0, 57},  {0, 60},  {32, 1},   {34, 2},  {7, 5},
                                                       {59, 1},  {58, 4},  {60, 196}, {255, 1}, {20, 40},
                                                       {0, 256}, {128, 8}, {1, 255}};
  for (uint32_t size = 1; size <= 60; size++) ranges.push_back({0, size});
  for (auto [offset, size] : ranges) {
    auto part = fe().get_config(offset, size);
    ASSERT_TRUE(part) << fe().error() << " at " << offset << ", " << size;
    EXPECT_TRUE(std::equal(part->begin(), part->end(), whole->begin() + offset)) << offset << ", " << size;
  }
}

// The same: the reply repeats offset and size of the request.
TEST_F(VhostConfig, ReplyRepeatsOffsetAndSize) {
  auto reply = fe().query(Request::kGetConfig, bytes_of(ConfigHeader{8, 16, 0}) + Bytes(16));
  ASSERT_TRUE(reply) << fe().error();
  ASSERT_EQ(reply->payload.size(), sizeof(ConfigHeader) + 16);
  ConfigHeader header;
  std::memcpy(&header, reply->payload.data(), sizeof(header));
  EXPECT_EQ(header.offset, 8U);
  EXPECT_EQ(header.size, 16U);
}

// "Virtio device config space": the flags concern SET_CONFIG, yet several front ends read with flags 1.
TEST_F(VhostConfig, IgnoresFlagsWhenReading) {
  auto plain = fe().get_config(0, 60);
  ASSERT_TRUE(plain) << fe().error();
  for (uint32_t flags : {1U, 2U, 0xffff'ffffU}) EXPECT_EQ(fe().get_config(0, 60, flags), plain) << fe().error();
}

// "VHOST_USER_GET_CONFIG": "zero length of payload to indicate an error".
TEST_F(VhostConfig, AnswersErrorsWithAnEmptyReply) {
  for (auto [offset, size] : {std::pair{1U, 256U}, {256U, 1U}, {0xffff'ffffU, 1U}, {0xffff'ff00U, 256U}}) {
    auto error = fe().query(Request::kGetConfig, bytes_of(ConfigHeader{offset, size, 0}) + Bytes(size));
    ASSERT_TRUE(error) << fe().error() << " at " << offset << ", " << size;
    EXPECT_EQ(error->header.size, 0U) << offset << ", " << size;
  }
  auto reopen = [this] {
    session_ = std::make_unique<Session>();
    ASSERT_TRUE(session_->open(socket_path())) << session_->error();
  };
  // More than the space has is more than the message can be: that may end the session.
  auto reply = fe().query(Request::kGetConfig, bytes_of(ConfigHeader{0, 257, 0}) + Bytes(257));
  if (reply) EXPECT_EQ(reply->header.size, 0U);
  if (!fe().fence()) reopen();
  // A size that the payload does not have.
  for (uint32_t size : {9U, 257U, 0xffff'fff4U}) {
    reply = fe().query(Request::kGetConfig, bytes_of(ConfigHeader{0, size, 0}) + Bytes(8));
    if (reply) EXPECT_EQ(reply->header.size, 0U) << size;
    if (!fe().fence()) reopen();
  }
  EXPECT_TRUE(fe().get_config(0, 60)) << fe().error();
}

// "VHOST_USER_SET_CONFIG": a driver can write the write-cache switch and nothing else (VIRTIO, CONFIG_WCE).
TEST_F(VhostConfig, AcceptsTheWriteCacheSwitchOnly) {
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureConfigWce));
  SKIP_UNLESS(session_->has_protocol(vhost::kProtocolReplyAck));
  constexpr uint32_t kWce = offsetof(BlkConfig, writeback);
  auto set = [&](uint32_t offset, const Bytes& data) {
    auto size = static_cast<uint32_t>(data.size());
    return fe().judge(Request::kSetConfig, bytes_of(ConfigHeader{offset, size, vhost::kConfigWritable}) + data);
  };
  ASSERT_TRUE(fe().set_u64(Request::kSetFeatures, session_->features()));
  for (uint8_t value : Bytes{0, 1, 0, 1}) {
    EXPECT_EQ(set(kWce, {value}), Verdict::kAccepted);
    EXPECT_EQ(config().writeback, value);
  }
  BlkConfig before = config();
  EXPECT_EQ(set(0, Bytes(8)), Verdict::kRefused) << "capacity";
  EXPECT_EQ(set(kWce, Bytes(2)), Verdict::kRefused);
  EXPECT_EQ(set(kWce - 1, Bytes(2)), Verdict::kRefused);
  EXPECT_EQ(set(kWce + 1, Bytes(1)), Verdict::kRefused);
  EXPECT_EQ(set(0, bytes_of(before)), Verdict::kRefused);
  EXPECT_EQ(set(kWce, {}), Verdict::kRefused);
  EXPECT_EQ(set(0xffff'ffff, Bytes(1)), Verdict::kRefused);
  BlkConfig after = config();
  EXPECT_EQ(std::memcmp(&before, &after, sizeof(before)), 0);
}

// VIRTIO, "Block Device / Device Initialization": the write cache is on again after a reset, for the next front end
// too.
TEST_F(VhostConfig, NextFrontEndFindsTheWriteCacheOn) {
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureConfigWce));
  ASSERT_EQ(config().writeback, 1);
  ASSERT_TRUE(fe().set_u64(Request::kSetFeatures, session_->features()));
  ASSERT_TRUE(fe().set_config(offsetof(BlkConfig, writeback), {0}));
  EXPECT_EQ(config().writeback, 0);
  session_ = std::make_unique<Session>();
  ASSERT_TRUE(session_->open(socket_path())) << session_->error();
  EXPECT_EQ(config().writeback, 1);
}

// "VHOST_USER_BACKEND_CONFIG_CHANGE_MSG". QEMU asks for the configuration before it answers, so the target must not
// wait.
TEST_F(VhostConfig, AnnouncesANewCapacityAndServesItMeanwhile) {
  SKIP_UNLESS_IN_PROCESS();
  for (Dialect dialect : {Dialect::kQemu72, Dialect::kCloudHypervisor, Dialect::kUml}) {
    session_.reset();
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
    EXPECT_EQ(session_->blk().read(capacity - 1, data), vhost::BlkStatus::kOk);
    expect_io_works(*session_);
  }
}

// The same: an answer that never comes, or a channel that is gone, disturbs nothing.
TEST_F(VhostConfig, UnansweredOrClosedBackendChannelIsHarmless) {
  SKIP_UNLESS_IN_PROCESS();
  session_.reset();
  session_.reset();
  session_ = running();
  ASSERT_FALSE(HasFailure());
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

}  // namespace
}  // namespace sluice::test
