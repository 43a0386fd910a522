// The virtio bdev against a back end that lies, dies, or keeps silent.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "test/bdev/fake_back_end.h"
#include "test/bdev/virtio_load.h"
#include "test/support/disk_user.h"

namespace sluice::test {
namespace {

using ::testing::Each;

class VirtioLies : public ::testing::Test {
 protected:
  std::string path() const { return directory_.file("fake"); }
  TestDirectory directory_;
};

TEST_F(VirtioLies, AnHonestOneWorks) {
  FakeBackEnd back_end(path());
  VirtioWorld world;
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = path()}).has_value());
  VirtioUser user(world, "v0");
  PageBuffer page(8192);
  EXPECT_EQ(user.read(0, page.bytes()), IoStatus::kOk);
  EXPECT_THAT(page.bytes(), Each(FakeBackEnd::kFill));
  EXPECT_EQ(user.write(0, page.bytes()), IoStatus::kOk);
  EXPECT_EQ(user.other(IoType::kFlush), IoStatus::kOk);
}

TEST_F(VirtioLies, DiscardAndWriteZeroesGoInPiecesOfWhatTheDeviceTakes) {
  FakeBackEnd back_end(path());
  VirtioWorld world;
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = path()}).has_value());
  VirtioUser user(world, "v0");
  EXPECT_EQ(user.other(IoType::kDiscard, 512, 20 * 512), IoStatus::kOk);
  EXPECT_EQ(user.other(IoType::kWriteZeroes, 0, 17 * 512, true), IoStatus::kOk);
  EXPECT_EQ(user.other(IoType::kWriteZeroes, 0, 512, false), IoStatus::kOk);
  const auto ranges = back_end.ranges();
  ASSERT_EQ(ranges.size(), 6U);
  const std::vector<std::array<uint64_t, 3>> expected = {{1, 8, 0},  {9, 8, 0},  {17, 4, 0},
                                                         {0, 16, 1}, {16, 1, 1}, {0, 1, 0}};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(ranges[i].sector, expected[i][0]);
    EXPECT_EQ(ranges[i].num_sectors, expected[i][1]);
    EXPECT_EQ(ranges[i].flags, expected[i][2]);
  }
}

TEST_F(VirtioLies, WithoutReplyAcknowledgementsIndirectTablesAndEventIndexesItWorksToo) {
  FakeBackEnd::Options options;
  options.features = vhost::kFeatureVersion1 | vhost::kFeatureProtocolFeatures;
  options.protocol_features = vhost::kProtocolConfig;
  FakeBackEnd back_end(path(), options);
  VirtioWorld world;
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = path()}).has_value());
  VirtioUser user(world, "v0");
  EXPECT_FALSE(user.bdev().supports(IoType::kDiscard));
  EXPECT_EQ(user.bdev().limits().max_segments, 1U);
  PageBuffer page(256 << 10);
  EXPECT_EQ(user.read(0, page.bytes()), IoStatus::kOk);
  EXPECT_THAT(page.bytes(), Each(FakeBackEnd::kFill));
  EXPECT_EQ(user.other(IoType::kFlush), IoStatus::kOk);
  Stream stream(user, 64, 1000);
  stream.run();
  EXPECT_EQ(stream.failed(), 0U);
}

// Whatever it says of a request: that fails, at worst with all that are in flight, and the next connection works.
TEST_F(VirtioLies, AboutUsedElementsCostTheConnectionOnly) {
  for (const Lie lie : {Lie::kIdOutOfRange, Lie::kIdNotInFlight, Lie::kUsedJump, Lie::kLongLength, Lie::kHangUp}) {
    FakeBackEnd back_end(path());
    VirtioWorld world;
    ASSERT_TRUE(world.attach({.name = "v0", .socket_path = path(), .vq_count = 1}).has_value());
    VirtioUser user(world, "v0");
    PageBuffer page(4096);
    ASSERT_EQ(user.read(0, page.bytes()), IoStatus::kOk);
    back_end.lie(lie);
    EXPECT_EQ(user.read(0, page.bytes()), IoStatus::kFailed) << int(lie);
    ASSERT_TRUE(wait_until([&] { return back_end.connections() == 2 && world.info("v0").connected; })) << int(lie);
    EXPECT_EQ(user.read(0, page.bytes()), IoStatus::kOk) << int(lie);
  }
}

