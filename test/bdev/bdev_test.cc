#include "lib/bdev/bdev.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "lib/base/iov_cursor.h"
#include "lib/bdev/bdev_manager.h"
#include "test/support/allocation_count.h"
#include "test/support/disk_user.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr uint64_t kDiskBytes = 1U << 20;
constexpr IoTypes kAllTypes = {IoType::kRead,    IoType::kWrite,       IoType::kFlush,
                               IoType::kDiscard, IoType::kWriteZeroes, IoType::kReset};

// A disk in memory. Completes inside do_submit(), or holds requests until the test lets them go; checks that it is
// given only what it can take.
class TestDisk final : public Bdev {
 public:
  explicit TestDisk(Options options) : Bdev(std::move(options)), data(size_bytes()) {}

  // One request as the disk saw it.
  struct Seen {
    uint64_t offset;
    uint64_t length;
    bool operator==(const Seen&) const = default;
  };

  bool hold = false;
  IoStatus answer = IoStatus::kOk;
  bool recording = true;
  std::vector<Seen> seen;
  std::vector<BlockIo*> held;
  const void* last_buffer = nullptr;
  std::vector<std::byte> data;

  // Ends the oldest request that is held. On its thread's host.
  void let_go() {
    BlockIo& io = *held.front();
    held.erase(held.begin());
    TestChannel::finish(io);
  }

 private:
  class TestChannel final : public BdevChannel {
   public:
    explicit TestChannel(TestDisk& disk) : BdevChannel(disk), disk_(disk) {}

    static void finish(BlockIo& io) {
      auto& disk = static_cast<TestDisk&>(io.channel->bdev());
      if (disk.answer == IoStatus::kOk && (io.type == IoType::kRead || io.type == IoType::kWrite)) {
        IovCursor cursor({io.iov, io.iov_count});
        const std::span<std::byte> place(disk.data.data() + io.offset_bytes, io.length_bytes);
        if (io.type == IoType::kWrite) cursor.copy_out(place);
        if (io.type == IoType::kRead) cursor.copy_in(place);
      }
      complete(io, disk.answer);
    }

   private:
    void do_submit(BlockIo& io) override {
      if (io.type == IoType::kRead || io.type == IoType::kWrite) check_limits(io);
      if (disk_.recording) disk_.seen.push_back({io.offset_bytes, io.length_bytes});
      if (disk_.hold) {
        disk_.held.push_back(&io);
      } else {
        finish(io);
      }
    }

    void check_limits(const BlockIo& io) {
      const BdevLimits& limits = disk_.limits();
      ASSERT_EQ(io.offset_bytes % limits.block_size_bytes, 0U);
      ASSERT_EQ(io.length_bytes % limits.block_size_bytes, 0U);
      ASSERT_GT(io.length_bytes, 0U);
      ASSERT_LE(io.length_bytes, limits.max_transfer_bytes);
      ASSERT_LE(io.iov_count, limits.max_segments);
      ASSERT_EQ(total_length({io.iov, io.iov_count}), io.length_bytes);
      if (limits.optimal_boundary_bytes != 0) {
        ASSERT_LE(io.offset_bytes % limits.optimal_boundary_bytes + io.length_bytes, limits.optimal_boundary_bytes);
      }
      for (uint32_t i = 0; i < io.iov_count; ++i) {
        ASSERT_EQ(reinterpret_cast<uintptr_t>(io.iov[i].iov_base) % limits.buffer_alignment_bytes, 0U);
        ASSERT_EQ(io.iov[i].iov_len % limits.buffer_alignment_bytes, 0U);
      }
      disk_.last_buffer = io.iov[0].iov_base;
    }

    TestDisk& disk_;
  };

  Result<std::unique_ptr<BdevChannel>> make_channel() override { return std::make_unique<TestChannel>(*this); }
};

Bdev::Options options(std::string name = "disk", BdevLimits limits = {}) {
  return {.name = std::move(name),
          .product_name = "Test disk",
          .size_bytes = kDiskBytes,
          .limits = limits,
          .io_types = kAllTypes};
}

class BdevTest : public testing::Test {
 protected:
  TestDisk& add(Bdev::Options disk_options = options()) {
    return static_cast<TestDisk&>(world_.add(std::make_unique<TestDisk>(std::move(disk_options))));
  }
  // 0, or the error's code.
  int try_add(Bdev::Options disk_options) {
    const auto added = world_.hosts.on(
        world_.app(), [&] { return world_.manager.add(std::make_unique<TestDisk>(std::move(disk_options))); });
    return added ? 0 : added.error().code;
  }
  int remove(Bdev& bdev, RemoveMode mode) {
    const Result<> removed = world_.hosts.await(world_.app(), world_.manager.remove(bdev, mode));
    return removed ? 0 : removed.error().code;
  }
  // Begins a removal; `code` is set at its end.
  void begin_remove(Bdev& bdev, int& code) {
    code = -1;
    world_.hosts.on(world_.app(), [&] {
      start(world_.manager.remove(bdev, RemoveMode::kForce),
            [&code](Result<> removed) { code = removed ? 0 : removed.error().code; });
    });
  }
  void let_go(TestDisk& disk) {
    world_.hosts.on(world_.app(), [&] { disk.let_go(); });
    world_.hosts.run_until_idle();
  }
  IoStats iostat(Bdev& bdev) { return world_.hosts.await(world_.app(), world_.manager.iostat(bdev)); }

