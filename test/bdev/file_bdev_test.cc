// What must hold for bdevs in files, whichever interface of the kernel they use: aio and io_uring.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <memory>
#include <string>
#include <tuple>

#include "lib/bdev/aio/aio_bdev.h"
#include "lib/bdev/uring/uring_bdev.h"
#include "test/support/allocation_count.h"
#include "test/support/disk_user.h"
#include "test/support/temp_file.h"

namespace sluice {
namespace {

constexpr uint64_t kMiB = 1U << 20;

enum class Interface : uint8_t { kAio, kUring };

// One of the modules. Outlives the hosts, whose queues it is the key of.
class FileModule {
 public:
  explicit FileModule(Interface interface) : interface_(interface) {}

  Result<std::unique_ptr<Bdev>> create(const FileBdevOptions& options) {
    return interface_ == Interface::kAio ? aio_.create(options) : uring_.create(options);
  }

  // Whether this kernel, as it is set up, has what the module needs.
  bool usable() {
    const TempFile file(kMiB, TempFile::Kind::kMemory);
    return create({.name = "trial", .filename = file.path()}).has_value();
  }
  const char* product_name() const { return interface_ == Interface::kAio ? "AIO disk" : "URING bdev"; }
  Poller* find_poller(LwThread& thread) const {
    const std::string_view name = interface_ == Interface::kAio ? "aio" : "uring";
    Poller* found = nullptr;
    thread.for_each_poller([&](Poller& poller) {
      if (poller.name() == name) found = &poller;
    });
    return found;
  }

 private:
  const Interface interface_;
  AioModule aio_;
  UringModule uring_;
};

class FileTestBase : public testing::Test {
 protected:
  explicit FileTestBase(Interface interface, size_t host_count = 1) : module_(interface), world_(host_count) {}

  void SetUp() override {
    if (!module_.usable()) GTEST_SKIP() << "this kernel has no io_uring, or it is disabled";
  }
  Bdev& add(const std::string& path, FileBdevOptions options = {}) {
    options.name = "disk";
    options.filename = path;
    return world_.add(module_.create(options));
  }
  int refused(const FileBdevOptions& options) {
    const auto made = module_.create(options);
    return made ? 0 : made.error().code;
  }
  int rescan(Bdev& bdev) {
    const Result<> scanned =
        world_.hosts.on(world_.app(), [&] { return dynamic_cast<FileBdev&>(bdev).rescan(world_.manager); });
    return scanned ? 0 : scanned.error().code;
  }

