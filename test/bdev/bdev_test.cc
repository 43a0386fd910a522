#include "lib/bdev/bdev.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "test/bdev/test_disk.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;
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
    const BdevAccess access = writable ? BdevAccess::kWrite : BdevAccess::kRead;
    return world_.hosts.on(world_.app(), [&] { return world_.manager.open(name, access, events, "somebody"); });
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

TEST_F(BdevTest, ClaimsKeepOthersFromWriting) {
  add();
  struct : BdevEvents {
    void on_resize() override {}
    void on_remove() override {}
  } events;
  constexpr BdevAccess kRead = BdevAccess::kRead;
  constexpr BdevAccess kWrite = BdevAccess::kWrite;
  constexpr BdevAccess kWriteAlone = BdevAccess::kWriteAlone;
  constexpr BdevAccess kReadStable = BdevAccess::kReadStable;
  const auto open = [&](BdevAccess access) {
    return world_.hosts.on(world_.app(), [&] { return world_.manager.open("disk", access, events, "somebody"); });
  };
  const struct {
    BdevAccess present;
    std::vector<BdevAccess> together;
    std::vector<BdevAccess> refused;
  } cases[] = {{kRead, {kRead, kWrite, kWriteAlone, kReadStable}, {}},
               {kWrite, {kRead, kWrite}, {kWriteAlone, kReadStable}},
               {kWriteAlone, {kRead}, {kWrite, kWriteAlone, kReadStable}},
               {kReadStable, {kRead, kReadStable}, {kWrite, kWriteAlone}}};
  for (const auto& [present, together, refused] : cases) {
    const auto handle = open(present);
    ASSERT_TRUE(handle.has_value());
    EXPECT_EQ((*handle)->access(), present);
    EXPECT_EQ((*handle)->writable(), present == kWrite || present == kWriteAlone);
    for (const BdevAccess wanted : together) EXPECT_TRUE(open(wanted).has_value());
    for (const BdevAccess wanted : refused) EXPECT_EQ(open(wanted).error().code, EBUSY);
  }
  EXPECT_TRUE(open(kWriteAlone).has_value()) << "nothing is left of a claim";
}

TEST_F(BdevTest, AliasesChange) {
  Bdev::Options named = options("disk");
  named.aliases = {"store/volume"};
  TestDisk& disk = add(std::move(named));
  TestDisk& other = add(options("other"));
  const auto set = [&](std::vector<std::string> aliases) {
    return world_.hosts.on(world_.app(), [&] { return world_.manager.set_aliases(disk, std::move(aliases)); });
  };
  EXPECT_TRUE(set({"store/volume", "store/renamed"}));
  EXPECT_EQ(world_.manager.find("store/volume"), &disk);
  EXPECT_EQ(world_.manager.find("store/renamed"), &disk);
  EXPECT_TRUE(set({"store/renamed"}));
  EXPECT_THAT(disk.aliases(), ElementsAre("store/renamed"));
  EXPECT_EQ(world_.manager.find("store/volume"), nullptr);
  EXPECT_EQ(world_.manager.find("disk"), &disk);
  EXPECT_EQ(set({"free", "other"}).error().code, EEXIST);
  EXPECT_EQ(set({other.uuid().to_string()}).error().code, EEXIST);
  EXPECT_EQ(world_.manager.find("free"), nullptr);
  EXPECT_EQ(world_.manager.find("other"), &other);
  EXPECT_THAT(disk.aliases(), ElementsAre("store/renamed"));
  EXPECT_EQ(remove(disk, RemoveMode::kForce), 0);
  EXPECT_EQ(try_add(options("store/renamed")), 0);
}

TEST_F(BdevTest, BecomesReadOnlyForThoseWhoWriteToIt) {
  TestDisk& disk = add();
  DiskUser user(world_);
  PageBuffer buffer(512);
  const auto set = [&](bool readonly) {
    world_.hosts.on(world_.app(), [&] { world_.manager.set_readonly(disk, readonly); });
  };
  EXPECT_EQ(user.write(0, buffer.bytes()), IoStatus::kOk);
  set(true);
  EXPECT_TRUE(disk.readonly());
  EXPECT_EQ(user.write(0, buffer.bytes()), IoStatus::kReadOnly);
  EXPECT_EQ(user.discard(0, 512), IoStatus::kReadOnly);
  EXPECT_EQ(user.read(0, buffer.bytes()), IoStatus::kOk);
  EXPECT_EQ(user.flush(), IoStatus::kOk);
  const auto opened = world_.hosts.on(
      world_.app(), [&] { return world_.manager.open("disk", BdevAccess::kWrite, user, "a second writer"); });
  EXPECT_EQ(opened.error().code, EROFS);
  set(false);
  EXPECT_EQ(user.write(0, buffer.bytes()), IoStatus::kOk);
}

TEST_F(BdevTest, TellsWatchersWhatComesAndGoes) {
  struct Watcher : BdevWatcher {
    explicit Watcher(const BdevManager& devices) : manager(devices) {}
    void on_added(Bdev& bdev) override {
      EXPECT_EQ(manager.find(bdev.name()), &bdev);
      seen.push_back("+" + bdev.name());
    }
    void on_removing(Bdev& bdev) override {
      EXPECT_EQ(manager.find(bdev.name()), nullptr);
      seen.push_back("-" + bdev.name());
    }
    const BdevManager& manager;
    std::vector<std::string> seen;
  } first(world_.manager), second(world_.manager);
  world_.manager.add_watcher(first);
  world_.manager.add_watcher(second);
  Bdev& disk = add(options("one"));
  add(options("two"));
  EXPECT_EQ(try_add(options("one")), EEXIST);
  second.unlink();
  EXPECT_EQ(remove(disk, RemoveMode::kIfUnused), 0);
  EXPECT_THAT(first.seen, ElementsAre("+one", "+two", "-one"));
  EXPECT_THAT(second.seen, ElementsAre("+one", "+two"));
  first.unlink();
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
