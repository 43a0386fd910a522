// The virtio bdev against our own target, and against qemu-storage-daemon.
#include "lib/bdev/virtio/virtio_bdev.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "test/bdev/virtio_load.h"
#include "test/support/allocation_count.h"
#include "test/support/disk_user.h"
#include "test/vhost/in_process_target.h"

namespace sluice::test {
namespace {

using ::testing::Each;

constexpr uint64_t kDiskBytes = 16 << 20;

InProcessTarget::Options target_options(PollMode mode = PollMode::kInterrupt) {
  return {.size_bytes = kDiskBytes, .block_size = 512, .readonly = false, .num_controllers = 1, .mode = mode};
}

TEST(VirtioBdev, TellsWhatTheBackEndHas) {
  InProcessTarget target(target_options());
  VirtioWorld world;
  const auto attached = world.attach({.name = "v0", .socket_path = target.socket_path(0)});
  ASSERT_TRUE(attached.has_value()) << attached.error().what;
  Bdev& bdev = **attached;
  EXPECT_EQ(bdev.name(), "v0");
  EXPECT_STREQ(bdev.product_name(), "VirtioBlk Disk");
  EXPECT_EQ(bdev.size_bytes(), kDiskBytes);
  EXPECT_EQ(bdev.limits().block_size_bytes, 512U);
  EXPECT_EQ(bdev.limits().max_segments, 126U);
  EXPECT_EQ(bdev.limits().max_transfer_bytes, 1U << 20);
  for (const IoType type : {IoType::kRead, IoType::kWrite, IoType::kFlush, IoType::kDiscard, IoType::kWriteZeroes}) {
    EXPECT_TRUE(bdev.supports(type));
  }
  EXPECT_FALSE(bdev.readonly());
  const VirtioBdevInfo info = world.info("v0");
  EXPECT_TRUE(info.connected);
  EXPECT_EQ(info.vq_count, world.reactors().reactors().size());
  EXPECT_EQ(info.vq_size, 256U);
  EXPECT_EQ(info.socket_path, target.socket_path(0));
  EXPECT_EQ(world.attach({.name = "v0", .socket_path = "x"}).error().code, EEXIST);
  EXPECT_TRUE(world.detach("v0").has_value());
  EXPECT_EQ(world.detach("v0").error().code, ENODEV);
}

TEST(VirtioBdev, IsReadOnlyWhenTheDeviceIs) {
  auto options = target_options();
  options.readonly = true;
  InProcessTarget target(options);
  VirtioWorld world;
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = target.socket_path(0)}).has_value());
  VirtioUser user(world, "v0");
  EXPECT_TRUE(user.bdev().readonly());
  PageBuffer page(4096);
  EXPECT_EQ(user.write(0, page.bytes()), IoStatus::kReadOnly);
  EXPECT_EQ(user.read(0, page.bytes()), IoStatus::kOk);
}

TEST(VirtioBdev, FailsToAttachWhereNobodyListensOrOptionsAreWrong) {
  VirtioWorld world;
  EXPECT_EQ(world.attach({.name = "v0", .socket_path = "nowhere"}).error().code, ENOENT);
  EXPECT_EQ(world.attach({.name = "", .socket_path = "nowhere"}).error().code, EINVAL);
  EXPECT_EQ(world.attach({.name = "v0", .socket_path = "nowhere", .vq_size = 100}).error().code, EINVAL);
  EXPECT_EQ(world.attach({.name = "v0", .socket_path = "nowhere", .vq_count = 65}).error().code, EINVAL);
  EXPECT_EQ(world.attach({.name = "v0", .socket_path = std::string(200, 'x')}).error().code, ENAMETOOLONG);
}

class VirtioBdevModes : public ::testing::TestWithParam<PollMode> {};
std::string mode_name(const ::testing::TestParamInfo<PollMode>& info) {
  static constexpr const char* kNames[] = {"Poll", "Interrupt", "Adaptive"};
  return kNames[static_cast<size_t>(info.param)];
}
INSTANTIATE_TEST_SUITE_P(Front, VirtioBdevModes,
                         ::testing::Values(PollMode::kInterrupt, PollMode::kAdaptive, PollMode::kPoll), mode_name);

