// Lightweight threads that go from host to host with a channel and requests in flight: what must hold for the modules
// that allow it. The kernel is the real one; the hosts' turns are drawn from a seed. What a kernel does that is busy is
// in aio_kernel_test.cc and uring_test.cc, what waits for a bounce buffer in split_io_test.cc.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <tuple>

#include "lib/bdev/aio/aio_bdev.h"
#include "lib/bdev/malloc/malloc_bdev.h"
#include "lib/bdev/uring/uring_bdev.h"
#include "test/support/disk_user.h"
#include "test/support/temp_file.h"
#include "test/support/traveller.h"

namespace sluice {
namespace {

enum class Module : uint8_t { kMalloc, kAio, kUring };

constexpr size_t kHosts = 3;
constexpr size_t kRegionBytes = 640U << 10;  // more than two bounce buffers
constexpr size_t kRegions = 8;
constexpr uint64_t kDiskBytes = kRegions * kRegionBytes;

// A part of the disk with at most one request at a time, and what it should hold.
struct Region {
  Region() : expected(kRegionBytes), buffer(kRegionBytes + 1) {}

  PageBuffer expected;
  PageBuffer buffer;
  std::unique_ptr<PlacedIo> io;
  uint64_t begin = 0;
};

class BdevMoveTest : public testing::TestWithParam<std::tuple<Module, TempFile::Kind>> {
 protected:
  void SetUp() override {
    const auto [module, kind] = GetParam();
    if (module == Module::kMalloc) {
      world_.add(create_malloc_bdev({.name = "disk", .num_blocks = kDiskBytes / 512}));
      return;
    }
    file_.emplace(kDiskBytes, kind);
    const FileBdevOptions options{.name = "disk", .filename = file_->path()};
    auto made = module == Module::kAio ? aio_.create(options) : uring_.create(options);
    if (!made) GTEST_SKIP() << "this kernel has no io_uring, or it is disabled";
    world_.add(std::move(made));
  }

  // Another request of this region: any kind, in one or two pieces, aligned or not.
  void submit(Traveller& traveller, size_t index) {
    Region& region = regions_[index];
    Bdev& bdev = traveller.disk().bdev();
    const uint64_t largest = random_() % 4 == 0 ? kRegionBytes : 16 * 512;
    const uint64_t length = (1 + random_() % (largest / 512)) * 512;
    region.begin = random_() % ((kRegionBytes - length) / 512 + 1) * 512;
    const uint64_t offset = index * kRegionBytes + region.begin;
    const std::span<std::byte> bytes = region.buffer.bytes(random_() % 2, length);
    const std::span<std::byte> expected = region.expected.bytes(region.begin, length);
    const uint64_t cut = random_() % length;
    switch (random_() % 8) {
      case 0:
        region.io = std::make_unique<PlacedIo>(IoType::kFlush, 0, 0);
        break;
      case 1:
        region.io = std::make_unique<PlacedIo>(IoType::kWriteZeroes, offset, length);
        region.io->may_unmap = random_() % 2 == 0;
        fill_pattern(expected, 0);
        break;
      case 2:
        if (bdev.supports(IoType::kDiscard)) {
          region.io = std::make_unique<PlacedIo>(IoType::kDiscard, offset, length);
          fill_pattern(expected, 0);  // what these modules make of it
          break;
        }
        [[fallthrough]];
      case 3:
      case 4:
        fill_pattern(bytes, static_cast<uint32_t>(random_()) | 1U);
        std::ranges::copy(bytes, expected.begin());
        region.io = transfer(IoType::kWrite, offset, bytes, cut);
        break;
      default:
        fill_pattern(bytes, 0xff);
        region.io = transfer(IoType::kRead, offset, bytes, cut);
        break;
    }
    count_.of(region.io->type).ops += 1;
    count_.of(region.io->type).bytes += region.io->length_bytes;
    traveller.disk().submit(*region.io);
  }
  static std::unique_ptr<PlacedIo> transfer(IoType type, uint64_t offset, std::span<std::byte> bytes, uint64_t cut) {
    if (cut == 0) return std::unique_ptr<PlacedIo>(new PlacedIo(type, offset, {bytes}));
    return std::unique_ptr<PlacedIo>(new PlacedIo(type, offset, {bytes.first(cut), bytes.subspan(cut)}));
  }

  // What must be true of every request.
  void check(Region& region, LwThread& thread) {
    ASSERT_EQ(region.io->completions, 1);
    ASSERT_EQ(region.io->status, IoStatus::kOk) << to_string(region.io->type);
    ASSERT_EQ(region.io->thread, &thread);
    if (region.io->type != IoType::kRead) return;
    std::span<const std::byte> expected = region.expected.bytes(region.begin, region.io->length_bytes);
    for (const iovec& piece : region.io->buffers) {
      const std::span bytes(static_cast<const std::byte*>(piece.iov_base), piece.iov_len);
      ASSERT_TRUE(std::ranges::equal(bytes, expected.first(bytes.size())));
      expected = expected.subspan(bytes.size());
    }
  }

