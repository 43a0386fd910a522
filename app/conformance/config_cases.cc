// The configuration space of the block device, and the news that it has changed.
#include "app/conformance/target_fixture.h"

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
  BlkConfig config() { return config_of(*session_); }

 protected:
  std::unique_ptr<Session> session_;
};

// VIRTIO, "Block Device / Device configuration layout".
CASE(VhostConfig, DescribesTheDevice, "virtio 1.2, 5.2.4 Device configuration layout") {
  BlkConfig blk = config();
  EXPECT_GT(blk.capacity, 0U);
  EXPECT_EQ(blk.unused0, 0);
  EXPECT_TRUE(std::ranges::all_of(blk.unused1, [](uint8_t byte) { return byte == 0; }));
  if (session_->has(vhost::kBlkFeatureBlkSize)) {
    EXPECT_GE(blk.blk_size, vhost::kSectorSize);
    EXPECT_TRUE(std::has_single_bit(blk.blk_size)) << blk.blk_size;
  }
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
CASE(VhostConfig, OffersFlushWithConfigWce, "virtio 1.2, 5.2.5.2 Device Requirements: Device Initialization") {
  if ((session_->offered() & vhost::kBlkFeatureConfigWce) != 0)
    EXPECT_NE(session_->offered() & vhost::kBlkFeatureFlush, 0U);
  EXPECT_NE(session_->offered() & vhost::kFeatureVersion1, 0U);
  EXPECT_NE(session_->offered() & vhost::kFeatureProtocolFeatures, 0U);
}

// "VHOST_USER_GET_CONFIG": the reply has the request's size, whatever part of the space it asks for.
CASE(VhostConfig, AnswersAnyOffsetAndLengthWithinTheSpace, "vhost-user, VHOST_USER_GET_CONFIG") {
  auto whole = fe().get_config(0, sizeof(BlkConfig));
  ASSERT_TRUE(whole) << fe().error();
  std::vector<std::pair<uint32_t, uint32_t>> ranges = {{0, 57}, {32, 1}, {34, 2}, {7, 5}, {59, 1}, {56, 4}, {20, 40}};
  for (uint32_t size = 1; size <= 60; size++) ranges.push_back({0, size});
  for (auto [offset, size] : ranges) {
    auto part = fe().get_config(offset, size);
    ASSERT_TRUE(part) << fe().error() << " at " << offset << ", " << size;
    EXPECT_TRUE(std::equal(part->begin(), part->end(), whole->begin() + offset)) << offset << ", " << size;
  }
}

// SPDK's initiator asks for 256 bytes, whatever the device has.
CASE(VhostConfig, AnswersBeyondTheStructureWithZeros,
     "practice: vhost-user, VHOST_USER_GET_CONFIG: SPDK asks for 256 bytes") {
  auto whole = fe().get_config(0, vhost::kMaxConfigSize);
  ASSERT_TRUE(whole) << fe().error();
  for (size_t i = sizeof(BlkConfig); i < whole->size(); i++) EXPECT_EQ((*whole)[i], 0) << "offset " << i;
  for (auto [offset, size] : {std::pair{58U, 4U}, {60U, 196U}, {255U, 1U}, {0U, 256U}, {128U, 8U}, {1U, 255U}}) {
    auto part = fe().get_config(offset, size);
    ASSERT_TRUE(part) << fe().error() << " at " << offset << ", " << size;
    EXPECT_TRUE(std::equal(part->begin(), part->end(), whole->begin() + offset)) << offset << ", " << size;
  }
}

// The same: the reply repeats offset and size of the request.
CASE(VhostConfig, ReplyRepeatsOffsetAndSize, "vhost-user, VHOST_USER_GET_CONFIG") {
  auto reply = fe().query(Request::kGetConfig, bytes_of(ConfigHeader{8, 16, 0}) + Bytes(16));
  ASSERT_TRUE(reply) << fe().error();
  ASSERT_EQ(reply->payload.size(), sizeof(ConfigHeader) + 16);
  ConfigHeader header;
  std::memcpy(&header, reply->payload.data(), sizeof(header));
  EXPECT_EQ(header.offset, 8U);
  EXPECT_EQ(header.size, 16U);
}

// "Virtio device config space": the flags concern SET_CONFIG, yet several front ends read with flags 1.
CASE(VhostConfig, IgnoresFlagsWhenReading,
     "vhost-user, Virtio device config space: flags are those of front-end writes") {
  auto plain = fe().get_config(0, 60);
  ASSERT_TRUE(plain) << fe().error();
  for (uint32_t flags : {1U, 2U, 0xffff'ffffU}) EXPECT_EQ(fe().get_config(0, 60, flags), plain) << fe().error();
}

// "VHOST_USER_GET_CONFIG": "zero length of payload to indicate an error".
CASE(VhostConfig, AnswersErrorsWithAnEmptyReply,
     "vhost-user, VHOST_USER_GET_CONFIG: zero length of payload indicates an error") {
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
CASE(VhostConfig, AcceptsTheWriteCacheSwitchOnly, "vhost-user, VHOST_USER_SET_CONFIG: not for read-only fields") {
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
  // Refused, or the session was ended.
  auto expect_refused = [&](uint32_t offset, const Bytes& data) {
    const Verdict verdict = set(offset, data);
    EXPECT_THAT(verdict, AnyOf(Verdict::kRefused, Verdict::kClosed)) << data.size() << " bytes at " << offset;
    if (verdict == Verdict::kRefused && fe().fence()) return;
    session_ = std::make_unique<Session>();
    ASSERT_TRUE(session_->open(socket_path())) << session_->error();
  };
  expect_refused(0, Bytes(8));
  expect_refused(kWce, Bytes(2));
  expect_refused(kWce - 1, Bytes(2));
  expect_refused(kWce + 1, Bytes(1));
  expect_refused(0, bytes_of(before));
  expect_refused(kWce, {});
  expect_refused(0xffff'ffff, Bytes(1));
  BlkConfig after = config();
  EXPECT_EQ(std::memcmp(&before, &after, sizeof(before)), 0);
}

// VIRTIO, "Block Device / Device Initialization": the write cache is on again after a reset, for the next front end
// too.
CASE(VhostConfig, NextFrontEndFindsTheWriteCacheAsItWas,
     "practice: what one front end sets ends with it; virtio 1.2, 2.4 Device Reset") {
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureConfigWce));
  ASSERT_TRUE(fe().set_u64(Request::kSetFeatures, session_->features()));
  const uint8_t before = config().writeback;
  const uint8_t other = before == 0 ? 1 : 0;
  ASSERT_TRUE(fe().set_config(offsetof(BlkConfig, writeback), {other}));
  EXPECT_EQ(config().writeback, other);
  session_ = std::make_unique<Session>();
  ASSERT_TRUE(session_->open(socket_path())) << session_->error();
  EXPECT_EQ(config().writeback, before);
}

// A driver that cannot flush gets a write cache that needs no flushes.
CASE(VhostConfig, WritesThroughWithConfigWceAndWithoutFlush,
     "virtio 1.2, 5.2.5.2 Device Requirements: Device Initialization: writeback is 0") {
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureConfigWce));
  session_ = std::make_unique<Session>(SessionOptions{.leave_features = vhost::kBlkFeatureFlush});
  ASSERT_TRUE(session_->open(socket_path())) << session_->error();
  ASSERT_TRUE(fe().set_u64(Request::kSetFeatures, session_->features()));
  EXPECT_EQ(config().writeback, 0);
}

// What needs another feature is not offered without it.
CASE(VhostConfig, OffersNothingWithoutWhatItNeeds, "virtio 1.2, 2.2.2 Device Requirements: Feature Bits") {
  const uint64_t offered = session_->offered();
  EXPECT_NE(offered & (vhost::kFeatureVersion1 | vhost::kFeatureRingPacked), vhost::kFeatureRingPacked)
      << "packed rings need VIRTIO_F_VERSION_1";
  auto protocol = fe().get_u64(Request::kGetProtocolFeatures);
  ASSERT_TRUE(protocol) << fe().error();
  if ((*protocol & vhost::kProtocolInbandNotifications) != 0) {
    constexpr uint64_t kNeeded = vhost::kProtocolBackendReq | vhost::kProtocolReplyAck;
    EXPECT_EQ(*protocol & kNeeded, kNeeded) << "in-band notifications need a back-end channel and acknowledgements";
  }
}

// A block device has a configuration space, and virtqueues whose number can be asked for.
CASE(VhostConfig, OffersWhatABlockDeviceNeeds,
     "practice: vhost-user, Protocol features: CONFIG and MQ, which front ends of virtio-blk need") {
  auto protocol = fe().get_u64(Request::kGetProtocolFeatures);
  ASSERT_TRUE(protocol) << fe().error();
  EXPECT_NE(*protocol & vhost::kProtocolConfig, 0U);
  EXPECT_NE(*protocol & vhost::kProtocolMq, 0U);
}

// The number of queues in the configuration is not more than can be had.
CASE(VhostConfig, HasAsManyQueuesAsItSays, "virtio 1.2, 5.2.2 Virtqueues; vhost-user, VHOST_USER_GET_QUEUE_NUM") {
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureMq));
  SKIP_UNLESS(session_->has_protocol(vhost::kProtocolMq));
  EXPECT_GT(config().num_queues, 0);
  EXPECT_LE(config().num_queues, session_->max_queues());
}

}  // namespace
}  // namespace sluice::test