TEST_P(VirtioBdevModes, ReadsBackWhatItWroteInAllShapes) {
  InProcessTarget target(target_options());
  VirtioWorld world(GetParam());
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = target.socket_path(0)}).has_value());
  VirtioUser user(world, "v0");
  // 192 KiB: more than a chunk, and pieces beyond the limit of segments.
  EXPECT_THAT(exercise_all(user, 16, 192 << 10, 60), Each(-1));
  EXPECT_GT(target.bdev(0).flush_count(), 0);
  EXPECT_GT(world.info("v0").queues[0].bounced, 0U);
}

TEST(VirtioBdev, TransfersMoreThanOneRequestTakes) {
  InProcessTarget target(target_options());
  VirtioWorld world;
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = target.socket_path(0), .vq_size = 8}).has_value());
  VirtioUser user(world, "v0");
  PageBuffer out(5 << 20, 7);
  PageBuffer in(5 << 20, 0);
  EXPECT_EQ(user.write(4096, out.bytes()), IoStatus::kOk);
  EXPECT_EQ(user.read(4096, in.bytes()), IoStatus::kOk);
  EXPECT_TRUE(in == out);
}

TEST(VirtioBdev, UsesSharedBuffersAsTheyAre) {
  InProcessTarget target(target_options());
  VirtioWorld world;
  Bdev& bdev = **world.attach({.name = "v0", .socket_path = target.socket_path(0)});
  VirtioUser user(world, "v0");
  const IoBuffer buffer = bdev.allocate_buffer(64 << 10).value();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.bytes().data()) % IoBuffer::kAlignment, 0U);
  fill_pattern(buffer.bytes(), 3);
  EXPECT_EQ(user.write(0, buffer.bytes()), IoStatus::kOk);
  fill_pattern(buffer.bytes(), 0);
  EXPECT_EQ(user.read(0, buffer.bytes()), IoStatus::kOk);
  PageBuffer expected(64 << 10, 3);
  EXPECT_EQ(std::memcmp(buffer.bytes().data(), expected.bytes().data(), 64 << 10), 0);
  EXPECT_EQ(world.info("v0").queues[0].bounced, 0U);
}

TEST(VirtioBdev, BuffersOutliveTheDeviceAndAreUsedAgain) {
  InProcessTarget target(target_options());
  VirtioWorld world;
  Bdev& bdev = **world.attach({.name = "v0", .socket_path = target.socket_path(0)});
  IoBuffer kept = bdev.allocate_buffer(1 << 20).value();
  // More in turn than there is in all, and more at a time: the rest is plain memory.
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(bdev.allocate_buffer(1 << 20).has_value());
  std::vector<IoBuffer> many;
  for (int i = 0; i < 300; ++i) many.push_back(bdev.allocate_buffer(1 << 20).value());
  VirtioUser user(world, "v0");
  EXPECT_EQ(user.read(0, many.back().bytes()), IoStatus::kOk);
  user.close();
  EXPECT_TRUE(world.detach("v0").has_value());
  fill_pattern(kept.bytes(), 9);
}

TEST(VirtioBdev, RefusesWhatTheLayerAboveRefuses) {
  InProcessTarget target(target_options());
  VirtioWorld world;
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = target.socket_path(0)}).has_value());
  VirtioUser user(world, "v0");
  PageBuffer page(4096);
  EXPECT_EQ(user.read(kDiskBytes, page.bytes()), IoStatus::kInvalid);
  EXPECT_EQ(user.read(100, page.bytes()), IoStatus::kInvalid);
  EXPECT_EQ(user.other(IoType::kReset), IoStatus::kOk);
}

