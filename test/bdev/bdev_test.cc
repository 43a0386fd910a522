#include "lib/bdev/bdev.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "test/bdev/test_disk.h"

namespace sluice {
namespace {

using ::testing::IsEmpty;

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
    user.handle = world_.hosts.on(
        world_.app(), [&] { return std::move(*world_.manager.open("disk", BdevAccess::kWrite, user, "prompt")); });
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

}  // namespace
}  // namespace sluice
