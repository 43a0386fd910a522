// What is counted of a bdev's requests.
#include <gtest/gtest.h>

#include "lib/bdev/bdev.h"
#include "test/bdev/test_disk.h"

namespace sluice {
namespace {

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