  BdevWorld world_{2};
};

// --- What submit() checks ---

TEST_F(BdevTest, RefusesRangesThatAreNotOnTheDisk) {
  TestDisk& disk = add();
  DiskUser user(world_);
  PageBuffer buffer(1024);
  for (const IoType type : {IoType::kRead, IoType::kWrite, IoType::kDiscard, IoType::kWriteZeroes}) {
    const auto status = [&](uint64_t offset, uint64_t length) {
      TestIo io(type, offset, length);
      io.buffers.push_back({.iov_base = buffer.bytes().data(), .iov_len = length});
      io.iov = io.buffers.data();
      io.iov_count = 1;
      user.submit(io);
      return user.finish(io);
    };
    EXPECT_EQ(status(kDiskBytes, 512), IoStatus::kInvalid);
    EXPECT_EQ(status(kDiskBytes - 512, 1024), IoStatus::kInvalid);
    EXPECT_EQ(status(0, kDiskBytes + 512), IoStatus::kInvalid);
    EXPECT_EQ(status(UINT64_MAX - 511, 512), IoStatus::kInvalid);
    EXPECT_EQ(status(UINT64_MAX - 511, 1024), IoStatus::kInvalid) << "the sum overflows";
    EXPECT_EQ(status(512, UINT64_MAX - 511), IoStatus::kInvalid) << "the sum overflows";
    EXPECT_EQ(status(0, 0), IoStatus::kInvalid);
    EXPECT_EQ(status(1, 512), IoStatus::kInvalid);
    EXPECT_EQ(status(0, 513), IoStatus::kInvalid);
    EXPECT_THAT(disk.seen, IsEmpty());
    EXPECT_EQ(status(kDiskBytes - 512, 512), IoStatus::kOk);
    disk.seen.clear();
  }
  EXPECT_EQ(iostat(disk).errors(IoStatus::kInvalid), 4U * 9);
}

TEST_F(BdevTest, RefusesToChangeAReadOnlyDisk) {
  Bdev::Options readonly = options();
  readonly.readonly = true;
  add(std::move(readonly));
  DiskUser user(world_, "disk", false);
  PageBuffer buffer(512);
  EXPECT_EQ(user.write(0, buffer.bytes()), IoStatus::kReadOnly);
  EXPECT_EQ(user.discard(0, 512), IoStatus::kReadOnly);
  EXPECT_EQ(user.write_zeroes(0, 512, true), IoStatus::kReadOnly);
  EXPECT_EQ(user.read(0, buffer.bytes()), IoStatus::kOk);
  EXPECT_EQ(user.flush(), IoStatus::kOk);
  EXPECT_EQ(user.reset(), IoStatus::kOk);
}

TEST_F(BdevTest, RefusesTypesThatTheModuleDoesNotSupport) {
  Bdev::Options few = options();
  few.io_types = {IoType::kRead};
  TestDisk& disk = add(std::move(few));
  DiskUser user(world_);
  PageBuffer buffer(512);
  EXPECT_EQ(user.write(0, buffer.bytes()), IoStatus::kUnsupported);
  EXPECT_EQ(user.flush(), IoStatus::kUnsupported);
  EXPECT_EQ(user.discard(0, 512), IoStatus::kUnsupported);
  EXPECT_EQ(user.write_zeroes(0, 512, false), IoStatus::kUnsupported);
  EXPECT_EQ(user.reset(), IoStatus::kUnsupported);
  EXPECT_THAT(disk.seen, IsEmpty());
  EXPECT_EQ(user.read(0, buffer.bytes()), IoStatus::kOk);
}

TEST_F(BdevTest, FlushAndResetIgnoreTheirRange) {
  add();
  DiskUser user(world_);
  for (const IoType type : {IoType::kFlush, IoType::kReset}) {
    TestIo io(type, UINT64_MAX, 1);
    user.submit(io);
    EXPECT_EQ(user.finish(io), IoStatus::kOk);
  }
}

