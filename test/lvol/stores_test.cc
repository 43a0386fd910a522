#include "lib/lvol/stores.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "lib/bdev/malloc/malloc_bdev.h"
#include "lib/lvol/volume_bdev.h"
#include "test/support/disk_user.h"

namespace sluice::lvol {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr uint64_t kMiB = 1U << 20;

struct Told : StoresEvents {
  void on_no_space(const std::string& store) override { no_space.push_back(store); }
  void on_usage(const std::string& store, uint32_t percent, bool above) override {
    crossed.push_back(store + (above ? " above " : " below ") + std::to_string(percent));
  }
  void on_failed(const std::string& store) override { failed.push_back(store); }
  std::vector<std::string> no_space;
  std::vector<std::string> crossed;
  std::vector<std::string> failed;
};

class StoresTest : public testing::Test {
 protected:
  StoresTest() { begin(); }
  ~StoresTest() override { end(); }

  void begin() {
    on([this] { stores_ = std::make_unique<Stores>(world_.threads, world_.manager, told_); });
  }
  void end() {
    if (stores_ == nullptr) return;
    await(stores_->close_all());
    stores_.reset();
  }
  // All stores are closed, and found again by another Stores. The disks stay.
  void begin_again() {
    end();
    begin();
    // It looks at what is added: let the disks go and come, with their content.
    for (const std::string& name : disks_) examine(name);
  }

  template <typename Fn>
  std::invoke_result_t<Fn&> on(Fn fn) {
    return world_.hosts.on(world_.app(), std::move(fn));
  }
  template <typename T>
  T await(Task<T> task) {
    return world_.hosts.await(world_.app(), std::move(task));
  }
  template <typename T>
  static int code(const Result<T>& result) {
    return result ? 0 : result.error().code;
  }

  void add_disk(const std::string& name, uint64_t bytes = 32 * kMiB) {
    auto disk = create_malloc_bdev({.name = name, .num_blocks = bytes / 512, .block_size_bytes = 512});
    on([&] { world_.add(std::move(disk)); });
    await(stores_->wait_for_examine());
    disks_.push_back(name);
  }
  // As if it had just been added.
  void examine(const std::string& name) {
    on([&] { static_cast<BdevWatcher&>(*stores_).on_added(*world_.manager.find(name)); });
    await(stores_->wait_for_examine());
  }
  int remove_disk(const std::string& name, RemoveMode mode) {
    return code(await(world_.manager.remove(*world_.manager.find(name), mode)));
  }

  int create_store(const std::string& disk, const std::string& name) {
    return code(await(stores_->create_store(disk, {.name = name, .cluster_bytes = 64U << 10, .uuid = {}})));
  }
  int create(const std::string& store, const std::string& name, uint64_t bytes = kMiB) {
    return code(await(stores_->create(store, {.name = name, .size_bytes = bytes})));
  }
  std::vector<std::string> aliases() const {
    std::vector<std::string> all;
    for (const Bdev* bdev : world_.manager.list()) {
      for (const std::string& alias : bdev->aliases()) all.push_back(alias);
    }
    return all;
  }

