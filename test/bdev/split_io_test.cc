#include "lib/bdev/split_io.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "lib/base/cpu_mask.h"
#include "test/bdev/test_disk.h"
#include "test/support/allocation_count.h"
#include "test/support/traveller.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using SplitIoTest = BdevTest;

TEST_F(SplitIoTest, PassesOnWhatFitsAsItIs) {
  TestDisk& disk = add(options("disk", {.buffer_alignment_bytes = 512, .max_segments = 2, .max_transfer_bytes = 4096}));
  DiskUser user(world_);
  PageBuffer buffer(4096, 1);
  TestIo io(IoType::kWrite, 512, {buffer.bytes(0, 512), buffer.bytes(512, 3584)});
  user.submit(io);
  EXPECT_EQ(user.finish(io), IoStatus::kOk);
  EXPECT_THAT(disk.seen, ElementsAre(TestDisk::Seen{512, 4096}));
  EXPECT_EQ(disk.last_buffer, buffer.bytes().data()) << "not copied";
}

TEST_F(SplitIoTest, SplitsByTheLargestTransfer) {
  TestDisk& disk = add(options("disk", {.max_transfer_bytes = 1024}));
  DiskUser user(world_);
  PageBuffer buffer(2560, 1);
  EXPECT_EQ(user.write(512, buffer.bytes()), IoStatus::kOk);
  EXPECT_THAT(disk.seen, ElementsAre(TestDisk::Seen{512, 1024}, TestDisk::Seen{1536, 1024}, TestDisk::Seen{2560, 512}));
  EXPECT_EQ(std::memcmp(disk.data.data() + 512, buffer.bytes().data(), 2560), 0);
}

TEST_F(SplitIoTest, SplitsByALargestTransferThatIsNotWholeBlocks) {
  TestDisk& disk = add(options("disk", {.buffer_alignment_bytes = 512, .max_transfer_bytes = 1500}));
  DiskUser user(world_);
  PageBuffer buffer(4096, 1);
  EXPECT_EQ(user.write(0, buffer.bytes(0, 2048)), IoStatus::kOk);
  EXPECT_EQ(user.write(2048, buffer.bytes(1, 2048)), IoStatus::kOk) << "bounced";
  EXPECT_THAT(disk.seen, ElementsAre(TestDisk::Seen{0, 1024}, TestDisk::Seen{1024, 1024}, TestDisk::Seen{2048, 1024},
                                     TestDisk::Seen{3072, 1024}));
  EXPECT_EQ(std::memcmp(disk.data.data() + 2048, buffer.bytes().data() + 1, 2048), 0);
}