TEST_P(VirtioBdevModes, RunsPastTheWrapOfTheRingsIndexes) {
  InProcessTarget target(target_options());
  VirtioWorld world(GetParam());
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = target.socket_path(0), .vq_size = 64}).has_value());
  VirtioUser user(world, "v0");
  Stream stream(user, 8, 150'000);
  stream.run();
  EXPECT_EQ(stream.completed(), 150'000U);
  EXPECT_EQ(stream.failed(), 0U);
}

TEST(VirtioBdev, HoldsBackWhatFindsNoRoomInTheRing) {
  InProcessTarget target(target_options());
  VirtioWorld world;
  ASSERT_TRUE(
      world.attach({.name = "v0", .socket_path = target.socket_path(0), .vq_count = 1, .vq_size = 8}).has_value());
  VirtioUser user(world, "v0");
  target.bdev(0).hold();
  Stream stream(user, 100, 1000);
  stream.start();
  // Indirect tables: one descriptor a request, once the ring is half full.
  ASSERT_TRUE(wait_until([&] { return target.bdev(0).held_count() >= 4; }));
  EXPECT_EQ(stream.completed(), 0U);
  target.release_io(0);
  stream.wait();
  EXPECT_EQ(stream.completed(), 1000U);
  EXPECT_EQ(stream.failed(), 0U);
  EXPECT_THAT(exercise_all(user, 24, 64 << 10, 20), Each(-1));
}

TEST(VirtioBdev, SwitchesModesWhileRequestsAreInFlight) {
  InProcessTarget target(target_options());
  VirtioWorld world;
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = target.socket_path(0)}).has_value());
  VirtioUser user(world, "v0");
  Stream stream(user, 4, UINT64_MAX);
  stream.start();
  for (int i = 0; i < 30; ++i) {
    for (const PollMode mode : {PollMode::kPoll, PollMode::kInterrupt, PollMode::kAdaptive}) {
      const uint64_t before = stream.completed();
      world.set_mode(mode);
      ASSERT_TRUE(wait_until([&] { return stream.completed() > before + 20; })) << "stalled in mode " << int(mode);
    }
  }
  stream.stop();
  stream.wait();
  EXPECT_EQ(stream.failed(), 0U);
}

TEST(VirtioBdev, CostsNothingWhileIdle) {
  InProcessTarget target(target_options());
  VirtioWorld world(PollMode::kInterrupt);
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = target.socket_path(0), .vq_count = 1}).has_value());
  VirtioUser user(world, "v0");
  PageBuffer page(4096);
  for (int i = 0; i < 100; ++i) ASSERT_EQ(user.read(0, page.bytes()), IoStatus::kOk);
  const VirtioBdevInfo::Queue queue = world.info("v0").queues[0];
  EXPECT_LE(queue.kicks, 102U);
  EXPECT_LE(queue.calls, 202U);
}

TEST(VirtioBdev, SeesANewCapacity) {
  InProcessTarget target(target_options());
  VirtioWorld world;
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = target.socket_path(0)}).has_value());
  VirtioUser user(world, "v0");
  target.resize_bdev(0, 2 * kDiskBytes);
  ASSERT_TRUE(wait_until([&] { return user.resizes > 0; }));
  EXPECT_EQ(user.bdev().size_bytes(), 2 * kDiskBytes);
  PageBuffer page(4096);
  EXPECT_EQ(user.read(2 * kDiskBytes - 4096, page.bytes()), IoStatus::kOk);
}

TEST(VirtioBdev, DetachesUnderLoad) {
  InProcessTarget target(target_options());
  VirtioWorld world;
  for (int round = 0; round < 5; ++round) {
    ASSERT_TRUE(world.attach({.name = "v0", .socket_path = target.socket_path(0)}).has_value());
    VirtioUser user(world, "v0");
    Stream stream(user, 32, UINT64_MAX, 4096);
    stream.start();
    ASSERT_TRUE(wait_until([&] { return stream.completed() > 1000; }));
    auto detached = std::async(std::launch::async, [&] { return world.detach("v0"); });
    ASSERT_TRUE(wait_until([&] { return user.removed.load(); }));
    ASSERT_TRUE(wait_until([&] { return stream.failed() > 0; }));
    stream.stop();
    stream.wait();
    EXPECT_EQ(stream.last_failure(), IoStatus::kRemoved);
    user.close();
    EXPECT_TRUE(detached.get().has_value());
  }
}