// A request that counts how often it completes, and where.
struct CountedIo : BlockIo {
  explicit CountedIo(PageBuffer& buffer, uint64_t length)
      : piece{.iov_base = buffer.bytes().data(), .iov_len = length} {
    length_bytes = length;
    iov = &piece;
    iov_count = 1;
    run = [](Work& work) {
      auto& self = static_cast<CountedIo&>(work);
      ++self.completions;
      self.completed_on = LwThread::current();
    };
  }
  iovec piece;
  int completions = 0;
  LwThread* completed_on = nullptr;
};

TEST_F(BdevTest, CompletesOnceOnTheSubmittersThreadAndNeverInsideSubmit) {
  add(options("disk", {.buffer_alignment_bytes = 512, .max_transfer_bytes = 1024}));
  LwThread& other = world_.hosts.home(1);
  DiskUser user(world_, "disk", other);
  PageBuffer buffer(4096);
  CountedIo fits(buffer, 512);
  CountedIo split(buffer, 4096);
  CountedIo refused(buffer, 1);
  CountedIo bounced(buffer, 512);
  bounced.piece.iov_base = buffer.bytes().data() + 1;
  for (CountedIo* io : {&fits, &split, &refused, &bounced}) {
    world_.hosts.on(other, [&] {
      user.channel().submit(*io);
      EXPECT_EQ(io->completions, 0);
    });
    world_.hosts.run_until_idle();
    EXPECT_EQ(io->completions, 1);
    EXPECT_EQ(io->completed_on, &other);
  }
  EXPECT_EQ(user.channel().in_flight(), 0U);
}

TEST_F(BdevTest, CountsWhatIsInFlight) {
  TestDisk& disk = add();
  disk.hold = true;
  DiskUser user(world_);
  PageBuffer buffer(1024);
  TestIo first(IoType::kRead, 0, {buffer.bytes(0, 512)});
  TestIo second(IoType::kRead, 512, {buffer.bytes(512, 512)});
  user.submit(first);
  user.submit(second);
  EXPECT_EQ(user.channel().in_flight(), 2U);
  let_go(disk);
  EXPECT_TRUE(first.done);
  EXPECT_EQ(user.channel().in_flight(), 1U);
  disk.answer = IoStatus::kNoSpace;
  let_go(disk);
  EXPECT_EQ(second.status, IoStatus::kNoSpace);
  EXPECT_EQ(user.channel().in_flight(), 0U);
}

// --- Splitting and bouncing ---

TEST_F(BdevTest, PassesOnWhatFitsAsItIs) {
  TestDisk& disk = add(options("disk", {.buffer_alignment_bytes = 512, .max_segments = 2, .max_transfer_bytes = 4096}));
  DiskUser user(world_);
  PageBuffer buffer(4096, 1);
  TestIo io(IoType::kWrite, 512, {buffer.bytes(0, 512), buffer.bytes(512, 3584)});
  user.submit(io);
  EXPECT_EQ(user.finish(io), IoStatus::kOk);
  EXPECT_THAT(disk.seen, ElementsAre(TestDisk::Seen{512, 4096}));
  EXPECT_EQ(disk.last_buffer, buffer.bytes().data()) << "not copied";
}

TEST_F(BdevTest, SplitsByTheLargestTransfer) {
  TestDisk& disk = add(options("disk", {.max_transfer_bytes = 1024}));
  DiskUser user(world_);
  PageBuffer buffer(2560, 1);
  EXPECT_EQ(user.write(512, buffer.bytes()), IoStatus::kOk);
  EXPECT_THAT(disk.seen, ElementsAre(TestDisk::Seen{512, 1024}, TestDisk::Seen{1536, 1024}, TestDisk::Seen{2560, 512}));
  EXPECT_EQ(std::memcmp(disk.data.data() + 512, buffer.bytes().data(), 2560), 0);
}

TEST_F(BdevTest, SplitsByALargestTransferThatIsNotWholeBlocks) {
  TestDisk& disk = add(options("disk", {.buffer_alignment_bytes = 512, .max_transfer_bytes = 1500}));
  DiskUser user(world_);
  PageBuffer buffer(4096, 1);
  EXPECT_EQ(user.write(0, buffer.bytes(0, 2048)), IoStatus::kOk);
  EXPECT_EQ(user.write(2048, buffer.bytes(1, 2048)), IoStatus::kOk) << "bounced";
  EXPECT_THAT(disk.seen, ElementsAre(TestDisk::Seen{0, 1024}, TestDisk::Seen{1024, 1024}, TestDisk::Seen{2048, 1024},
                                     TestDisk::Seen{3072, 1024}));
  EXPECT_EQ(std::memcmp(disk.data.data() + 2048, buffer.bytes().data() + 1, 2048), 0);
}