TEST_F(SplitIoTest, SplitsByTheMostSegments) {
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

TEST_F(SplitIoTest, SplitsAtTheBoundary) {
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

TEST_F(SplitIoTest, DoesNotSplitWhatHasNoBuffers) {
  TestDisk& disk = add(options("disk", {.max_transfer_bytes = 512, .optimal_boundary_bytes = 512}));
  DiskUser user(world_);
  EXPECT_EQ(user.discard(0, kDiskBytes), IoStatus::kOk);
  EXPECT_EQ(user.write_zeroes(0, kDiskBytes, true), IoStatus::kOk);
  EXPECT_THAT(disk.seen, ElementsAre(TestDisk::Seen{0, kDiskBytes}, TestDisk::Seen{0, kDiskBytes}));
}

TEST_F(SplitIoTest, SplitsOnePieceAtATimeAndEndsAtTheFirstThatFails) {
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

TEST_F(SplitIoTest, BouncesMoreThanABufferOfUnalignedBytes) {
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
TEST_F(SplitIoTest, ReadsWhatWasWrittenWhateverTheShapes) {
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

// --- The bound of bounce buffers ---

// Requests of one block each, in one buffer, that all have to be bounced.
struct UnalignedIos {
  UnalignedIos(IoType type, size_t count, uint32_t pattern = 0) : buffer(count * 512 + 1, pattern) {
    for (size_t i = 0; i < count; ++i)
      ios.push_back(std::make_unique<TestIo>(type, i * 512, std::initializer_list{buffer.bytes(1 + i * 512, 512)}));
  }
  size_t done() const {
    return static_cast<size_t>(std::ranges::count_if(ios, [](const auto& io) { return io->done; }));
  }

  PageBuffer buffer;
  std::vector<std::unique_ptr<TestIo>> ios;
};

TEST_F(SplitIoTest, BouncesOnlySoManyAtOnceAndTheOthersInOrder) {
  constexpr size_t kCount = 3 * SplitIo::kMaxBounceBuffers;
  for (const IoType type : {IoType::kWrite, IoType::kRead}) {
    TestDisk& disk = add(options("disk", {.buffer_alignment_bytes = 512}));
    fill_pattern(disk.data, 5);
    disk.hold = true;
    {
      DiskUser user(world_);
      UnalignedIos unaligned(type, kCount, 7);
      for (const auto& io : unaligned.ios) user.submit(*io);
      EXPECT_EQ(disk.held.size(), SplitIo::kMaxBounceBuffers);
      EXPECT_EQ(user.channel().in_flight(), kCount);

      PageBuffer aligned(512);
      TestIo overtakes(IoType::kRead, kDiskBytes - 512, {aligned.bytes()});
      user.submit(overtakes);
      EXPECT_EQ(disk.held.size(), SplitIo::kMaxBounceBuffers + 1) << "it needs no bounce buffer";

      for (size_t done = 1; !disk.held.empty(); ++done) {
        let_go(disk);
        ASSERT_LE(disk.held.size(), SplitIo::kMaxBounceBuffers + 1);
        ASSERT_EQ(unaligned.done() + (overtakes.done ? 1U : 0U), done);
      }
      std::vector<uint64_t> offsets;
      for (const TestDisk::Seen& seen : disk.seen) {
        if (seen.offset < kCount * 512) offsets.push_back(seen.offset);
      }
      EXPECT_EQ(offsets.size(), kCount);
      EXPECT_TRUE(std::ranges::is_sorted(offsets));
      EXPECT_EQ(std::memcmp(disk.data.data(), unaligned.buffer.bytes().data() + 1, kCount * 512), 0);
    }
    ASSERT_EQ(remove(disk, RemoveMode::kIfUnused), 0);
  }
}

TEST_F(SplitIoTest, LargeRequestsTakeTheirTurnAgainWithEachPiece) {
  constexpr size_t kLength = 512 * 1024;  // two bounce buffers
  TestDisk& disk = add(options("disk", {.buffer_alignment_bytes = 512}));
  disk.hold = true;
  DiskUser user(world_);
  PageBuffer buffer(kLength + 1);
  std::vector<std::unique_ptr<TestIo>> large;
  for (uint32_t i = 0; i < SplitIo::kMaxBounceBuffers; ++i) {
    large.push_back(std::make_unique<TestIo>(IoType::kWrite, 0, std::initializer_list{buffer.bytes(1, kLength)}));
    user.submit(*large.back());
  }
  TestIo small(IoType::kRead, kDiskBytes - 512, {buffer.bytes(1, 512)});
  user.submit(small);
  let_go(disk);
  EXPECT_EQ(disk.seen.back(), (TestDisk::Seen{kDiskBytes - 512, 512})) << "before the rest of the first large one";
  while (!disk.held.empty()) let_go(disk);
  EXPECT_TRUE(small.done);
  for (const auto& io : large) EXPECT_TRUE(io->done);
  EXPECT_EQ(disk.seen.size(), 2 * SplitIo::kMaxBounceBuffers + 1);
}

// The bound is the host's; each request goes on, and completes, on its own thread.
TEST_F(SplitIoTest, ThreadsOfAHostWaitForOneAnotherAndOtherHostsDoNot) {
  CpuMask first_host;
  first_host.set(0);
  LwThread* other = *world_.hosts.on(world_.app(), [&] { return world_.threads.create("other", first_host); });
  TestDisk& disk = add(options("disk", {.buffer_alignment_bytes = 512}));
  disk.hold = true;
  {
    DiskUser here(world_);
    DiskUser neighbour(world_, "disk", *other);
    DiskUser far(world_, "disk", world_.hosts.home(1));
    UnalignedIos first(IoType::kRead, SplitIo::kMaxBounceBuffers);
    for (const auto& io : first.ios) here.submit(*io);
    PageBuffer buffer(1024);
    struct PlacedIo : TestIo {
      using TestIo::TestIo;
      LwThread* completed_on = nullptr;
    } waits(IoType::kRead, 0, {buffer.bytes(1, 512)});
    waits.run = [](Work& work) {
      auto& self = static_cast<PlacedIo&>(work);
      self.done = true;
      self.completed_on = LwThread::current();
    };
    neighbour.submit(waits);
    EXPECT_EQ(disk.held.size(), SplitIo::kMaxBounceBuffers);
    TestIo elsewhere(IoType::kRead, 0, {buffer.bytes(1, 512)});
    far.submit(elsewhere);
    ASSERT_EQ(disk.held.size(), SplitIo::kMaxBounceBuffers + 1);
    world_.hosts.on(world_.hosts.home(1), [&] {
      std::ranges::rotate(disk.held, disk.held.end() - 1);
      disk.let_go();
    });
    EXPECT_EQ(far.finish(elsewhere), IoStatus::kOk);
    while (!disk.held.empty()) let_go(disk);
    EXPECT_TRUE(waits.done);
    EXPECT_EQ(waits.completed_on, other);
    EXPECT_EQ(first.done(), SplitIo::kMaxBounceBuffers);
  }
  world_.hosts.await(world_.app(), world_.threads.destroy(*other));
}

// A thread goes round with pieces in bounce buffers, and others that wait for one: each completes, and the turns are
// back where they were taken.
TEST_F(SplitIoTest, BounceTurnsOfAThreadThatMovesAreGivenBackToTheirHost) {
  constexpr size_t kMax = SplitIo::kMaxBounceBuffers;
  TestDisk& disk = add(options("disk", {.buffer_alignment_bytes = 512}));
  disk.hold = true;
  PageBuffer buffer(2048);
  Traveller traveller(world_, 0);
  for (size_t round = 0; round < 20; ++round) {
    const size_t from = round % 2;
    const size_t to = 1 - from;
    std::vector<std::unique_ptr<PlacedIo>> ios;
    for (size_t i = 0; i < kMax + 10; ++i) {
      ios.emplace_back(new PlacedIo(IoType::kRead, i * 512, {buffer.bytes(1, 512)}));
      traveller.disk().submit(*ios.back());
    }
    ASSERT_EQ(disk.held.size(), kMax) << "round " << round;
    traveller.move(to);
    ASSERT_EQ(disk.held.size(), kMax);
    while (!disk.held.empty()) {
      world_.hosts.on(traveller.thread(), [&] { disk.let_go(); });
      world_.hosts.run_until_idle();
    }
    for (const auto& io : ios) {
      ASSERT_EQ(io->completions, 1);
      ASSERT_EQ(io->thread, &traveller.thread());
      ASSERT_EQ(io->host, &world_.hosts[to]);
    }
  }
  EXPECT_EQ(traveller.disk().channel().stats().of(IoType::kRead).ops, 20 * (kMax + 10));
  EXPECT_EQ(traveller.disk().channel().in_flight(), 0U);
  // Either host has all of its turns, and no more.
  for (size_t host = 0; host < 2; ++host) {
    DiskUser user(world_, "disk", world_.hosts.home(host));
    UnalignedIos unaligned(IoType::kRead, kMax + 1);
    for (const auto& io : unaligned.ios) user.submit(*io);
    EXPECT_EQ(disk.held.size(), kMax);
    while (!disk.held.empty()) {
      world_.hosts.on(world_.hosts.home(host), [&] { disk.let_go(); });
      world_.hosts.run_until_idle();
    }
    EXPECT_EQ(unaligned.done(), kMax + 1);
  }
}

TEST_F(SplitIoTest, WhoWaitsForABufferHasItsTurnThoughItsThreadHasMoved) {
  constexpr size_t kMax = SplitIo::kMaxBounceBuffers;
  TestDisk& disk = add(options("disk", {.buffer_alignment_bytes = 512}));
  disk.hold = true;
  DiskUser here(world_);
  UnalignedIos first(IoType::kRead, kMax);
  for (const auto& io : first.ios) here.submit(*io);
  Traveller traveller(world_, 0);
  PageBuffer data(512 * 1024 + 1, 3);
  PlacedIo waits(IoType::kWrite, 0, {data.bytes(1, 512 * 1024)});  // two pieces
  traveller.disk().submit(waits);
  EXPECT_EQ(disk.held.size(), kMax);
  traveller.move(1);
  EXPECT_EQ(disk.held.size(), kMax);
  let_go(disk);
  EXPECT_EQ(disk.held.size(), kMax) << "it is the turn of the one that waited";
  std::ranges::rotate(disk.held, disk.held.end() - 1);
  world_.hosts.on(traveller.thread(), [&] { disk.let_go(); });
  world_.hosts.run_until_idle();
  ASSERT_EQ(disk.held.size(), kMax) << "the second piece, with a turn of the new host";
  while (first.done() < kMax) let_go(disk);
  world_.hosts.on(traveller.thread(), [&] { disk.let_go(); });
  world_.hosts.run_until_idle();
  EXPECT_EQ(waits.completions, 1);
  EXPECT_EQ(waits.host, &world_.hosts[1]);
  EXPECT_EQ(std::memcmp(disk.data.data(), data.bytes().data() + 1, 512 * 1024), 0);
}

TEST_F(SplitIoTest, WhatWaitsForABufferIsNotBegunOnARemovedDisk) {
  TestDisk& disk = add(options("disk", {.buffer_alignment_bytes = 512}));
  disk.hold = true;
  DiskUser user(world_);
  UnalignedIos unaligned(IoType::kRead, SplitIo::kMaxBounceBuffers + 10);
  for (const auto& io : unaligned.ios) user.submit(*io);
  int code = 0;
  begin_remove(disk, code);
  while (!disk.held.empty()) let_go(disk);
  EXPECT_EQ(unaligned.done(), unaligned.ios.size());
  for (const auto& io : unaligned.ios) EXPECT_EQ(io->status, IoStatus::kRemoved);
  EXPECT_EQ(disk.seen.size(), SplitIo::kMaxBounceBuffers);
  user.close();
  world_.hosts.run_until_idle();
  EXPECT_EQ(code, 0);
}

TEST_F(SplitIoTest, AllocatesNothingPerIoOnceWarm) {
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

}  // namespace
}  // namespace sluice