TEST(VirtioBdev, GivesEachCoreAQueueOfItsOwn) {
  VirtioWorld world;
  const size_t cores = world.reactors().reactors().size();
  if (cores < 2) GTEST_SKIP() << "needs two cores";
  InProcessTarget target(target_options());
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = target.socket_path(0), .vq_count = 2}).has_value());
  VirtioUser first(world, "v0", 0);
  VirtioUser second(world, "v0", 1);
  VirtioUser third(world, "v0", 0);  // shares the first one's
  std::vector<std::future<std::vector<int>>> results;
  uint64_t begin = 0;
  for (VirtioUser* user : {&first, &second, &third}) {
    results.push_back(
        std::async(std::launch::async, [user, begin] { return exercise_all(*user, 8, 128 << 10, 40, 5, begin); }));
    begin += 4 << 20;
  }
  for (auto& result : results) EXPECT_THAT(result.get(), Each(-1));
  const VirtioBdevInfo info = world.info("v0");
  EXPECT_GT(info.queues[0].requests, 0U);
  EXPECT_GT(info.queues[1].requests, 0U);
}

TEST(VirtioBdev, RefusesMoreCoresThanQueuesUntilOneIsGivenBack) {
  VirtioWorld world;
  if (world.reactors().reactors().size() < 2) GTEST_SKIP() << "needs two cores";
  InProcessTarget target(target_options());
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = target.socket_path(0), .vq_count = 1}).has_value());
  PageBuffer page(4096);
  VirtioUser first(world, "v0", 0);
  EXPECT_EQ(first.read(0, page.bytes()), IoStatus::kOk);
  {
    VirtioUser second(world, "v0", 1);
    ASSERT_FALSE(second.has_channel());
    EXPECT_EQ(second.channel_error().code, EBUSY);
  }
  first.close();
  VirtioUser third(world, "v0", 1);
  ASSERT_TRUE(third.has_channel());
  EXPECT_EQ(third.read(0, page.bytes()), IoStatus::kOk);
}

TEST(VirtioBdev, ComesBackWhenTheTargetDoes) {
  InProcessTarget target(target_options());
  VirtioWorld world;
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = target.socket_path(0)}).has_value());
  VirtioUser user(world, "v0");
  PageBuffer page(4096, 5);
  EXPECT_EQ(user.write(0, page.bytes()), IoStatus::kOk);
  EXPECT_TRUE(target.await(target.target().remove_controller("vhost.0")).has_value());
  ASSERT_TRUE(wait_until([&] { return !world.info("v0").connected; }));
  EXPECT_EQ(user.read(0, page.bytes()), IoStatus::kFailed);
  vhost::Target::ControllerOptions again{.name = "vhost.0", .bdev_name = "bdev0", .cpumask = {}};
  EXPECT_TRUE(target.await(target.target().create_controller(std::move(again))).has_value());
  ASSERT_TRUE(wait_until([&] { return world.info("v0").connected; }));
  EXPECT_EQ(world.info("v0").reconnects, 1U);
  PageBuffer back(4096);
  EXPECT_EQ(user.read(0, back.bytes()), IoStatus::kOk);
  EXPECT_TRUE(back == page);
  EXPECT_THAT(exercise_all(user, 4, 64 << 10, 10), Each(-1));
}

// Asked for and offered: packed. When the target comes back without them, split.
TEST(VirtioBdev, UsesPackedRingsWhereBothSidesWantThem) {
  auto options = target_options();
  options.packed_ring = true;
  InProcessTarget target(options);
  VirtioWorld world;
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = target.socket_path(0), .vq_size = 64, .packed_ring = true})
                  .has_value());
  EXPECT_NE(world.info("v0").features & vhost::kFeatureRingPacked, 0U);
  VirtioUser user(world, "v0");
  EXPECT_THAT(exercise_all(user, 16, 192 << 10, 60), Each(-1));
  EXPECT_EQ(target.info(0).sessions.at(0).queues.at(0).fault, vhost::RingFault::kNone);
  EXPECT_TRUE(target.await(target.target().remove_controller("vhost.0")).has_value());
  ASSERT_TRUE(wait_until([&] { return !world.info("v0").connected; }));
  vhost::Target::ControllerOptions again{.name = "vhost.0", .bdev_name = "bdev0", .cpumask = {}};
  EXPECT_TRUE(target.await(target.target().create_controller(std::move(again))).has_value());
  ASSERT_TRUE(wait_until([&] { return world.info("v0").connected; }));
  EXPECT_THAT(exercise_all(user, 4, 64 << 10, 20), Each(-1));
}