TEST_F(VirtioLies, AboutAResultCostTheRequestOnly) {
  FakeBackEnd back_end(path());
  VirtioWorld world;
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = path()}).has_value());
  VirtioUser user(world, "v0");
  PageBuffer page(4096);
  for (const Lie lie : {Lie::kShortRead, Lie::kNoStatus, Lie::kStrangeStatus}) {
    back_end.lie(lie);
    EXPECT_EQ(user.read(0, page.bytes()), IoStatus::kFailed);
    EXPECT_EQ(user.read(0, page.bytes()), IoStatus::kOk);
  }
  back_end.lie(Lie::kUnsupported);
  EXPECT_EQ(user.write(0, page.bytes()), IoStatus::kUnsupported);
  EXPECT_EQ(back_end.connections(), 1);
}

TEST_F(VirtioLies, InFlightFailsWhenTheBackEndGoesUnderLoad) {
  auto back_end = std::make_unique<FakeBackEnd>(path());
  VirtioWorld world;
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = path()}).has_value());
  VirtioUser user(world, "v0");
  for (int round = 0; round < 3; ++round) {
    Stream stream(user, 200, UINT64_MAX);
    stream.start();
    ASSERT_TRUE(wait_until([&] { return stream.completed() > 1000; }));
    back_end.reset();
    ASSERT_TRUE(wait_until([&] { return stream.failed() > 0; }));
    stream.stop();
    stream.wait();
    EXPECT_EQ(stream.last_failure(), IoStatus::kFailed);
    back_end = std::make_unique<FakeBackEnd>(path());
    ASSERT_TRUE(wait_until([&] { return world.info("v0").connected; }));
  }
}

TEST_F(VirtioLies, AreFoundOutAtTheSetUp) {
  const std::vector<std::pair<SetUpLie, int>> lies = {
      {SetUpLie::kHangUp, ECONNRESET},    {SetUpLie::kOtherAnswer, EPROTO},         {SetUpLie::kUnasked, 0},
      {SetUpLie::kNotAReply, ECONNRESET}, {SetUpLie::kHugePayload, ECONNRESET},     {SetUpLie::kShortFeatures, EPROTO},
      {SetUpLie::kNoConfig, EPROTO},      {SetUpLie::kRefusesMemory, ECONNREFUSED}, {SetUpLie::kNoQueues, EPROTO}};
  for (const auto& [lie, code] : lies) {
    FakeBackEnd::Options options;
    options.set_up = lie;
    FakeBackEnd back_end(path(), options);
    VirtioWorld world;
    const auto attached = world.attach({.name = "v0", .socket_path = path(), .vq_count = 1});
    ASSERT_FALSE(attached.has_value()) << int(lie);
    if (code != 0) EXPECT_EQ(attached.error().code, code) << int(lie) << ": " << attached.error().what;
    EXPECT_TRUE(world.attach({.name = "v0", .socket_path = "x"}).error().code == ENOENT) << "the name is free again";
  }
}

TEST_F(VirtioLies, MoreQueuesThanTheBackEndHasAreRefusedUnlessTheyWereNotAskedFor) {
  FakeBackEnd back_end(path());
  VirtioWorld world;
  EXPECT_EQ(world.attach({.name = "v0", .socket_path = path(), .vq_count = 2}).error().code, EINVAL);
  EXPECT_TRUE(world.attach({.name = "v0", .socket_path = path()}).has_value());
  EXPECT_EQ(world.info("v0").vq_count, 1U);
}

TEST_F(VirtioLies, AboutTheDeviceAreFoundOutAtTheSetUp) {
  const auto refuses = [this](const auto& change) {
    FakeBackEnd::Options options;
    change(options);
    FakeBackEnd back_end(path(), options);
    VirtioWorld world;
    return !world.attach({.name = "v0", .socket_path = path(), .vq_count = 1}).has_value();
  };
  EXPECT_TRUE(refuses([](auto& o) { o.config.blk_size = 0; }));
  EXPECT_TRUE(refuses([](auto& o) { o.config.blk_size = 513; }));
  EXPECT_TRUE(refuses([](auto& o) { o.config.blk_size = 1U << 31; }));
  EXPECT_TRUE(refuses([](auto& o) { o.config.capacity = UINT64_MAX; }));
  EXPECT_TRUE(refuses([](auto& o) { o.features &= ~vhost::kFeatureVersion1; }));
  EXPECT_TRUE(refuses([](auto& o) { o.features &= ~vhost::kFeatureProtocolFeatures; }));
  EXPECT_TRUE(refuses([](auto& o) { o.protocol_features &= ~vhost::kProtocolConfig; }));
  EXPECT_TRUE(refuses([](auto& o) {
    o.features |= vhost::kBlkFeatureSizeMax;
    o.config.size_max = 7;
    o.config.seg_max = 1;
  }));
  EXPECT_FALSE(refuses([](auto& o) {
    o.features |= vhost::kBlkFeatureSizeMax;
    o.config.size_max = 700;
    o.config.seg_max = UINT32_MAX;
  }));
  EXPECT_FALSE(refuses([](auto& o) { o.config.capacity = 0; }));
}