  BdevWorld world_{2};
  Told told_;
  std::unique_ptr<Stores> stores_;
  std::vector<std::string> disks_;
};

TEST_F(StoresTest, FindsStoresOnDisksThatAreAdded) {
  add_disk("disk");
  ASSERT_EQ(create_store("disk", "lvs"), 0);
  ASSERT_EQ(create("lvs", "vol"), 0);
  PageBuffer written(4096, 1);
  {
    DiskUser user(world_, "lvs/vol");
    EXPECT_EQ(user.write(8192, written.bytes()), IoStatus::kOk);
  }
  begin_again();
  EXPECT_THAT(aliases(), ElementsAre("lvs/vol"));
  DiskUser user(world_, "lvs/vol", world_.hosts.home(1));
  PageBuffer read(4096);
  EXPECT_EQ(user.read(8192, read.bytes()), IoStatus::kOk);
  EXPECT_TRUE(read == written);
}

TEST_F(StoresTest, ReservesItsDisk) {
  add_disk("disk");
  ASSERT_EQ(create_store("disk", "lvs"), 0);
  DiskUser reader(world_, "disk", false);
  const auto opened = on([&] { return world_.manager.open("disk", BdevAccess::kWrite, reader, "a writer"); });
  EXPECT_EQ(code(opened), EBUSY);
  EXPECT_EQ(remove_disk("disk", RemoveMode::kIfUnused), EBUSY);
}

TEST_F(StoresTest, DifferentStoresDoNotWaitForEachOther) {
  add_disk("one");
  add_disk("two");
  ASSERT_EQ(create_store("one", "a"), 0);
  ASSERT_EQ(create_store("two", "b"), 0);
  std::vector<std::string> order;
  // Takes many turns: each step of a thick volume is one.
  on([&] {
    start(stores_->create("a", {.name = "thick", .size_bytes = 24 * kMiB, .thin = false}),
          [&](const Result<Uuid>& made) { order.push_back(made ? "thick" : "failed"); });
    start(stores_->create("a", {.name = "after", .size_bytes = kMiB}),
          [&](const Result<Uuid>& made) { order.push_back(made ? "after" : "failed"); });
    start(stores_->create("b", {.name = "beside", .size_bytes = kMiB}),
          [&](const Result<Uuid>& made) { order.push_back(made ? "beside" : "failed"); });
  });
  ASSERT_TRUE(world_.hosts.run_until([&] {
    world_.hosts.advance(kNsPerMs);
    return order.size() == 3;
  }));
  EXPECT_THAT(order, ElementsAre("beside", "thick", "after"));
}

TEST_F(StoresTest, ShrinkingCutsOffAndGrowingAddsForThoseWhoHaveItOpen) {
  add_disk("disk");
  ASSERT_EQ(create_store("disk", "lvs"), 0);
  ASSERT_EQ(create("lvs", "vol"), 0);
  DiskUser user(world_, "lvs/vol");
  PageBuffer buffer(4096);
  EXPECT_EQ(code(await(stores_->resize("lvs/vol", 2 * kMiB))), 0);
  EXPECT_EQ(user.resizes, 1);
  EXPECT_EQ(user.write(kMiB, buffer.bytes()), IoStatus::kOk);
  EXPECT_EQ(code(await(stores_->resize("lvs/vol", kMiB))), 0);
  EXPECT_EQ(user.resizes, 2);
  EXPECT_EQ(user.write(kMiB, buffer.bytes()), IoStatus::kInvalid);
}

TEST_F(StoresTest, ReadOnlyVolumesRefuseTheWritesOfThoseWhoHaveThemOpen) {
  add_disk("disk");
  ASSERT_EQ(create_store("disk", "lvs"), 0);
  ASSERT_EQ(create("lvs", "vol"), 0);
  DiskUser user(world_, "lvs/vol");
  PageBuffer buffer(4096);
  EXPECT_EQ(user.write(0, buffer.bytes()), IoStatus::kOk);
  EXPECT_EQ(code(await(stores_->set_readonly("lvs/vol"))), 0);
  EXPECT_EQ(user.write(0, buffer.bytes()), IoStatus::kReadOnly);
  EXPECT_EQ(code(await(stores_->clone("lvs/vol", "clone"))), 0);
}

TEST_F(StoresTest, AVolumeInUseIsNotRemoved) {
  add_disk("disk");
  ASSERT_EQ(create_store("disk", "lvs"), 0);
  ASSERT_EQ(create("lvs", "vol"), 0);
  {
    DiskUser user(world_, "lvs/vol");
    EXPECT_EQ(code(await(stores_->remove("lvs/vol"))), EBUSY);
    EXPECT_EQ(code(await(stores_->delete_store("lvs"))), EBUSY);
    EXPECT_THAT(aliases(), ElementsAre("lvs/vol"));
  }
  EXPECT_EQ(code(await(stores_->remove("lvs/vol"))), 0);
  EXPECT_THAT(aliases(), IsEmpty());
  EXPECT_EQ(code(await(stores_->remove("lvs/vol"))), ENODEV);
}

TEST_F(StoresTest, ADiskThatIsPulledOutTakesItsVolumesWithIt) {
  add_disk("disk");
  add_disk("other");
  ASSERT_EQ(create_store("disk", "lvs"), 0);
  ASSERT_EQ(create_store("other", "stays"), 0);
  ASSERT_EQ(create("lvs", "vol"), 0);
  ASSERT_EQ(create("stays", "vol"), 0);
  struct Leaver : BdevEvents {
    void on_resize() override {}
    void on_remove() override { handle.reset(); }
    std::unique_ptr<BdevHandle> handle;
  } leaver;
  leaver.handle = on([&] { return *world_.manager.open("lvs/vol", BdevAccess::kWrite, leaver, "a guest"); });
  EXPECT_EQ(remove_disk("disk", RemoveMode::kForce), 0);
  EXPECT_EQ(leaver.handle, nullptr);
  EXPECT_THAT(aliases(), ElementsAre("stays/vol"));
  EXPECT_EQ(code(await(stores_->store("lvs"))), ENODEV);
  EXPECT_EQ(create("stays", "another"), 0);
}

TEST_F(StoresTest, NamesOfStoresAreTakenOnce) {
  add_disk("one");
  add_disk("two");
  ASSERT_EQ(create_store("one", "lvs"), 0);
  EXPECT_EQ(create_store("two", "lvs"), EEXIST);
  ASSERT_EQ(create_store("two", "other"), 0);
  EXPECT_EQ(code(await(stores_->rename_store("other", "lvs"))), EEXIST);
  EXPECT_EQ(code(await(stores_->rename_store("other", "new"))), 0);
  std::vector<std::string> names;
  for (const StoreInfo& store : await(stores_->stores())) names.push_back(store.name);
  EXPECT_THAT(names, UnorderedElementsAre("lvs", "new"));
}

TEST_F(StoresTest, TwoStoresOfOneNameAtTheSameTimeBecomeOne) {
  add_disk("one");
  add_disk("two");
  std::vector<int> codes;
  on([&] {
    for (const char* disk : {"one", "two"}) {
      start(stores_->create_store(disk, {.name = "lvs", .uuid = {}}),
            [&](const Result<Uuid>& made) { codes.push_back(code(made)); });
    }
  });
  ASSERT_TRUE(world_.hosts.run_until([&] { return codes.size() == 2; }));
  EXPECT_THAT(codes, UnorderedElementsAre(0, EEXIST));
  EXPECT_EQ(await(stores_->stores()).size(), 1U);
}

TEST_F(StoresTest, ExternalClonesReadTheirOriginAndComeAndGoWithIt) {
  add_disk("disk");
  add_disk("image", kMiB);
  PageBuffer written(4096, 3);
  {
    DiskUser user(world_, "image");
    EXPECT_EQ(user.write(4096, written.bytes()), IoStatus::kOk);
    EXPECT_EQ(create_store("disk", "lvs"), 0);
    EXPECT_EQ(code(await(stores_->clone_bdev("image", "lvs", "clone"))), EBUSY) << "somebody may change it";
  }
  ASSERT_EQ(code(await(stores_->clone_bdev("image", "lvs", "clone"))), 0);
  {
    DiskUser user(world_, "lvs/clone");
    PageBuffer read(4096);
    EXPECT_EQ(user.read(4096, read.bytes()), IoStatus::kOk);
    EXPECT_TRUE(read == written);
  }
  EXPECT_EQ(remove_disk("image", RemoveMode::kIfUnused), EBUSY);
  EXPECT_EQ(remove_disk("image", RemoveMode::kForce), 0);
  EXPECT_THAT(aliases(), IsEmpty());
  EXPECT_FALSE(await(stores_->volume("lvs/clone"))->offered);
  add_disk("image", kMiB);
  EXPECT_THAT(aliases(), ElementsAre("lvs/clone"));
}

TEST_F(StoresTest, TellsWhenThresholdsOfUsageAreCrossed) {
  add_disk("disk");
  ASSERT_EQ(create_store("disk", "lvs"), 0);
  EXPECT_EQ(code(await(stores_->set_usage_thresholds("lvs", {101}))), EINVAL);
  EXPECT_EQ(code(await(stores_->set_usage_thresholds("lvs", {0, 50}))), EINVAL);
  EXPECT_EQ(code(await(stores_->set_usage_thresholds("other", {50}))), ENODEV);
  ASSERT_EQ(code(await(stores_->set_usage_thresholds("lvs", {75, 50}))), 0);
  EXPECT_THAT(await(stores_->store("lvs"))->usage_thresholds, ElementsAre(50, 75));
  ASSERT_EQ(code(await(stores_->create("lvs", {.name = "thick", .size_bytes = 20 * kMiB, .thin = false}))), 0);
  world_.hosts.run_until_idle();
  EXPECT_THAT(told_.crossed, ElementsAre("lvs above 50"));
  ASSERT_EQ(code(await(stores_->create("lvs", {.name = "more", .size_bytes = 6 * kMiB, .thin = false}))), 0);
  world_.hosts.run_until_idle();
  EXPECT_THAT(told_.crossed, ElementsAre("lvs above 50", "lvs above 75"));
  told_.crossed.clear();
  ASSERT_EQ(code(await(stores_->remove("lvs/thick"))), 0);
  // Its clusters come back in the background.
  EXPECT_TRUE(world_.hosts.run_until([&] {
    world_.hosts.advance(kNsPerMs);
    return told_.crossed.size() == 2;
  }));
  EXPECT_THAT(told_.crossed, ElementsAre("lvs below 75", "lvs below 50"));
}

TEST_F(StoresTest, TellsOnceThatThereIsNoSpace) {
  add_disk("disk", 8 * kMiB);
  ASSERT_EQ(create_store("disk", "lvs"), 0);
  ASSERT_EQ(create("lvs", "vol", 16 * kMiB), 0);
  DiskUser user(world_, "lvs/vol");
  PageBuffer buffer(64U << 10);
  std::vector<IoStatus> seen;
  for (uint64_t offset = 0; offset < 16 * kMiB; offset += buffer.bytes().size()) {
    seen.push_back(user.write(offset, buffer.bytes()));
  }
  EXPECT_EQ(seen.front(), IoStatus::kOk);
  EXPECT_EQ(seen.back(), IoStatus::kNoSpace);
  EXPECT_THAT(told_.no_space, ElementsAre("lvs"));
}

// A volume on which writes wait for space.
class FullStoreTest : public StoresTest {
 protected:
  FullStoreTest() {
    add_disk("disk", 8 * kMiB);
    EXPECT_EQ(create_store("disk", "lvs"), 0);
    EXPECT_EQ(create("lvs", "vol", 16 * kMiB), 0);
    EXPECT_EQ(code(await(stores_->set_hold_when_full("lvs", true))), 0);
    user_.emplace(world_, "lvs/vol");
    for (uint64_t offset = 0; offset < 16 * kMiB; offset += buffer_.bytes().size()) {
      writes_.push_back(std::make_unique<TestIo>(IoType::kWrite, offset, std::initializer_list{buffer_.bytes()}));
      user_->submit(*writes_.back());
    }
    // It looks again and again whether what was dropped has come back.
    EXPECT_TRUE(world_.hosts.run_until([&] {
      world_.hosts.advance(kNsPerMs);
      return !told_.no_space.empty();
    }));
    world_.hosts.run_until_idle();
    EXPECT_FALSE(writes_.back()->done);
    EXPECT_GT(await(stores_->store("lvs"))->usage.waiting_writes, 0U);
  }
  ~FullStoreTest() override { user_.reset(); }

  PageBuffer buffer_{64U << 10};
  std::vector<std::unique_ptr<TestIo>> writes_;
  std::optional<DiskUser> user_;
};

TEST_F(FullStoreTest, HeldWritesFailWhenHoldingStops) {
  await(stores_->stop_holding());
  EXPECT_EQ(user_->finish(*writes_.back()), IoStatus::kNoSpace);
}

TEST_F(FullStoreTest, HeldWritesDoNotKeepTheDiskFromBeingPulledOut) {
  bool removed = false;
  on([&] {
    start(world_.manager.remove(*world_.manager.find("disk"), RemoveMode::kForce), [&](Result<>) { removed = true; });
  });
  // Holding ends first, so that its users can let go of the volume.
  EXPECT_EQ(user_->finish(*writes_.back()), IoStatus::kNoSpace);
  EXPECT_TRUE(world_.hosts.run_until([&] { return user_->removed; }));
  EXPECT_FALSE(removed) << "the volume is still open";
  user_.reset();
  EXPECT_TRUE(world_.hosts.run_until([&] { return removed; }));
}

}  // namespace
}  // namespace sluice::lvol