TEST(VirtioBdev, DetachesWhileTheBackEndIsAway) {
  InProcessTarget target(target_options());
  VirtioWorld world;
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = target.socket_path(0)}).has_value());
  EXPECT_TRUE(target.await(target.target().remove_controller("vhost.0")).has_value());
  ASSERT_TRUE(wait_until([&] { return !world.info("v0").connected; }));
  EXPECT_TRUE(world.detach("v0").has_value());
}

TEST_P(VirtioBdevModes, AllocatesNothingPerRequest) {
  InProcessTarget target(target_options());
  VirtioWorld world(GetParam());
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = target.socket_path(0)}).has_value());
  VirtioUser user(world, "v0");
  Stream stream(user, 32, UINT64_MAX, 4096);
  stream.start();
  ASSERT_TRUE(wait_until([&] { return stream.completed() > 2000; }));
  const uint64_t before = allocation_count();
  const uint64_t completed = stream.completed();
  while (stream.completed() < completed + 20'000) {
  }
  const uint64_t taken = allocation_count() - before;
  stream.stop();
  stream.wait();
  EXPECT_LE(taken, 20U);
}

// --- Against qemu-storage-daemon ---

class QemuStorageDaemon {
 public:
  QemuStorageDaemon(const std::string& directory, const std::string& image) : socket_(directory + "/qsd") {
    const std::string file = "driver=file,node-name=f,filename=" + image;
    const std::string blk =
        "type=vhost-user-blk,id=e,node-name=f,writable=on,num-queues=2,addr.type=unix,addr.path=" + socket_;
    pid_ = ::fork();
    CHECK(pid_ >= 0);
    if (pid_ == 0) {
      ::execlp("qemu-storage-daemon", "qemu-storage-daemon", "--blockdev", file.c_str(), "--export", blk.c_str(),
               nullptr);
      ::_exit(127);
    }
    started_ =
        wait_until([this] { return is_listening() || ::waitpid(pid_, nullptr, WNOHANG) != 0; }) && is_listening();
  }
  ~QemuStorageDaemon() {
    if (!started_) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::unlink(socket_.c_str());
  }
  bool started() const { return started_; }
  const std::string& socket() const { return socket_; }

 private:
  // A socket has its name before it listens. To connect would be to take the place of the front end.
  bool is_listening() const {
    std::ifstream sockets("/proc/net/unix");
    for (std::string line; std::getline(sockets, line);) {
      constexpr std::string_view kListening = " 00010000 ";
      if (line.ends_with(" " + socket_) && line.find(kListening) != line.npos) return true;
    }
    return false;
  }

  const std::string socket_;
  pid_t pid_ = 0;
  bool started_ = false;
};

TEST(VirtioBdev, WorksWithQemuStorageDaemonAndComesBackToIt) {
  const TestDirectory directory;
  const std::string image = directory.file("image");
  {
    const UniqueFd file(::open(image.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    CHECK(::ftruncate(file.get(), kDiskBytes) == 0);
  }
  auto daemon = std::make_unique<QemuStorageDaemon>(directory.path.string(), image);
  if (!daemon->started()) GTEST_SKIP() << "qemu-storage-daemon is not installed";
  VirtioWorld world;
  const auto attached = world.attach({.name = "v0", .socket_path = daemon->socket()});
  ASSERT_TRUE(attached.has_value()) << attached.error().what;
  VirtioUser user(world, "v0");
  EXPECT_THAT(exercise_all(user, 8, 128 << 10, 30), Each(-1));
  PageBuffer page(4096, 5);
  ASSERT_EQ(user.write(0, page.bytes()), IoStatus::kOk);
  daemon.reset();
  ASSERT_TRUE(wait_until([&] { return !world.info("v0").connected; }));
  daemon = std::make_unique<QemuStorageDaemon>(directory.path.string(), image);
  ASSERT_TRUE(wait_until([&] { return world.info("v0").connected; }));
  PageBuffer back(4096);
  EXPECT_EQ(user.read(0, back.bytes()), IoStatus::kOk);
  EXPECT_TRUE(back == page);
}

}  // namespace
}  // namespace sluice::test
