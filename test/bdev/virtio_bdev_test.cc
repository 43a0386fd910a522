// The virtio bdev against our own target, against qemu-storage-daemon, and against a back end that lies.
#include "lib/bdev/virtio/virtio_bdev.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <random>

#include "test/bdev/fake_back_end.h"
#include "test/bdev/virtio_world.h"
#include "test/support/allocation_count.h"
#include "test/support/disk_user.h"
#include "test/support/temp_file.h"
#include "test/vhost/in_process_target.h"

namespace sluice::test {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

constexpr uint64_t kDiskBytes = 16 << 20;

InProcessTarget::Options target_options(PollMode mode = PollMode::kInterrupt) {
  return {.size_bytes = kDiskBytes, .block_size = 512, .readonly = false, .num_controllers = 1, .mode = mode};
}

// --- Exercise: writes, reads back and compares in shapes of all kinds ---

// Memory of a task: some of it shared with the back end, some not.
struct Scratch {
  explicit Scratch(Bdev& bdev, size_t bytes) : shared(bdev.allocate_buffer(bytes).value()), plain(bytes) {}
  std::byte* place(bool from_shared, size_t offset) {
    return (from_shared ? shared.bytes() : plain.bytes()).data() + offset;
  }
  IoBuffer shared;
  PageBuffer plain;
};

// `length` bytes from `offset` of the scratch memory, in up to `max_pieces` pieces.
std::vector<iovec> cut(std::mt19937& random, Scratch& scratch, int where, size_t length, size_t max_pieces) {
  std::vector<iovec> pieces;
  for (size_t done = 0; done < length;) {
    const bool last = pieces.size() + 1 == max_pieces;
    const size_t size = last ? length - done : std::min<size_t>(length - done, 1 + random() % 3000);
    const bool shared = where == 2 ? random() % 2 == 0 : where == 1;
    pieces.push_back({.iov_base = scratch.place(shared, done), .iov_len = size});
    done += size;
  }
  return pieces;
}

void fill(const std::vector<iovec>& pieces, std::mt19937& random) {
  for (const iovec& piece : pieces) {
    auto* bytes = static_cast<uint8_t*>(piece.iov_base);
    for (size_t i = 0; i < piece.iov_len; ++i) bytes[i] = static_cast<uint8_t>(random());
  }
}

std::vector<std::byte> gather(const std::vector<iovec>& pieces) {
  std::vector<std::byte> all;
  for (const iovec& piece : pieces) {
    const auto* bytes = static_cast<const std::byte*>(piece.iov_base);
    all.insert(all.end(), bytes, bytes + piece.iov_len);
  }
  return all;
}

Task<IoStatus> transfer(BdevChannel& channel, IoType type, uint64_t offset, const std::vector<iovec>& pieces) {
  AwaitedIo io;
  io.type = type;
  io.iov = pieces.data();
  io.iov_count = static_cast<uint32_t>(pieces.size());
  io.offset_bytes = offset;
  for (const iovec& piece : pieces) io.length_bytes += piece.iov_len;
  co_return co_await io.on(channel);
}

// Rounds on the device's bytes from `begin`, which are this task's alone. The number of the first wrong round; -1: none.
Task<int> exercise(BdevChannel& channel, uint64_t begin, uint64_t bytes, uint32_t seed, int rounds) {
  std::mt19937 random(seed);
  Scratch scratch(channel.bdev(), bytes);
  for (int round = 0; round < rounds; ++round) {
    const uint64_t length = round % 8 == 0 ? bytes : (1 + random() % (bytes / 512)) * 512;
    const uint64_t offset = begin + random() % ((bytes - length) / 512 + 1) * 512;
    const auto out = cut(random, scratch, static_cast<int>(random() % 3), length, 1 + random() % 40);
    fill(out, random);
    const std::vector<std::byte> written = gather(out);
    if (co_await transfer(channel, IoType::kWrite, offset, out) != IoStatus::kOk) co_return round;
    for (const iovec& piece : out) std::memset(piece.iov_base, 0xee, piece.iov_len);
    const auto in = cut(random, scratch, static_cast<int>(random() % 3), length, 1 + random() % 40);
    if (co_await transfer(channel, IoType::kRead, offset, in) != IoStatus::kOk) co_return round;
    if (gather(in) != written) co_return round;
    if (round % 5 == 0) {
      AwaitedIo zero;
      zero.type = round % 2 == 0 ? IoType::kWriteZeroes : IoType::kDiscard;
      zero.offset_bytes = offset;
      zero.length_bytes = length;
      if (co_await zero.on(channel) != IoStatus::kOk) co_return round;
      if (co_await transfer(channel, IoType::kRead, offset, in) != IoStatus::kOk) co_return round;
      if (zero.type == IoType::kWriteZeroes && !all_zero(gather(in))) co_return round;
    }
    if (round % 7 == 0) {
      AwaitedIo flush;
      flush.type = IoType::kFlush;
      if (co_await flush.on(channel) != IoStatus::kOk) co_return round;
    }
  }
  co_return -1;
}

// Several of these at a time on one channel. Their results.
std::vector<int> exercise_all(VirtioUser& user, size_t tasks, uint64_t bytes_each, int rounds, uint32_t seed = 1,
                              uint64_t begin = 0) {
  std::vector<std::promise<int>> done(tasks);
  post_to(user.thread(), [&] {
    for (size_t i = 0; i < tasks; ++i) {
      start(exercise(user.channel(), begin + i * bytes_each, bytes_each, seed + static_cast<uint32_t>(i), rounds),
            [&done, i](int result) { done[i].set_value(result); });
    }
  });
  std::vector<int> results;
  for (auto& result : done) results.push_back(result.get_future().get());
  return results;
}

// Keeps requests in flight: each is submitted again when it completes, `total` times in all. For speed, and to look at
// what a stream of requests does.
class Stream {
 public:
  Stream(VirtioUser& user, size_t depth, uint64_t total, uint64_t bytes = 512)
      : user_(user), left_(total), ios_(depth), buffer_(user.bdev().allocate_buffer(depth * bytes).value()) {
    for (size_t i = 0; i < depth; ++i) {
      Io& io = ios_[i];
      io.stream = this;
      io.buffer = {.iov_base = buffer_.bytes().data() + i * bytes, .iov_len = bytes};
      io.iov = &io.buffer;
      io.iov_count = 1;
      io.length_bytes = bytes;
      io.offset_bytes = i * bytes;
      io.run = [](Work& work) {
        auto& done = static_cast<Io&>(work);
        done.stream->on_done(done);
      };
    }
  }
  void start() {
    post_to(user_.thread(), [this] {
      for (Io& io : ios_) submit(io);
    });
  }
  // Issues no more.
  void stop() { stopping_ = true; }
  void wait() { ended_.get_future().wait(); }
  void run() {
    start();
    wait();
  }
  uint64_t completed() const { return completed_; }
  uint64_t failed() const { return failed_; }
  IoStatus last_failure() const { return last_failure_; }