  std::optional<TempFile> file_;
  AioModule aio_;
  UringModule uring_;
  BdevWorld world_{kHosts};
  std::mt19937_64 random_;
  std::array<Region, kRegions> regions_;
  IoStats count_;
};

std::string name_of(const testing::TestParamInfo<std::tuple<Module, TempFile::Kind>>& test) {
  const auto [module, kind] = test.param;
  if (module == Module::kMalloc) return "Malloc";
  return std::string(module == Module::kAio ? "Aio" : "Uring") + (kind == TempFile::Kind::kDisk ? "Disk" : "Memory");
}

INSTANTIATE_TEST_SUITE_P(, BdevMoveTest,
                         testing::Values(std::tuple(Module::kMalloc, TempFile::Kind::kMemory),
                                         std::tuple(Module::kAio, TempFile::Kind::kDisk),
                                         std::tuple(Module::kAio, TempFile::Kind::kMemory),
                                         std::tuple(Module::kUring, TempFile::Kind::kDisk),
                                         std::tuple(Module::kUring, TempFile::Kind::kMemory)),
                         [](const auto& test) { return name_of(test); });

TEST_P(BdevMoveTest, WhatIsInFlightCompletesOnceOnTheNewHost) {
  Traveller traveller(world_, 0);
  for (const size_t host : {1U, 2U, 0U, 2U, 1U}) {
    for (size_t i = 0; i < kRegions; ++i) submit(traveller, i);
    traveller.begin_move(host);
    const auto all_done = [this] { return std::ranges::all_of(regions_, [](Region& r) { return r.io->done; }); };
    ASSERT_TRUE(world_.hosts.run_until([&] { return all_done() && !traveller.moving(); }));
    for (Region& region : regions_) {
      check(region, traveller.thread());
      // The move begins before anything has had a turn.
      if (std::get<0>(GetParam()) != Module::kMalloc) EXPECT_EQ(region.io->host, &world_.hosts[host]);
    }
  }
}

// Moves, modes, and requests of all kinds, at any time: nothing is lost, done twice, or done elsewhere.
TEST_P(BdevMoveTest, RequestsFollowTheThreadForAnySeed) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    random_.seed(seed);
    world_.hosts.set_seed(seed);
    Traveller traveller(world_, seed % kHosts);
    for (Region& region : regions_) region.io.reset();
    const auto settle = [&](Region& region) {
      if (region.io == nullptr || !region.io->done) return;
      // A thread is on one host at a time, so what has completed there, has done so where the thread was.
      check(region, traveller.thread());
      region.io.reset();
    };
    for (int step = 0; step < 400; ++step) {
      if (!traveller.moving()) {
        if (const size_t index = random_() % kRegions; regions_[index].io == nullptr) submit(traveller, index);
        if (random_() % 8 == 0) traveller.begin_move(random_() % kHosts);
      }
      if (random_() % 32 == 0) {
        constexpr std::array kModes = {PollMode::kPoll, PollMode::kInterrupt, PollMode::kAdaptive};
        world_.hosts.set_mode(kModes[random_() % kModes.size()]);
      }
      world_.hosts.turn();
      world_.hosts.advance(random_() % 20'000);
      for (Region& region : regions_) settle(region);
      if (HasFatalFailure()) return;
    }
    world_.hosts.set_mode(PollMode::kInterrupt);
    ASSERT_TRUE(world_.hosts.run_until([&] {
      for (Region& region : regions_) settle(region);
      return !traveller.moving() && std::ranges::all_of(regions_, [](Region& region) { return region.io == nullptr; });
    }));
    EXPECT_EQ(traveller.disk().channel().in_flight(), 0U);
    world_.hosts.run_until_idle();
    for (size_t i = 0; i < kHosts; ++i) EXPECT_FALSE(world_.hosts[i].runnable());
    // The regions go on with what they hold.
  }
  const IoStats stats = world_.hosts.await(world_.app(), world_.manager.iostat(*world_.manager.find("disk")));
  for (const IoType type : {IoType::kRead, IoType::kWrite, IoType::kFlush, IoType::kDiscard, IoType::kWriteZeroes}) {
    EXPECT_EQ(stats.of(type).ops, count_.of(type).ops) << to_string(type);
    EXPECT_EQ(stats.of(type).bytes, count_.of(type).bytes) << to_string(type);
  }
  for (size_t i = 1; i < kIoStatuses; ++i) EXPECT_EQ(stats.by_status[i], 0U);
}

}  // namespace
}  // namespace sluice