TEST_F(BdevTest, SplitsByTheMostSegments) {
  TestDisk& disk = add(options("disk", {.max_segments = 2}));
  DiskUser user(world_);
  PageBuffer buffer(4096, 1);
  // The second pair adds up to a block and a half, of which one block can go.
  TestIo io(IoType::kWrite, 0,
            {buffer.bytes(0, 512), buffer.bytes(512, 1024), buffer.bytes(1536, 512), buffer.bytes(2048, 256),
             buffer.bytes(2304, 256)});
  user.submit(io);
  EXPECT_EQ(user.finish(io), IoStatus::kOk);
  EXPECT_THAT(disk.seen, ElementsAre(TestDisk::Seen{0, 1536}, TestDisk::Seen{1536, 512}, TestDisk::Seen{2048, 512}));
  EXPECT_EQ(std::memcmp(disk.data.data(), buffer.bytes().data(), 2560), 0);
}

TEST_F(BdevTest, SplitsAtTheBoundary) {
  TestDisk& disk = add(options("disk", {.optimal_boundary_bytes = 2048}));
  DiskUser user(world_);
  PageBuffer buffer(4096);
  EXPECT_EQ(user.read(1536, buffer.bytes()), IoStatus::kOk);
  EXPECT_THAT(disk.seen,
              ElementsAre(TestDisk::Seen{1536, 512}, TestDisk::Seen{2048, 2048}, TestDisk::Seen{4096, 1536}));
  disk.seen.clear();
  EXPECT_EQ(user.read(2048, buffer.bytes(0, 2048)), IoStatus::kOk);
  EXPECT_THAT(disk.seen, ElementsAre(TestDisk::Seen{2048, 2048}));
}

TEST_F(BdevTest, DoesNotSplitWhatHasNoBuffers) {
  TestDisk& disk = add(options("disk", {.max_transfer_bytes = 512, .optimal_boundary_bytes = 512}));
  DiskUser user(world_);
  EXPECT_EQ(user.discard(0, kDiskBytes), IoStatus::kOk);
  EXPECT_EQ(user.write_zeroes(0, kDiskBytes, true), IoStatus::kOk);
  EXPECT_THAT(disk.seen, ElementsAre(TestDisk::Seen{0, kDiskBytes}, TestDisk::Seen{0, kDiskBytes}));
}

TEST_F(BdevTest, SplitsOnePieceAtATimeAndEndsAtTheFirstThatFails) {
  TestDisk& disk = add(options("disk", {.max_transfer_bytes = 512}));
  disk.hold = true;
  DiskUser user(world_);
  PageBuffer buffer(2048);
  TestIo io(IoType::kRead, 0, {buffer.bytes()});
  user.submit(io);
  EXPECT_EQ(disk.held.size(), 1U);
  EXPECT_EQ(user.channel().in_flight(), 1U);
  let_go(disk);
  EXPECT_EQ(disk.held.size(), 1U);
  EXPECT_FALSE(io.done);
  disk.answer = IoStatus::kFailed;
  let_go(disk);
  EXPECT_TRUE(io.done);
  EXPECT_EQ(io.status, IoStatus::kFailed);
  EXPECT_THAT(disk.held, IsEmpty());
  EXPECT_EQ(disk.seen.size(), 2U);
}

TEST_F(BdevTest, BouncesMoreThanABufferOfUnalignedBytes) {
  constexpr size_t kLength = 700 * 1024;
  TestDisk& disk = add(options("disk", {.buffer_alignment_bytes = 512}));
  DiskUser user(world_);
  PageBuffer from(kLength + 1, 1);
  PageBuffer to(kLength + 3);
  EXPECT_EQ(user.write(512, from.bytes(1, kLength)), IoStatus::kOk);
  EXPECT_EQ(user.read(512, to.bytes(3, kLength)), IoStatus::kOk);
  EXPECT_EQ(std::memcmp(from.bytes().data() + 1, to.bytes().data() + 3, kLength), 0);
  EXPECT_GT(disk.seen.size(), 2U);
}

