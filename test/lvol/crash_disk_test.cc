#include "test/lvol/crash_disk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <set>

#include "test/support/disk_user.h"

namespace sluice::lvol {
namespace {

constexpr uint64_t kBytes = 1U << 20;
constexpr uint64_t kBlock = 512;

// A disk on a store, from one power failure to the next.
class Life {
 public:
  explicit Life(CrashStore& store) {
    world_.add(std::make_unique<CrashDisk>("disk", store));
    user_ = std::make_unique<DiskUser>(world_);
  }

  void submit(TestIo& io) { user_->submit(io); }
  // Lets time pass until nothing is in flight.
  void finish_all() {
    finish_until([] { return false; });
  }
  void finish_until(const std::function<bool()>& reached) {
    for (world_.hosts.run_until_idle(); !reached(); world_.hosts.run_until_idle()) {
      const uint64_t due_ns = world_.hosts.next_deadline_ns();
      if (due_ns == UINT64_MAX) return;
      world_.hosts.advance(due_ns > world_.hosts.now_ns() ? due_ns - world_.hosts.now_ns() : 0);
    }
  }
  IoStatus run(TestIo& io) {
    submit(io);
    finish_until([&io] { return io.done; });
    return io.status;
  }
  IoStatus write(uint64_t block, uint64_t blocks, uint32_t pattern) {
    PageBuffer data(blocks * kBlock, pattern);
    TestIo io(IoType::kWrite, block * kBlock, {data.bytes()});
    return run(io);
  }
  IoStatus flush() {
    TestIo io(IoType::kFlush, 0, uint64_t{0});
    return run(io);
  }
  IoStatus read(uint64_t block, PageBuffer& into) {
    TestIo io(IoType::kRead, block * kBlock, {into.bytes()});
    return run(io);
  }