  FileModule module_;
  BdevWorld world_;
};

// With direct I/O, and through the page cache.
class FileBdevTest : public FileTestBase, public testing::WithParamInterface<std::tuple<Interface, TempFile::Kind>> {
 protected:
  FileBdevTest() : FileTestBase(std::get<0>(GetParam())) {}
  static TempFile::Kind kind() { return std::get<1>(GetParam()); }
};

std::string name_of(Interface interface) { return interface == Interface::kAio ? "Aio" : "Uring"; }

std::string name_of(const testing::TestParamInfo<std::tuple<Interface, TempFile::Kind>>& test) {
  const auto [interface, kind] = test.param;
  return name_of(interface) + (kind == TempFile::Kind::kDisk ? "Disk" : "Memory");
}

INSTANTIATE_TEST_SUITE_P(, FileBdevTest,
                         testing::Combine(testing::Values(Interface::kAio, Interface::kUring),
                                          testing::Values(TempFile::Kind::kDisk, TempFile::Kind::kMemory)),
                         [](const auto& test) { return name_of(test); });

TEST_P(FileBdevTest, WritesToTheFileAndReadsItBack) {
  const TempFile file(kMiB, kind());
  add(file.path());
  DiskUser user(world_);
  PageBuffer data(16'384, 1);
  TestIo write(IoType::kWrite, 8192, {data.bytes(0, 4096), data.bytes(4096, 12'288)});
  user.submit(write);
  EXPECT_EQ(user.finish(write), IoStatus::kOk);
  EXPECT_EQ(user.flush(), IoStatus::kOk);
  EXPECT_TRUE(std::ranges::equal(file.contents(8192, 16'384), data.bytes()));
  EXPECT_TRUE(all_zero(file.contents(0, 8192)));

  PageBuffer back(16'384);
  TestIo read(IoType::kRead, 8192, {back.bytes(0, 512), back.bytes(512, 15'872)});
  user.submit(read);
  EXPECT_EQ(user.finish(read), IoStatus::kOk);
  EXPECT_EQ(back, data);
}

TEST_P(FileBdevTest, TakesBuffersOfAnyAlignment) {
  const TempFile file(kMiB, kind());
  add(file.path());
  DiskUser user(world_);
  PageBuffer data(16'384, 1);
  PageBuffer back(16'384);
  EXPECT_EQ(user.write(0, data.bytes(3, 8192)), IoStatus::kOk);
  EXPECT_TRUE(std::ranges::equal(file.contents(0, 8192), data.bytes(3, 8192)));
  TestIo read(IoType::kRead, 0, {back.bytes(1, 100), back.bytes(200, 924), back.bytes(2000, 7168)});
  user.submit(read);
  EXPECT_EQ(user.finish(read), IoStatus::kOk);
  EXPECT_TRUE(std::ranges::equal(back.bytes(1, 100), data.bytes(3, 100)));
  EXPECT_TRUE(std::ranges::equal(back.bytes(200, 924), data.bytes(103, 924)));
  EXPECT_TRUE(std::ranges::equal(back.bytes(2000, 7168), data.bytes(1027, 7168)));
}

TEST_P(FileBdevTest, DiscardFreesSpaceAndReadsZeroes) {
  const TempFile file(4 * kMiB, kind());
  const Bdev& bdev = add(file.path());
  if (!bdev.supports(IoType::kDiscard)) GTEST_SKIP() << "the file system cannot punch holes";
  DiskUser user(world_);
  PageBuffer data(4 * kMiB, 1);
  ASSERT_EQ(user.write(0, data.bytes()), IoStatus::kOk);
  const uint64_t allocated = file.allocated_bytes();
  EXPECT_EQ(user.discard(kMiB, 2 * kMiB), IoStatus::kOk);
  EXPECT_LE(file.allocated_bytes() + 2 * kMiB, allocated);
  PageBuffer back(4 * kMiB);
  ASSERT_EQ(user.read(0, back.bytes()), IoStatus::kOk);
  EXPECT_TRUE(std::ranges::equal(back.bytes(0, kMiB), data.bytes(0, kMiB)));
  EXPECT_TRUE(all_zero(back.bytes(kMiB, 2 * kMiB)));
  EXPECT_TRUE(std::ranges::equal(back.bytes(3 * kMiB, kMiB), data.bytes(3 * kMiB, kMiB)));
}

TEST_P(FileBdevTest, WriteZeroesKeepsTheSpaceUnlessItMayBeFreed) {
  const TempFile file(4 * kMiB, kind());
  const Bdev& bdev = add(file.path());
  DiskUser user(world_);
  PageBuffer data(4 * kMiB, 1);
  PageBuffer back(4 * kMiB);
  for (const bool may_unmap : {false, true}) {
    ASSERT_EQ(user.write(0, data.bytes()), IoStatus::kOk);
    const uint64_t allocated = file.allocated_bytes();
    EXPECT_EQ(user.write_zeroes(kMiB, 2 * kMiB, may_unmap), IoStatus::kOk);
    if (!may_unmap) {
      EXPECT_EQ(file.allocated_bytes(), allocated);
    } else if (bdev.supports(IoType::kDiscard)) {
      EXPECT_LE(file.allocated_bytes() + 2 * kMiB, allocated);
    }
    ASSERT_EQ(user.read(0, back.bytes()), IoStatus::kOk);
    EXPECT_TRUE(std::ranges::equal(back.bytes(0, kMiB), data.bytes(0, kMiB)));
    EXPECT_TRUE(all_zero(back.bytes(kMiB, 2 * kMiB)));
    EXPECT_TRUE(std::ranges::equal(back.bytes(3 * kMiB, kMiB), data.bytes(3 * kMiB, kMiB)));
  }
}

TEST_P(FileBdevTest, ManyMoreDiscardsThanThreads) {
  const TempFile file(4 * kMiB, kind());
  if (!add(file.path()).supports(IoType::kDiscard)) GTEST_SKIP() << "the file system cannot punch holes";
  DiskUser user(world_);
  std::vector<std::unique_ptr<TestIo>> ios;
  for (uint64_t i = 0; i < 1000; ++i) {
    user.submit(*ios.emplace_back(std::make_unique<TestIo>(IoType::kDiscard, i * 4096, 4096)));
  }
  for (const auto& io : ios) EXPECT_EQ(user.finish(*io), IoStatus::kOk);
}

TEST_P(FileBdevTest, ManyMoreRequestsThanTheKernelHolds) {
  const TempFile file(16 * kMiB, kind());
  add(file.path());
  DiskUser user(world_);
  PageBuffer data(16 * kMiB, 1);
  PageBuffer back(16 * kMiB);
  for (const auto& [type, buffer] : {std::pair(IoType::kWrite, &data), std::pair(IoType::kRead, &back)}) {
    std::vector<std::unique_ptr<TestIo>> ios;
    for (uint64_t offset = 0; offset < 16 * kMiB; offset += 4096) {
      user.submit(*ios.emplace_back(new TestIo(type, offset, {buffer->bytes(offset, 4096)})));
    }
    EXPECT_EQ(user.channel().in_flight(), 4096U);
    for (const auto& io : ios) ASSERT_EQ(user.finish(*io), IoStatus::kOk);
  }
  EXPECT_EQ(back, data);
}

TEST_P(FileBdevTest, GrowsWithItsFileWhenRescanned) {
  const TempFile file(kMiB, kind());
  Bdev& bdev = add(file.path());
  DiskUser user(world_);
  PageBuffer data(4096, 1);
  EXPECT_EQ(user.write(kMiB, data.bytes()), IoStatus::kInvalid);

  file.resize(2 * kMiB);
  EXPECT_EQ(bdev.size_bytes(), kMiB);
  EXPECT_EQ(rescan(bdev), 0);
  EXPECT_EQ(bdev.size_bytes(), 2 * kMiB);
  EXPECT_EQ(user.resizes, 1);
  EXPECT_EQ(user.write(kMiB, data.bytes()), IoStatus::kOk);

  EXPECT_EQ(rescan(bdev), 0);
  EXPECT_EQ(user.resizes, 1);
  file.resize(2 * kMiB + 100);
  EXPECT_EQ(rescan(bdev), EINVAL);
  file.resize(0);
  EXPECT_EQ(rescan(bdev), EINVAL);
  EXPECT_EQ(bdev.size_bytes(), 2 * kMiB);
}

TEST_P(FileBdevTest, ReadBeyondTheEndOfAShrunkFileFails) {
  const TempFile file(kMiB, kind());
  add(file.path());
  DiskUser user(world_);
  file.resize(kMiB - 4096);
  PageBuffer back(8192);
  EXPECT_EQ(user.read(kMiB - 4096, back.bytes(0, 4096)), IoStatus::kFailed);
  EXPECT_EQ(user.read(kMiB - 8192, back.bytes()), IoStatus::kFailed);
  EXPECT_EQ(user.read(kMiB - 8192, back.bytes(0, 4096)), IoStatus::kOk);
}

TEST_P(FileBdevTest, WriteBeyondTheFileSizeLimitFails) {
  const TempFile file(kMiB, kind());
  add(file.path());
  DiskUser user(world_);
  PageBuffer data(8192, 1);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{.rlim_cur = kMiB / 2, .rlim_max = before.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_EQ(user.write(kMiB / 2, data.bytes()), IoStatus::kFailed);
  EXPECT_EQ(user.write(kMiB / 2 - 4096, data.bytes()), IoStatus::kFailed);  // half of it fits
  EXPECT_EQ(user.write(0, data.bytes()), IoStatus::kOk);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
}

TEST_P(FileBdevTest, ReadOnlyDiskRefusesChanges) {
  const TempFile file(kMiB, kind());
  const Bdev& bdev = add(file.path(), {.readonly = true});
  EXPECT_TRUE(bdev.readonly());
  DiskUser user(world_, "disk", false);
  PageBuffer buffer(4096, 1);
  EXPECT_EQ(user.read(0, buffer.bytes()), IoStatus::kOk);
  EXPECT_TRUE(all_zero(buffer.bytes()));
  EXPECT_EQ(user.write(0, buffer.bytes()), IoStatus::kReadOnly);
  EXPECT_EQ(user.write_zeroes(0, 4096, true), IoStatus::kReadOnly);
  EXPECT_EQ(user.flush(), IoStatus::kOk);
}

TEST_P(FileBdevTest, OneFileHasOneWriterOrManyReaders) {
  const TempFile file(kMiB, kind());
  add(file.path());
  EXPECT_EQ(refused({.name = "second", .filename = file.path()}), EBUSY);
  EXPECT_EQ(refused({.name = "second", .filename = file.path(), .readonly = true}), EBUSY);
  world_.hosts.await(world_.app(), world_.manager.remove_all());
  add(file.path(), {.readonly = true});
  EXPECT_EQ(refused({.name = "second", .filename = file.path(), .readonly = true}), 0);
  EXPECT_EQ(refused({.name = "second", .filename = file.path()}), EBUSY);
}

TEST_P(FileBdevTest, ResetSucceeds) {
  const TempFile file(kMiB, kind());
  add(file.path());
  DiskUser user(world_);
  EXPECT_EQ(user.reset(), IoStatus::kOk);
}

TEST_P(FileBdevTest, SleepsWhenIdleInEveryMode) {
  const TempFile file(kMiB, kind());
  add(file.path());
  DiskUser user(world_);
  PageBuffer buffer(4096);
  for (const PollMode mode : {PollMode::kInterrupt, PollMode::kPoll, PollMode::kAdaptive, PollMode::kInterrupt}) {
    world_.hosts.set_mode(mode);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(user.read(0, buffer.bytes()), IoStatus::kOk);
    world_.hosts.run_until_idle();
    EXPECT_FALSE(module_.find_poller(world_.app())->hot());
    EXPECT_FALSE(world_.hosts[0].runnable());
  }
}

TEST_P(FileBdevTest, AllocatesNothingPerRequest) {
  const TempFile file(kMiB, kind());
  const bool discards = add(file.path()).supports(IoType::kDiscard);
  DiskUser user(world_);
  PageBuffer buffer(65'536, 1);
  TestIo write(IoType::kWrite, 0, {buffer.bytes()});
  TestIo read(IoType::kRead, 65'536, {buffer.bytes(0, 4096), buffer.bytes(4096, 4096)});
  TestIo flush(IoType::kFlush, 0, uint64_t{0});
  TestIo discard(IoType::kDiscard, 131'072, 65'536);
  constexpr uint64_t kRounds = 50;
  const auto rounds = [&] {
    for (uint64_t i = 0; i < kRounds; ++i) {
      for (TestIo* io : {&write, &read, &flush, &discard}) {
        if (io == &discard && !discards) continue;
        io->done = false;
        user.submit(*io);
      }
      while (!write.done || !read.done || !flush.done || (discards && !discard.done)) world_.hosts.turn();
    }
  };
  rounds();
  const uint64_t before = allocation_count();
  rounds();
  // Any kind of request would add one per round; the pool may happen to start its second thread.
  EXPECT_LT(allocation_count() - before, kRounds);
}

// --- What does not depend on the kind of file ---

class FileModuleTest : public FileTestBase, public testing::WithParamInterface<Interface> {
 protected:
  explicit FileModuleTest(size_t host_count = 1) : FileTestBase(GetParam(), host_count) {}
};

INSTANTIATE_TEST_SUITE_P(, FileModuleTest, testing::Values(Interface::kAio, Interface::kUring),
                         [](const auto& test) { return name_of(test.param); });

TEST_P(FileModuleTest, UsesDirectIoWhereTheFileSystemHasIt) {
  const TempFile file(kMiB);
  const UniqueFd probe(::open(file.path().c_str(), O_RDWR | O_DIRECT | O_CLOEXEC));
  if (!probe) GTEST_SKIP() << "the folder for temporary files is on a file system without direct I/O";
  EXPECT_GE(add(file.path()).limits().buffer_alignment_bytes, 512U);
}

TEST_P(FileModuleTest, UsesThePageCacheInMemoryFileSystems) {
  const TempFile file(kMiB, TempFile::Kind::kMemory);
  EXPECT_EQ(add(file.path()).limits().buffer_alignment_bytes, 1U);
}

TEST_P(FileModuleTest, HasTheParametersItWasMadeWith) {
  const TempFile file(kMiB);
  const Uuid uuid = Uuid::random();
  const Bdev& bdev = add(file.path(), {.uuid = uuid, .block_size_bytes = 4096});
  EXPECT_STREQ(bdev.product_name(), module_.product_name());
  EXPECT_EQ(bdev.uuid(), uuid);
  EXPECT_EQ(bdev.size_bytes(), kMiB);
  EXPECT_EQ(bdev.limits().block_size_bytes, 4096U);
}

TEST_P(FileModuleTest, RefusesWhatIsNoDisk) {
  const TempFile file(kMiB);
  const std::string folder = std::filesystem::temp_directory_path();
  const std::string fifo = file.path() + ".fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_EQ(refused({.name = "disk", .filename = file.path() + ".missing"}), ENOENT);
  EXPECT_EQ(refused({.name = "disk", .filename = ""}), ENOENT);
  EXPECT_EQ(refused({.name = "disk", .filename = folder}), EINVAL);
  EXPECT_EQ(refused({.name = "disk", .filename = "/dev/null"}), EINVAL);
  EXPECT_EQ(refused({.name = "disk", .filename = fifo}), EINVAL);
  ::unlink(fifo.c_str());
}

TEST_P(FileModuleTest, RefusesWrongSizes) {
  const TempFile file(kMiB);
  for (const uint32_t block_size : {1U, 256U, 520U, 3072U, 131'072U}) {
    EXPECT_EQ(refused({.name = "disk", .filename = file.path(), .block_size_bytes = block_size}), EINVAL);
  }
  file.resize(kMiB + 512);
  EXPECT_EQ(refused({.name = "disk", .filename = file.path(), .block_size_bytes = 4096}), EINVAL);
  EXPECT_EQ(refused({.name = "disk", .filename = file.path(), .block_size_bytes = 512}), 0);
  file.resize(100);
  EXPECT_EQ(refused({.name = "disk", .filename = file.path()}), EINVAL);
  file.resize(0);
  EXPECT_EQ(refused({.name = "disk", .filename = file.path()}), EINVAL);
}

class FileHostsTest : public FileModuleTest {
 protected:
  FileHostsTest() : FileModuleTest(3) {}
};

INSTANTIATE_TEST_SUITE_P(, FileHostsTest, testing::Values(Interface::kAio, Interface::kUring),
                         [](const auto& test) { return name_of(test.param); });

TEST_P(FileHostsTest, EachHasAQueueOfItsOwn) {
  const TempFile file(kMiB);
  add(file.path());
  std::vector<std::unique_ptr<DiskUser>> users;
  for (size_t i = 0; i < 3; ++i) users.push_back(std::make_unique<DiskUser>(world_, "disk", world_.hosts.home(i)));
  PageBuffer data(4096, 1);
  PageBuffer back(4096);
  ASSERT_EQ(users[0]->write(0, data.bytes()), IoStatus::kOk);
  ASSERT_EQ(users[1]->read(0, back.bytes()), IoStatus::kOk);
  EXPECT_EQ(back, data);
  EXPECT_NE(module_.find_poller(world_.hosts.home(0)), nullptr);
  EXPECT_NE(module_.find_poller(world_.hosts.home(1)), nullptr);
  EXPECT_EQ(module_.find_poller(world_.hosts.home(2)), nullptr) << "made before its first request";
}

// A block device on a file: needs root and the loop driver.
class LoopDevice {
 public:
  static std::unique_ptr<LoopDevice> attach(const TempFile& file) {
    const UniqueFd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    if (!control) return nullptr;
    const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
    if (number < 0) return nullptr;
    const std::string path = "/dev/loop" + std::to_string(number);
    UniqueFd device(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    loop_config config{};
    config.fd = static_cast<uint32_t>(file.fd());
    config.block_size = 4096;
    if (!device || ::ioctl(device.get(), LOOP_CONFIGURE, &config) != 0) return nullptr;
    return std::unique_ptr<LoopDevice>(new LoopDevice(path, std::move(device)));
  }
  ~LoopDevice() { ::ioctl(device_.get(), LOOP_CLR_FD); }
  const std::string& path() const { return path_; }
  int fd() const { return device_.get(); }

 private:
  LoopDevice(std::string path, UniqueFd device) : path_(std::move(path)), device_(std::move(device)) {}
  const std::string path_;
  const UniqueFd device_;
};

TEST_P(FileModuleTest, BlockDevice) {
  const TempFile file(8 * kMiB);
  const auto loop = LoopDevice::attach(file);
  if (loop == nullptr) GTEST_SKIP() << "no loop device can be set up (needs root)";
  {
    Bdev& bdev = add(loop->path());
    EXPECT_EQ(bdev.limits().block_size_bytes, 4096U);
    EXPECT_EQ(bdev.size_bytes(), 8 * kMiB);
    EXPECT_EQ(refused({.name = "second", .filename = loop->path()}), EBUSY);
    EXPECT_EQ(refused({.name = "second", .filename = loop->path(), .block_size_bytes = 512, .readonly = true}), EINVAL);

    DiskUser user(world_);
    PageBuffer data(4 * kMiB, 1);
    PageBuffer back(4 * kMiB);
    EXPECT_EQ(user.write(kMiB, data.bytes()), IoStatus::kOk);
    EXPECT_EQ(user.flush(), IoStatus::kOk);
    EXPECT_EQ(user.write_zeroes(2 * kMiB, kMiB, false), IoStatus::kOk);
    if (bdev.supports(IoType::kDiscard)) {
      EXPECT_EQ(user.discard(3 * kMiB, kMiB), IoStatus::kOk);
    }
    EXPECT_EQ(user.read(kMiB, back.bytes()), IoStatus::kOk);
    EXPECT_TRUE(std::ranges::equal(back.bytes(0, kMiB), data.bytes(0, kMiB)));
    EXPECT_TRUE(all_zero(back.bytes(kMiB, kMiB)));
    EXPECT_TRUE(std::ranges::equal(back.bytes(3 * kMiB, kMiB), data.bytes(3 * kMiB, kMiB)));

    file.resize(16 * kMiB);
    ASSERT_EQ(::ioctl(loop->fd(), LOOP_SET_CAPACITY, 0), 0);
    EXPECT_EQ(rescan(bdev), 0);
    EXPECT_EQ(bdev.size_bytes(), 16 * kMiB);
    EXPECT_EQ(user.resizes, 1);
  }
  world_.hosts.await(world_.app(), world_.manager.remove_all());
}

}  // namespace
}  // namespace sluice
