// By which names a bdev is found, who may open it, and who is told when it comes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "lib/bdev/bdev.h"
#include "test/bdev/test_disk.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;

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

}  // namespace
}  // namespace sluice