 private:
  BdevWorld world_;
  std::unique_ptr<DiskUser> user_;
};

// Which pattern of 0 to 9 the block has as part `part` of what was written; -1: none.
int pattern_of(const CrashStore& store, uint64_t block, uint64_t part) {
  for (uint32_t pattern = 0; pattern < 10; ++pattern) {
    PageBuffer expected((part + 1) * kBlock, pattern);
    if (std::ranges::equal(store.bytes().subspan(block * kBlock, kBlock), expected.bytes(part * kBlock, kBlock))) {
      return static_cast<int>(pattern);
    }
  }
  return -1;
}

TEST(LvolCrashDisk, ReadsBackWhatWasWritten) {
  CrashStore store({.size_bytes = kBytes});
  Life life(store);
  EXPECT_EQ(life.write(3, 9, 1), IoStatus::kOk);
  PageBuffer back(9 * kBlock);
  EXPECT_EQ(life.read(3, back), IoStatus::kOk);
  EXPECT_EQ(back, PageBuffer(9 * kBlock, 1));
  TestIo zero(IoType::kWriteZeroes, 4 * kBlock, kBlock);
  EXPECT_EQ(life.run(zero), IoStatus::kOk);
  EXPECT_EQ(pattern_of(store, 4, 1), 0);
  EXPECT_EQ(store.changes(), 2U);
  EXPECT_EQ(store.requests(), 3U);
}

TEST(LvolCrashDisk, CompletesOutOfOrder) {
  CrashStore store({.size_bytes = kBytes});
  Life life(store);
  PageBuffer data(kBlock, 1);
  std::vector<std::unique_ptr<TestIo>> ios;
  for (int i = 0; i < 16; ++i) {
    ios.push_back(std::make_unique<TestIo>(IoType::kWrite, static_cast<uint64_t>(i) * kBlock,
                                           std::initializer_list<std::span<std::byte>>{data.bytes()}));
    life.submit(*ios.back());
  }
  bool later_one_first = false;
  life.finish_until([&] {
    for (size_t i = 1; i < ios.size(); ++i) later_one_first |= ios[i]->done && !ios[i - 1]->done;
    return false;
  });
  EXPECT_TRUE(later_one_first);
  EXPECT_TRUE(std::ranges::all_of(ios, [](const auto& io) { return io->done && io->status == IoStatus::kOk; }));
}

TEST(LvolCrashDisk, WhatWasFlushedStays) {
  for (uint32_t mode = 0; mode < kCutModes; ++mode) {
    for (uint64_t seed = 1; seed < 20; ++seed) {
      CrashStore store({.size_bytes = kBytes, .seed = seed});
      {
        Life life(store);
        life.write(0, 8, 1);
        life.write(2, 2, 2);
        EXPECT_EQ(life.flush(), IoStatus::kOk);
        life.write(100, 8, 3);
        store.power_cut(static_cast<CutMode>(mode));
        EXPECT_EQ(life.write(0, 1, 4), IoStatus::kFailed);
        EXPECT_EQ(life.flush(), IoStatus::kFailed);
        PageBuffer back(kBlock);
        EXPECT_EQ(life.read(0, back), IoStatus::kFailed);
      }
      store.power_on();
      Life life(store);
      for (uint64_t block = 0; block < 8; ++block) {
        const bool second = block == 2 || block == 3;
        EXPECT_EQ(pattern_of(store, block, second ? block - 2 : block), second ? 2 : 1);
      }
      PageBuffer back(8 * kBlock);
      EXPECT_EQ(life.read(100, back), IoStatus::kOk);
      EXPECT_TRUE(std::ranges::equal(back.bytes(), store.bytes().subspan(100 * kBlock, 8 * kBlock)));
    }
  }
}

// Two writes of 16 blocks that completed, one that is in flight; nothing was flushed but zeroes. What is left of them,
// as a bit per block.
std::array<uint32_t, 3> left_of(uint64_t seed, CutMode mode) {
  CrashStore store({.size_bytes = kBytes, .seed = seed});
  {
    Life life(store);
    PageBuffer data(16 * kBlock, 3);
    TestIo in_flight(IoType::kWrite, 32 * kBlock, {data.bytes()});
    life.write(0, 16, 1);
    life.write(16, 16, 2);
    store.cut_at(3, mode);
    life.submit(in_flight);
    life.finish_all();
    EXPECT_TRUE(store.cut());
    EXPECT_EQ(in_flight.status, IoStatus::kFailed);
  }
  store.power_on();
  std::array<uint32_t, 3> left{};
  for (uint32_t write = 0; write < 3; ++write) {
    for (uint32_t part = 0; part < 16; ++part) {
      const int pattern = pattern_of(store, write * 16 + part, part);
      EXPECT_TRUE(pattern == 0 || pattern == static_cast<int>(write) + 1) << "a block is old or new";
      if (pattern != 0) left[write] |= 1U << part;
    }
  }
  return left;
}

TEST(LvolCrashDisk, LosesAllOrNothing) {
  EXPECT_EQ(left_of(1, CutMode::kNothing), (std::array<uint32_t, 3>{0, 0, 0}));
  EXPECT_EQ(left_of(1, CutMode::kEverything), (std::array<uint32_t, 3>{0xffff, 0xffff, 0xffff}));
}

TEST(LvolCrashDisk, LosesRandomBlocks) {
  std::set<std::array<uint32_t, 3>> seen;
  for (uint64_t seed = 0; seed < 50; ++seed) seen.insert(left_of(seed, CutMode::kRandomBlocks));
  EXPECT_GE(seen.size(), 49U);
}

TEST(LvolCrashDisk, LosesWholeRequests) {
  std::set<std::array<uint32_t, 3>> seen;
  for (uint64_t seed = 0; seed < 100; ++seed) seen.insert(left_of(seed, CutMode::kRandomRequests));
  EXPECT_EQ(seen.size(), 8U);
  for (const auto& left : seen) {
    for (const uint32_t bits : left) EXPECT_TRUE(bits == 0 || bits == 0xffff);
  }
}

TEST(LvolCrashDisk, KeepsTheFirstRequests) {
  std::set<std::array<uint32_t, 3>> seen;
  for (uint64_t seed = 0; seed < 100; ++seed) seen.insert(left_of(seed, CutMode::kFirstRequests));
  for (const auto& left : seen) {
    EXPECT_TRUE(left[0] == 0xffff || left[1] == 0);
    EXPECT_TRUE(left[1] == 0xffff || left[2] == 0);
    // The beginning of it, where it is a part.
    for (const uint32_t bits : left) EXPECT_EQ(bits & (bits + 1), 0U);
  }
  EXPECT_TRUE(seen.contains({0xffff, 0xffff, 0xffff}));
  EXPECT_TRUE(seen.contains({0, 0, 0}));
  EXPECT_TRUE(std::ranges::any_of(seen, [](const auto& left) { return left[1] != 0 && left[1] != 0xffff; }));
}

TEST(LvolCrashDisk, TearsBetweenLargerBlocks) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    CrashStore store({.size_bytes = kBytes, .block_bytes = 4096, .seed = seed});
    {
      Life life(store);
      life.write(0, 64, 1);
      store.power_cut(CutMode::kRandomBlocks);
    }
    for (uint64_t block = 0; block < 64; ++block) {
      EXPECT_EQ(pattern_of(store, block, block), pattern_of(store, block / 8 * 8, block / 8 * 8));
    }
  }
}