// Random limits, and random requests in buffers of random shapes, against a copy of the disk.
TEST_F(BdevTest, ReadsWhatWasWrittenWhateverTheShapes) {
  for (uint32_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto pick = [&random](std::initializer_list<uint32_t> values) {
      return values.begin()[random() % values.size()];
    };
    const uint32_t block = pick({512, 4096});
    TestDisk& disk = add(options("disk", {.block_size_bytes = block,
                                          .buffer_alignment_bytes = pick({1, 4, 512}),
                                          .max_segments = pick({1, 2, 3, 16, 1024}),
                                          .max_transfer_bytes = pick({block, 3 * block, 65'536, 100'000, 1U << 30}),
                                          .optimal_boundary_bytes = pick({0, block, 4 * block, 65'536})}));
    std::vector<std::byte> model(kDiskBytes);
    {
      DiskUser user(world_);
      for (int step = 0; step < 30; ++step) {
        const uint64_t blocks = kDiskBytes / block;
        const uint64_t length = (1 + random() % 64) * block;
        const uint64_t offset = random() % (blocks - length / block + 1) * block;
        // Pieces of 1 byte up to several blocks, apart from one another by some bytes or none.
        PageBuffer memory(4 * length + 4096, static_cast<uint32_t>(random()));
        TestIo io(random() % 2 == 0 ? IoType::kRead : IoType::kWrite, offset, uint64_t{length});
        const uint32_t largest = pick({700, 4096, 20'000});
        const uint32_t grain = pick({1, 4, 512});
        size_t at = random() % 4 * grain;
        for (uint64_t left = length; left > 0;) {
          const uint64_t wanted = (1 + random() % largest + grain - 1) / grain * grain;
          // Few enough pieces for their gaps to fit.
          const uint64_t size = io.buffers.size() > 200 ? left : std::min(left, wanted);
          ASSERT_LE(at + size, memory.bytes().size());
          io.buffers.push_back({.iov_base = memory.bytes().data() + at, .iov_len = size});
          at += size + random() % 3 * std::min<size_t>(grain, 16);
          left -= size;
        }
        io.iov = io.buffers.data();
        io.iov_count = static_cast<uint32_t>(io.buffers.size());
        user.submit(io);
        ASSERT_EQ(user.finish(io), IoStatus::kOk);
        std::vector<std::byte> content(length);
        IovCursor(io.buffers).copy_out(content);
        if (io.type == IoType::kWrite) std::ranges::copy(content, model.begin() + static_cast<ptrdiff_t>(offset));
        ASSERT_EQ(std::memcmp(content.data(), model.data() + offset, length), 0) << "step " << step;
      }
      ASSERT_EQ(disk.data, model);
    }
    ASSERT_EQ(remove(disk, RemoveMode::kIfUnused), 0);
  }
}

TEST_F(BdevTest, AllocatesNothingPerIoOnceWarm) {
  TestDisk& disk = add(options("disk", {.buffer_alignment_bytes = 512, .max_segments = 2, .max_transfer_bytes = 4096}));
  disk.recording = false;
  DiskUser user(world_);
  PageBuffer buffer(16'384);
  TestIo fits(IoType::kRead, 0, {buffer.bytes(0, 4096)});
  TestIo split(IoType::kWrite, 0, {buffer.bytes(0, 4096), buffer.bytes(4096, 4096), buffer.bytes(8192, 4096)});
  TestIo bounced(IoType::kRead, 0, {buffer.bytes(1, 8192)});
  const auto round = [&] {
    for (TestIo* io : {&fits, &split, &bounced}) {
      io->done = false;
      user.submit(*io);
    }
    world_.hosts.run_until_idle();
  };
  round();
  const uint64_t before = allocation_count();
  for (int i = 0; i < 100; ++i) round();
  EXPECT_EQ(allocation_count() - before, 0U);
  EXPECT_TRUE(fits.done && split.done && bounced.done);
  EXPECT_EQ(user.channel().stats().of(IoType::kRead).ops, 202U);
}

// --- Names ---

TEST_F(BdevTest, IsFoundByNameAliasAndUuid) {
  Bdev::Options named = options("disk");
  named.aliases = {"store/volume", "other"};
  named.uuid = *Uuid::parse("01234567-89ab-4cde-8f01-23456789abcd");
  const TestDisk& disk = add(std::move(named));
  add(options("second"));
  for (const char* name : {"disk", "store/volume", "other", "01234567-89ab-4cde-8f01-23456789abcd",
                           "01234567-89AB-4CDE-8F01-23456789ABCD"}) {
    EXPECT_EQ(world_.manager.find(name), &disk) << name;
  }
  for (const char* name : {"", "dis", "disk2", "DISK", "store", "01234567-89ab-4cde-8f01-23456789abce"}) {
    EXPECT_EQ(world_.manager.find(name), nullptr) << name;
  }
}

TEST_F(BdevTest, NamesAliasesAndUuidsAreTakenOnce) {
  Bdev::Options first = options("first");
  first.aliases = {"alias"};
  const Uuid uuid = add(std::move(first)).uuid();
  EXPECT_EQ(try_add(options("first")), EEXIST);
  EXPECT_EQ(try_add(options("alias")), EEXIST);
  const auto with_alias = [](const char* alias) {
    Bdev::Options second = options("second");
    second.aliases = {"free", alias};
    return second;
  };
  EXPECT_EQ(try_add(with_alias("first")), EEXIST);
  EXPECT_EQ(try_add(with_alias("alias")), EEXIST);
  Bdev::Options same_uuid = options("second");
  same_uuid.uuid = uuid;
  EXPECT_EQ(try_add(std::move(same_uuid)), EEXIST);
  EXPECT_EQ(try_add(with_alias("another")), 0);
  EXPECT_THAT(world_.manager.list(), ElementsAre(world_.manager.find("first"), world_.manager.find("second")));
}

TEST_F(BdevTest, IsOpenedByItsUsers) {
  Bdev::Options readonly = options("readonly");
  readonly.readonly = true;
  add(std::move(readonly));
  const TestDisk& disk = add();
  DiskUser events(world_);
  const auto open = [&](const char* name, bool writable) {
    return world_.hosts.on(world_.app(), [&] { return world_.manager.open(name, writable, events, "somebody"); });
  };
  EXPECT_EQ(open("missing", false).error().code, ENODEV);
  EXPECT_EQ(open("readonly", true).error().code, EROFS);
  EXPECT_TRUE(open("readonly", false).has_value());
  {
    const auto handle = open("disk", true);
    ASSERT_TRUE(handle.has_value());
    EXPECT_TRUE((*handle)->writable());
    const std::vector<const BdevHandle*> users = world_.manager.users(disk);
    ASSERT_EQ(users.size(), 2U);
    EXPECT_EQ(users[1]->user(), "somebody");
  }
  EXPECT_EQ(world_.manager.users(disk).size(), 1U);
}

// --- Waiting for a disk ---

class WaitForTest : public BdevTest {
 protected:
  void wait_for(const char* name, uint64_t timeout_ns) {
    world_.hosts.on(world_.app(), [&] {
      start(world_.manager.wait_for(name, timeout_ns), [this](Bdev* found) {
        ++ended_;
        found_ = found;
      });
    });
    world_.hosts.run_until_idle();
  }
  void pass(uint64_t ns) {
    world_.hosts.advance(ns);
    world_.hosts.run_until_idle();
  }
  // On the application's thread, as the manager's other calls.
  TestDisk& appears(const char* name) {
    EXPECT_EQ(try_add(options(name)), 0);
    world_.hosts.run_until_idle();
    return static_cast<TestDisk&>(*world_.manager.find(name));
  }

  int ended_ = 0;
  Bdev* found_ = nullptr;
};

TEST_F(WaitForTest, EndsAtOnceWhenItIsThere) {
  const Bdev& disk = appears("disk");
  wait_for("disk", 0);
  EXPECT_EQ(ended_, 1);
  EXPECT_EQ(found_, &disk);
}

TEST_F(WaitForTest, EndsAtOnceWithoutATimeout) {
  wait_for("disk", 0);
  EXPECT_EQ(ended_, 1);
  EXPECT_EQ(found_, nullptr);
}

TEST_F(WaitForTest, EndsWhenItAppears) {
  wait_for("disk", kNsPerSec);
  wait_for("disk", kNsPerSec);
  appears("another");
  EXPECT_EQ(ended_, 0);
  pass(kNsPerSec - 1);
  const Bdev& disk = appears("disk");
  EXPECT_EQ(ended_, 2);
  EXPECT_EQ(found_, &disk);
  pass(kNsPerSec);
  EXPECT_EQ(ended_, 2);
}

TEST_F(WaitForTest, EndsAtItsTimeoutWhateverElseAppears) {
  wait_for("disk", kNsPerSec);
  pass(kNsPerSec / 2);
  appears("another");
  pass(kNsPerSec / 2 - 1);
  EXPECT_EQ(ended_, 0);
  pass(1);
  EXPECT_EQ(ended_, 1);
  EXPECT_EQ(found_, nullptr);
}

TEST_F(WaitForTest, EndsWhenWaitsAreCancelled) {
  wait_for("disk", kNsPerSec);
  world_.hosts.on(world_.app(), [&] { world_.manager.cancel_waits(); });
  world_.hosts.run_until_idle();
  EXPECT_EQ(ended_, 1);
  wait_for("disk", kNsPerSec);
  EXPECT_EQ(ended_, 2) << "nor does anybody wait any more";
}

// --- Resizing and removing ---

TEST_F(BdevTest, TellsItsUsersOfItsNewSize) {
  TestDisk& disk = add();
  DiskUser user(world_);
  DiskUser other(world_);
  const auto resize = [&](uint64_t bytes) {
    world_.hosts.on(world_.app(), [&] { world_.manager.set_size(disk, bytes); });
  };
  PageBuffer buffer(512);
  resize(kDiskBytes / 2);
  EXPECT_EQ(user.resizes, 1);
  EXPECT_EQ(other.resizes, 1);
  EXPECT_EQ(user.read(kDiskBytes / 2, buffer.bytes()), IoStatus::kInvalid);
  resize(kDiskBytes / 2);
  EXPECT_EQ(user.resizes, 1) << "nothing has changed";
  resize(kDiskBytes);
  EXPECT_EQ(user.resizes, 2);
  EXPECT_EQ(user.read(kDiskBytes / 2, buffer.bytes()), IoStatus::kOk);
}

TEST_F(BdevTest, IsNotRemovedWhileItIsUsedUnlessForced) {
  TestDisk& disk = add();
  {
    DiskUser user(world_);
    EXPECT_EQ(remove(disk, RemoveMode::kIfUnused), EBUSY);
    EXPECT_FALSE(user.removed);
    PageBuffer buffer(512);
    EXPECT_EQ(user.read(0, buffer.bytes()), IoStatus::kOk) << "as if nothing had happened";
  }
  EXPECT_EQ(remove(disk, RemoveMode::kIfUnused), 0);
  EXPECT_EQ(world_.manager.find("disk"), nullptr);
}

TEST_F(BdevTest, ForcedRemovalTellsTheUsersAndWaitsForThem) {
  TestDisk& disk = add();
  DiskUser first(world_);
  DiskUser second(world_, "disk", world_.hosts.home(1));
  int code = 0;
  begin_remove(disk, code);
  world_.hosts.run_until_idle();
  EXPECT_TRUE(first.removed && second.removed);
  EXPECT_EQ(code, -1) << "it waits";
  EXPECT_EQ(world_.manager.find("disk"), nullptr);
  EXPECT_THAT(world_.manager.list(), IsEmpty());
  EXPECT_EQ(try_add(options("disk")), EEXIST) << "the name is free when the disk has gone";
  EXPECT_EQ(remove(disk, RemoveMode::kForce), ENODEV) << "it is being removed already";
  first.close();
  world_.hosts.run_until_idle();
  EXPECT_EQ(code, -1);
  second.close();
  world_.hosts.run_until_idle();
  EXPECT_EQ(code, 0);
  EXPECT_EQ(try_add(options("disk")), 0);
}

TEST_F(BdevTest, UserMayCloseItsHandleWhenItIsToldOfTheRemoval) {
  TestDisk& disk = add();
  struct Prompt : BdevEvents {
    void on_resize() override {}
    void on_remove() override { handle.reset(); }
    std::unique_ptr<BdevHandle> handle;
  } users[2];
  for (Prompt& user : users) {
    user.handle =
        world_.hosts.on(world_.app(), [&] { return std::move(*world_.manager.open("disk", true, user, "prompt")); });
  }
  EXPECT_EQ(remove(disk, RemoveMode::kForce), 0);
}

TEST_F(BdevTest, WhatIsInFlightAtTheRemovalEndsRemoved) {
  TestDisk& disk = add(options("disk", {.max_transfer_bytes = 1024}));
  disk.hold = true;
  DiskUser user(world_);
  PageBuffer buffer(4096);
  TestIo whole(IoType::kRead, 0, {buffer.bytes(0, 512)});
  TestIo split(IoType::kRead, 0, {buffer.bytes()});
  user.submit(whole);
  user.submit(split);
  int code = 0;
  begin_remove(disk, code);
  EXPECT_FALSE(whole.done || split.done) << "the module may still use its buffers";
  let_go(disk);
  EXPECT_EQ(whole.status, IoStatus::kRemoved);
  let_go(disk);
  EXPECT_TRUE(split.done);
  EXPECT_EQ(split.status, IoStatus::kRemoved);
  EXPECT_THAT(disk.held, IsEmpty()) << "the rest was not begun";
  EXPECT_EQ(user.read(0, buffer.bytes()), IoStatus::kRemoved);
  EXPECT_EQ(user.flush(), IoStatus::kRemoved);
  const int refused =
      world_.hosts.on(world_.hosts.home(1), [&] { return world_.hosts.home(1).get_channel(disk).error().code; });
  EXPECT_EQ(refused, ENODEV);
  user.close();
  world_.hosts.run_until_idle();
  EXPECT_EQ(code, 0);
}

TEST_F(BdevTest, RemovingAllWaitsForTheRemovalsOfOthers) {
  TestDisk& first = add(options("first"));
  add(options("second"));
  DiskUser user(world_, "first");
  int code = 0;
  begin_remove(first, code);
  bool all_gone = false;
  world_.hosts.on(world_.app(), [&] { start(world_.manager.remove_all(), [&all_gone] { all_gone = true; }); });
  world_.hosts.run_until_idle();
  EXPECT_EQ(world_.manager.find("second"), nullptr);
  EXPECT_FALSE(all_gone);
  user.close();
  world_.hosts.run_until_idle();
  EXPECT_EQ(code, 0);
  EXPECT_TRUE(all_gone);
}

// --- Statistics ---

TEST_F(BdevTest, StatisticsSumOpenAndClosedChannels) {
  TestDisk& disk = add();
  disk.hold = true;
  PageBuffer buffer(4096);
  const auto io_taking = [&](DiskUser& user, IoType type, size_t length, uint64_t ns) {
    TestIo io(type, 0, {buffer.bytes(0, length)});
    user.submit(io);
    world_.hosts.advance(ns);
    world_.hosts.on(user.channel().thread(), [&] { disk.let_go(); });
    user.finish(io);
  };
  {
    DiskUser closed(world_);
    io_taking(closed, IoType::kRead, 512, 100);
  }
  DiskUser here(world_);
  DiskUser there(world_, "disk", world_.hosts.home(1));
  io_taking(here, IoType::kRead, 1024, 300);
  io_taking(there, IoType::kRead, 2048, 200);
  io_taking(there, IoType::kWrite, 4096, 50);
  disk.answer = IoStatus::kFailed;
  io_taking(here, IoType::kWrite, 512, 1000);
  const IoStats stats = iostat(disk);
  const IoTypeStats& reads = stats.of(IoType::kRead);
  EXPECT_EQ(reads.ops, 3U);
  EXPECT_EQ(reads.bytes, 512U + 1024 + 2048);
  EXPECT_EQ(reads.total_ns, 600U);
  EXPECT_EQ(reads.min_ns, 100U);
  EXPECT_EQ(reads.max_ns, 300U);
  EXPECT_EQ(stats.of(IoType::kWrite).ops, 1U) << "one that failed is not an operation";
  EXPECT_EQ(stats.errors(IoStatus::kFailed), 1U);
}

TEST_F(BdevTest, StatisticsCountASplitRequestOnce) {
  TestDisk& disk = add(options("disk", {.max_transfer_bytes = 512}));
  DiskUser user(world_);
  PageBuffer buffer(4096);
  EXPECT_EQ(user.read(0, buffer.bytes()), IoStatus::kOk);
  EXPECT_EQ(disk.seen.size(), 8U);
  EXPECT_EQ(iostat(disk).of(IoType::kRead).ops, 1U);
  EXPECT_EQ(iostat(disk).of(IoType::kRead).bytes, 4096U);
}

TEST_F(BdevTest, StatisticsLoseNoChannelThatClosesMeanwhile) {
  TestDisk& disk = add();
  DiskUser here(world_);
  DiskUser there(world_, "disk", world_.hosts.home(1));
  PageBuffer buffer(512);
  EXPECT_EQ(here.read(0, buffer.bytes()), IoStatus::kOk);
  EXPECT_EQ(there.read(0, buffer.bytes()), IoStatus::kOk);
  uint64_t ops = 0;
  world_.hosts.on(world_.app(), [&] {
    start(world_.manager.iostat(disk), [&ops](const IoStats& stats) { ops = stats.of(IoType::kRead).ops; });
  });
  // The closed channels have been counted, and the question has not reached the other host.
  there.close();
  world_.hosts.run_until_idle();
  EXPECT_EQ(ops, 2U);
}

TEST_F(BdevTest, StatisticsAreReset) {
  TestDisk& disk = add();
  PageBuffer buffer(512);
  {
    EXPECT_EQ(DiskUser(world_).read(0, buffer.bytes()), IoStatus::kOk);
  }
  DiskUser user(world_, "disk", world_.hosts.home(1));
  EXPECT_EQ(user.read(0, buffer.bytes()), IoStatus::kOk);
  const auto reset = [&](IoStatsReset mode) {
    world_.hosts.await(world_.app(), world_.manager.reset_iostat(disk, mode));
    return iostat(disk).of(IoType::kRead);
  };
  EXPECT_EQ(reset(IoStatsReset::kNone).ops, 2U);
  const IoTypeStats kept = reset(IoStatsReset::kMaxMin);
  EXPECT_EQ(kept.ops, 2U);
  EXPECT_EQ(kept.min_ns, UINT64_MAX);
  EXPECT_EQ(kept.max_ns, 0U);
  const IoTypeStats zero = reset(IoStatsReset::kAll);
  EXPECT_EQ(zero.ops, 0U);
  EXPECT_EQ(zero.bytes, 0U);
}

TEST_F(BdevTest, IsNotFreedWhileItsStatisticsAreGathered) {
  TestDisk& disk = add();
  DiskUser user(world_, "disk", world_.hosts.home(1));
  PageBuffer buffer(512);
  EXPECT_EQ(user.read(0, buffer.bytes()), IoStatus::kOk);
  uint64_t ops = 0;
  world_.hosts.on(world_.app(), [&] {
    start(world_.manager.iostat(disk), [&ops](const IoStats& stats) { ops = stats.of(IoType::kRead).ops; });
  });
  int code = 0;
  begin_remove(disk, code);
  user.close();
  EXPECT_EQ(code, -1);
  world_.hosts.run_until_idle();
  EXPECT_EQ(code, 0);
  EXPECT_EQ(ops, 1U);
}

}  // namespace
}  // namespace sluice