 private:
  struct Io : BlockIo {
    Stream* stream = nullptr;
    iovec buffer;
  };

  void submit(Io& io) {
    if (left_ == 0) return;
    --left_;
    ++in_flight_;
    user_.channel().submit(io);
  }
  void on_done(Io& io) {
    --in_flight_;
    ++completed_;
    if (io.status != IoStatus::kOk) {
      ++failed_;
      last_failure_ = io.status;
    }
    if (stopping_) left_ = 0;
    submit(io);
    if (in_flight_ == 0 && left_ == 0 && !std::exchange(told_, true)) ended_.set_value();
  }

  VirtioUser& user_;
  uint64_t left_;
  uint32_t in_flight_ = 0;
  bool told_ = false;
  std::vector<Io> ios_;
  IoBuffer buffer_;
  std::promise<void> ended_;
  std::atomic<bool> stopping_ = false;
  std::atomic<uint64_t> completed_ = 0;
  std::atomic<uint64_t> failed_ = 0;
  std::atomic<IoStatus> last_failure_ = IoStatus::kOk;
};

// --- Against our own target ---

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
  ASSERT_TRUE(world.attach({.name = "v0", .socket_path = target.socket_path(0), .vq_count = 1, .vq_size = 8}).has_value());
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
    results.push_back(std::async(std::launch::async,
                                 [user, begin] { return exercise_all(*user, 8, 128 << 10, 40, 5, begin); }));
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

// --- Against a back end that lies ---

class VirtioLies : public ::testing::Test {
 protected:
  std::string path() const { return directory_.file("fake"); }
  struct Directory {
    Directory() {
      std::string name = (std::filesystem::temp_directory_path() / "sluice-fake-XXXXXX").string();
      CHECK(::mkdtemp(name.data()) != nullptr);
      path = name;
    }
    ~Directory() { std::filesystem::remove_all(path); }
    std::string file(const char* name) const { return (path / name).string(); }
    std::filesystem::path path;
  };
  Directory directory_;
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
  const std::vector<std::array<uint64_t, 3>> expected = {{1, 8, 0}, {9, 8, 0}, {17, 4, 0}, {0, 16, 1}, {16, 1, 1}, {0, 1, 0}};
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
      {SetUpLie::kHangUp, ECONNRESET},     {SetUpLie::kOtherAnswer, EPROTO},  {SetUpLie::kUnasked, 0},
      {SetUpLie::kNotAReply, ECONNRESET},  {SetUpLie::kHugePayload, ECONNRESET}, {SetUpLie::kShortFeatures, EPROTO},
      {SetUpLie::kNoConfig, EPROTO},       {SetUpLie::kRefusesMemory, ECONNREFUSED}, {SetUpLie::kNoQueues, EPROTO}};
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
  back_end->set_options(less);
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
  ASSERT_TRUE(world.hosts.await(world.app(), module.attach(world.manager, {.name = "v0", .socket_path = path()})).has_value());
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

// --- Against qemu-storage-daemon ---

class QemuStorageDaemon {
 public:
  QemuStorageDaemon(const std::string& directory, const std::string& image) : socket_(directory + "/qsd") {
    const std::string file = "driver=file,node-name=f,filename=" + image;
    const std::string blk = "type=vhost-user-blk,id=e,node-name=f,writable=on,num-queues=2,addr.type=unix,addr.path=" + socket_;
    pid_ = ::fork();
    CHECK(pid_ >= 0);
    if (pid_ == 0) {
      ::execlp("qemu-storage-daemon", "qemu-storage-daemon", "--blockdev", file.c_str(), "--export", blk.c_str(), nullptr);
      ::_exit(127);
    }
    started_ = wait_until([this] { return std::filesystem::exists(socket_) || ::waitpid(pid_, nullptr, WNOHANG) != 0; }) &&
               std::filesystem::exists(socket_);
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
  const std::string socket_;
  pid_t pid_ = 0;
  bool started_ = false;
};

TEST_F(VirtioLies, QemuStorageDaemonWorksAndIsComeBackTo) {
  const std::string image = directory_.file("image");
  { const UniqueFd file(::open(image.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)); CHECK(::ftruncate(file.get(), kDiskBytes) == 0); }
  auto daemon = std::make_unique<QemuStorageDaemon>(directory_.path.string(), image);
  if (!daemon->started()) GTEST_SKIP() << "qemu-storage-daemon is not installed";
  VirtioWorld world;
  const auto attached = world.attach({.name = "v0", .socket_path = daemon->socket()});
  ASSERT_TRUE(attached.has_value()) << attached.error().what;
  VirtioUser user(world, "v0");
  EXPECT_THAT(exercise_all(user, 8, 128 << 10, 30), Each(-1));
  PageBuffer page(4096, 5);
  ASSERT_EQ(user.write(0, page.bytes()), IoStatus::kOk);
  const std::string socket = daemon->socket();
  daemon.reset();
  ASSERT_TRUE(wait_until([&] { return !world.info("v0").connected; }));
  daemon = std::make_unique<QemuStorageDaemon>(directory_.path.string(), image);
  ASSERT_TRUE(wait_until([&] { return world.info("v0").connected; }));
  PageBuffer back(4096);
  EXPECT_EQ(user.read(0, back.bytes()), IoStatus::kOk);
  EXPECT_TRUE(back == page);
}

}  // namespace
}  // namespace sluice::test