TEST(LvolCrashDisk, AFlushCoversWhatHadCompletedOnly) {
  bool lost = false;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    CrashStore store({.size_bytes = kBytes, .seed = seed});
    {
      Life life(store);
      life.write(0, 1, 1);
      PageBuffer data(kBlock, 2);
      TestIo late(IoType::kWrite, kBlock, {data.bytes()});
      TestIo flush(IoType::kFlush, 0, uint64_t{0});
      life.submit(late);
      const bool was_done = store.changes() == 2;
      life.submit(flush);
      life.finish_all();
      EXPECT_EQ(store.flushes(), 1U);
      store.power_cut(CutMode::kNothing);
      EXPECT_EQ(pattern_of(store, 0, 0), 1);
      EXPECT_EQ(pattern_of(store, 1, 0), was_done ? 2 : 0);
      lost |= !was_done;
    }
  }
  EXPECT_TRUE(lost);
}

TEST(LvolCrashDisk, AFailedFlushFlushesNothing) {
  CrashStore store({.size_bytes = kBytes});
  Life life(store);
  life.write(0, 1, 1);
  store.fail_at(2, IoStatus::kFailed);
  EXPECT_EQ(life.flush(), IoStatus::kFailed);
  store.power_cut(CutMode::kNothing);
  EXPECT_EQ(pattern_of(store, 0, 0), 0);
}

TEST(LvolCrashDisk, AFailedWriteMayHaveComeSomeOfTheWay) {
  std::set<uint64_t> lengths;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    CrashStore store({.size_bytes = kBytes, .seed = seed});
    Life life(store);
    store.fail_at(2, IoStatus::kNoSpace);
    EXPECT_EQ(life.write(50, 1, 1), IoStatus::kOk);
    EXPECT_EQ(life.write(0, 4, 1), IoStatus::kNoSpace);
    uint64_t length = 0;
    while (length < 4 && pattern_of(store, length, length) == 1) ++length;
    lengths.insert(length);
    EXPECT_EQ(life.write(0, 4, 2), IoStatus::kOk);
    EXPECT_EQ(pattern_of(store, 3, 3), 2);
  }
  EXPECT_EQ(lengths.size(), 5U);
}

TEST(LvolCrashDisk, DiscardsAndZeroesMayBeLostToo) {
  CrashStore store({.size_bytes = kBytes});
  {
    Life life(store);
    life.write(0, 8, 1);
    life.flush();
    TestIo zero(IoType::kWriteZeroes, 0, 4 * kBlock);
    EXPECT_EQ(life.run(zero), IoStatus::kOk);
    for (int i = 0; i < 8; ++i) {
      TestIo discard(IoType::kDiscard, 4 * kBlock, 4 * kBlock);
      EXPECT_EQ(life.run(discard), IoStatus::kOk);
    }
    EXPECT_EQ(pattern_of(store, 0, 0), 0);
    EXPECT_EQ(pattern_of(store, 4, 4), 0);
    store.power_cut(CutMode::kNothing);
  }
  EXPECT_EQ(pattern_of(store, 0, 0), 1);
  EXPECT_EQ(pattern_of(store, 4, 4), 1);
}

TEST(LvolCrashDisk, TheSameSeedDoesTheSame) {
  for (const CutMode mode : {CutMode::kRandomBlocks, CutMode::kRandomRequests, CutMode::kFirstRequests}) {
    EXPECT_EQ(left_of(7, mode), left_of(7, mode));
  }
}

}  // namespace
}  // namespace sluice::lvol