TEST_F(VirtioLies, SmallSegmentsAreRespected) {
  FakeBackEnd::Options options;
  options.features |= vhost::kBlkFeatureSizeMax;
  options.config.size_max = 1000;
  FakeBackEnd back_end(path(), options);
  VirtioWorld world;
  Bdev& bdev = **world.attach({.name = "v0", .socket_path = path()});
  VirtioUser user(world, "v0");
  EXPECT_EQ(bdev.limits().max_transfer_bytes, 29'696U);  // 30 segments of 1,000 bytes, in whole blocks
  const IoBuffer buffer = bdev.allocate_buffer(64 << 10).value();
  EXPECT_EQ(user.read(0, buffer.bytes()), IoStatus::kOk);
  EXPECT_THAT(buffer.bytes(), Each(FakeBackEnd::kFill));
  PageBuffer page(64 << 10);
  EXPECT_EQ(user.read(0, page.bytes()), IoStatus::kOk);
  EXPECT_THAT(page.bytes(), Each(FakeBackEnd::kFill));
}

TEST_F(VirtioLies, ANewCapacityIsSeenAndAnotherDeviceIsNot) {
  auto back_end = std::make_unique<FakeBackEnd>(path());
  VirtioWorld world;
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = path()}).has_value());
  VirtioUser user(world, "v0");
  back_end->resize(4096);
  ASSERT_TRUE(wait_until([&] { return user.bdev().size_bytes() == 4096 * 512; }));
  // Another block size: it is not the device that was promised.
  FakeBackEnd::Options other;
  other.config.blk_size = 4096;
  back_end.reset();
  back_end = std::make_unique<FakeBackEnd>(path(), other);
  ASSERT_TRUE(wait_until([&] { return back_end->connections() >= 2; }));
  EXPECT_FALSE(world.info("v0").connected);
  // The right one again, without the ability to discard.
  FakeBackEnd::Options less;
  less.config.capacity = 1024;
  less.features &= ~vhost::kBlkFeatureDiscard;
  back_end.reset();
  back_end = std::make_unique<FakeBackEnd>(path(), less);
  ASSERT_TRUE(wait_until([&] { return user.bdev().size_bytes() == 1024 * 512; }));
  EXPECT_EQ(user.other(IoType::kDiscard, 0, 512), IoStatus::kUnsupported);
  EXPECT_EQ(user.other(IoType::kWriteZeroes, 0, 512), IoStatus::kOk);
}

// Five seconds of a clock that the test turns.
TEST_F(VirtioLies, SilenceIsNotWaitedForForever) {
  FakeBackEnd::Options options;
  options.set_up = SetUpLie::kSilent;
  FakeBackEnd back_end(path(), options);
  BdevWorld world;
  VirtioModule module;
  std::optional<Result<Bdev*>> attached;
  world.hosts.on(world.app(), [&] {
    start(module.attach(world.manager, {.name = "v0", .socket_path = path()}),
          [&](Result<Bdev*> result) { attached = result; });
  });
  world.hosts.run_until_idle();
  EXPECT_FALSE(attached.has_value());
  world.hosts.advance(6 * kNsPerSec);
  ASSERT_TRUE(world.hosts.run_until([&] { return attached.has_value(); }));
  EXPECT_EQ(attached->error().code, ETIMEDOUT);
}

TEST_F(VirtioLies, DetachDoesNotWaitForeverForWhatIsInFlight) {
  FakeBackEnd back_end(path());
  BdevWorld world;
  VirtioModule module;
  ASSERT_TRUE(
      world.hosts.await(world.app(), module.attach(world.manager, {.name = "v0", .socket_path = path()})).has_value());
  DiskUser user(world, "v0");
  back_end.lie(Lie::kSilence);
  PageBuffer page(4096);
  TestIo io(IoType::kRead, 0, {page.bytes()});
  user.submit(io);
  bool detached = false;
  world.hosts.on(world.app(), [&] {
    start(module.detach(world.manager, "v0"), [&](Result<> result) { detached = result.has_value(); });
  });
  world.hosts.run_until_idle();
  EXPECT_TRUE(user.removed);
  EXPECT_FALSE(io.done);
  world.hosts.advance(6 * kNsPerSec);
  EXPECT_EQ(user.finish(io), IoStatus::kRemoved);
  user.close();
  EXPECT_TRUE(world.hosts.run_until([&] { return detached; }));
}

}  // namespace
}  // namespace sluice::test
