#include "lib/lvol/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <list>

#include "lib/base/log.h"
#include "lib/bdev/bdev.h"
#include "test/lvol/lvol_world.h"

namespace sluice::lvol {
namespace {

using testing::IsEmpty;

constexpr uint64_t kKiB = 1U << 10;
constexpr uint64_t kMiB = 1U << 20;

// A world, and a second copy of what each volume should hold.
class StoreTest : public testing::Test {
 protected:
  StoreTest() { set_log_print_level(LogLevel::kError); }

  void make(const WorldOptions& options) { world_ = std::make_unique<LvolWorld>(options); }
  LvolWorld& world() { return *world_; }

  void create(const std::string& name, uint64_t size_bytes, bool thin = true) {
    world().create(name, size_bytes, thin);
    content_[name].assign(world().find(name)->record->size_bytes, std::byte{0});
  }
  void snapshot(const std::string& of, const std::string& name) {
    world().snapshot(of, name);
    content_[name] = content_[of];
  }
  void clone(const std::string& of, const std::string& name) {
    world().clone(of, name);
    content_[name] = content_[of];
  }
  void remove(const std::string& name) {
    ASSERT_TRUE(world().remove(name).has_value());
    content_.erase(name);
  }
  void write(const std::string& name, uint64_t offset_bytes, uint64_t length_bytes, size_t user = 0) {
    PageBuffer data(length_bytes, ++pattern_);
    ASSERT_EQ(world().write(name, offset_bytes, data.bytes(), user), IoStatus::kOk);
    std::ranges::copy(data.bytes(), content_[name].begin() + static_cast<std::ptrdiff_t>(offset_bytes));
  }
  void zero(const std::string& name, uint64_t offset_bytes, uint64_t length_bytes) {
    std::ranges::fill(std::span(content_[name]).subspan(offset_bytes, length_bytes), std::byte{0});
  }
  // All of the volume is as it should be.
  void expect_content(const std::string& name) {
    PageBuffer found(content_[name].size(), 99);
    ASSERT_EQ(world().read(name, 0, found.bytes()), IoStatus::kOk);
    const auto differs = std::ranges::mismatch(found.bytes(), content_[name]);
    EXPECT_EQ(differs.in1 - found.bytes().begin(), static_cast<std::ptrdiff_t>(content_[name].size())) << name;
  }
  void expect_all() {
    for (const auto& [name, content] : content_) expect_content(name);
    EXPECT_THAT(world().findings(), IsEmpty());
  }
  void reopen() {
    world().close();
    ASSERT_TRUE(world().open().has_value());
  }
  void cut_and_reopen(CutMode mode = CutMode::kNothing) {
    world().cut(mode);
    ASSERT_TRUE(world().open().has_value());
  }
  // Changes a byte of the disk.
  void damage(uint64_t offset_bytes) {
    const uint64_t block = offset_bytes / 512 * 512;
    std::vector<std::byte> bytes(512);
    std::ranges::copy(world().disk().bytes().subspan(block, bytes.size()), bytes.begin());
    bytes[offset_bytes - block] ^= std::byte{1};
    world().disk().put(block, bytes);
  }
  uint32_t free_clusters() { return world().store().usage().free_clusters; }
  void checkpoint() { ASSERT_TRUE(world().await(world().store().checkpoint()).has_value()); }

  std::unique_ptr<LvolWorld> world_;
  std::map<std::string, std::vector<std::byte>> content_;
  uint32_t pattern_ = 0;
};

// Of each cluster size.
class StoreSizes : public StoreTest, public testing::WithParamInterface<uint64_t> {
 protected:
  StoreSizes() { make({.size_bytes = 32 * GetParam(), .cluster_bytes = GetParam()}); }
  uint64_t cluster() const { return GetParam(); }
  uint64_t subcluster() { return world().store().geometry().subcluster_bytes(); }
};
INSTANTIATE_TEST_SUITE_P(Clusters, StoreSizes, testing::Values(64 * kKiB, 256 * kKiB, 4 * kMiB));

TEST_P(StoreSizes, ReadsWhatWasWrittenOverEdgesOfClustersAndSubclusters) {
  create("a", 5 * cluster());
  write("a", 0, 512);
  write("a", cluster() - 512, 1024);
  write("a", cluster() + subcluster() - 1024, 2048);
  write("a", 2 * cluster() - subcluster(), cluster() + 2 * subcluster());
  write("a", 5 * cluster() - 512, 512);
  expect_all();
  cut_and_reopen(CutMode::kEverything);
}

TEST_P(StoreSizes, FillsTheRestOfASubclusterFromItsSource) {
  create("a", 2 * cluster());
  write("a", 0, 2 * cluster());
  snapshot("a", "s");
  write("a", 512, 512);                                  // in the middle of one
  write("a", 2 * subcluster() - 512, 1024);              // the ends of two
  write("a", 5 * subcluster() + 512, 3 * subcluster());  // two of them, and whole ones between
  write("a", cluster() + subcluster(), subcluster());    // nothing to fill
  expect_all();
  // The source is a cluster that owns a part itself.
  snapshot("a", "t");
  write("a", 1024, 512);
  write("a", 7 * subcluster(), 512);
  write("a", cluster() + 512, 512);
  expect_all();
}

TEST_P(StoreSizes, WritesZeroesAtOddEdges) {
  create("a", 4 * cluster());
  write("a", 0, 4 * cluster());
  snapshot("a", "s");
  for (const auto& [offset, length] : std::vector<std::pair<uint64_t, uint64_t>>{
           {512, 512}, {subcluster() - 512, 1024}, {cluster() - 512, cluster() + 1024}, {3 * cluster(), cluster()}}) {
    ASSERT_EQ(world().write_zeroes("a", offset, length), IoStatus::kOk);
    zero("a", offset, length);
    expect_content("a");
  }
  expect_all();
}

TEST_P(StoreSizes, WritesToOneClusterFromTwoThreadsAllArrive) {
  create("a", cluster());
  write("a", 0, cluster());
  snapshot("a", "s");
  std::vector<std::unique_ptr<PageBuffer>> buffers;
  std::vector<std::unique_ptr<TestIo>> requests;
  for (uint64_t i = 0; i < 32; ++i) {
    // Halves of the same sub-clusters, from both.
    const uint64_t offset = i * subcluster() / 2 / 512 * 512;
    buffers.push_back(std::make_unique<PageBuffer>(512, ++pattern_));
    std::ranges::copy(buffers.back()->bytes(), content_["a"].begin() + static_cast<std::ptrdiff_t>(offset));
    requests.push_back(
        std::make_unique<TestIo>(IoType::kWrite, offset, std::initializer_list{buffers.back()->bytes()}));
    world().user("a", i % 2).submit(*requests.back());
  }
  for (const auto& request : requests) EXPECT_EQ(world().finish(*request), IoStatus::kOk);
  expect_all();
}

TEST_F(StoreTest, ReadsZeroesWhereNothingWasWritten) {
  make({});
  create("a", kMiB);
  create("thick", kMiB, false);
  write("a", 100 * kKiB, 512);
  write("thick", 100 * kKiB, 512);
  expect_all();
}

TEST_F(StoreTest, ThickVolumesShowNothingOfWhatTheirClustersHeld) {
  make({});
  create("a", 4 * kMiB);
  write("a", 0, 4 * kMiB);
  remove("a");
  world().settle();
  create("thick", 20 * kMiB, false);
  write("thick", 3 * kMiB + 512, 512);
  expect_all();
  const Result<VolumeUsage> usage = world().await(world().store().usage_of(world().id("thick")));
  EXPECT_EQ(usage->allocated, 20 * kMiB / (64 * kKiB));
}

TEST_F(StoreTest, ASnapshotStaysAsItIsWhileItsVolumeChanges) {
  make({});
  create("a", kMiB);
  write("a", 0, kMiB);
  for (const char* name : {"s1", "s2", "s3"}) {
    snapshot("a", name);
    write("a", 60 * kKiB, 8 * kKiB);
    write("a", 512 * kKiB + 512, 512);
    ASSERT_EQ(world().discard("a", 128 * kKiB, 64 * kKiB), IoStatus::kOk);
    zero("a", 128 * kKiB, 64 * kKiB);
  }
  expect_all();
  PageBuffer data(512);
  EXPECT_EQ(world().write("s1", 0, data.bytes()), IoStatus::kReadOnly);
}

TEST_F(StoreTest, ClonesOfClonesAreVolumesOfTheirOwn) {
  make({});
  create("a", kMiB);
  write("a", 0, 300 * kKiB);
  snapshot("a", "s");
  clone("s", "b");
  write("b", 4 * kKiB, 4 * kKiB);
  snapshot("b", "t");
  clone("t", "c");
  write("c", 4 * kKiB + 512, 512);
  write("c", 700 * kKiB, 100 * kKiB);
  write("a", 0, 8 * kKiB);
  expect_all();
  EXPECT_EQ(world().await(world().store().clone(world().id("c"), "d", {})).error().code, EPERM);
  cut_and_reopen();
}

TEST_F(StoreTest, DeletingInAnyOrderGivesAllSpaceBack) {
  std::vector<std::string> order{"a", "b", "c", "s", "t"};
  make({});
  const uint32_t free_before = free_clusters();
  do {
    create("a", kMiB);
    write("a", 0, 200 * kKiB);
    snapshot("a", "s");
    write("a", 0, 70 * kKiB);
    clone("s", "b");
    write("b", 60 * kKiB, 10 * kKiB);
    snapshot("b", "t");
    clone("t", "c");
    write("c", 100 * kKiB, 4 * kKiB);
    checkpoint();
    for (const std::string& name : order) {
      remove(name);
      for (const auto& [left, content] : content_) expect_content(left);
    }
    world().settle();
    checkpoint();
    ASSERT_THAT(world().findings(), IsEmpty());
    ASSERT_EQ(free_clusters(), free_before) << "deleted in this order: " << testing::PrintToString(order);
  } while (std::ranges::next_permutation(order).found);
}

TEST_F(StoreTest, AWriteThatFindsNoSpaceFails) {
  make({.size_bytes = 8 * kMiB});
  create("a", 64 * kMiB);
  PageBuffer data(kMiB, 1);
  IoStatus status = IoStatus::kOk;
  uint64_t offset = 0;
  for (; status == IoStatus::kOk && offset < 64 * kMiB; offset += kMiB)
    status = world().write("a", offset, data.bytes());
  EXPECT_EQ(status, IoStatus::kNoSpace);
  EXPECT_GT(offset, 4 * kMiB);
  EXPECT_GT(world().refused, 0);
  // What is there can be read, and written to.
  PageBuffer found(kMiB);
  EXPECT_EQ(world().read("a", 0, found.bytes()), IoStatus::kOk);
  EXPECT_TRUE(found == data);
  EXPECT_EQ(world().write("a", 0, data.bytes()), IoStatus::kOk);
  EXPECT_EQ(world().flush("a"), IoStatus::kOk);
  EXPECT_THAT(world().findings(), IsEmpty());
}

TEST_F(StoreTest, AWriteThatIsHeldForSpaceGoesOnAfterADelete) {
  make({.size_bytes = 8 * kMiB});
  create("a", 4 * kMiB);
  write("a", 0, 4 * kMiB);
  create("b", 8 * kMiB);
  world().hosts().on(world().store_thread(), [&] { world().store().set_hold_when_full(true); });
  PageBuffer data(4 * kMiB, 3);
  TestIo held(IoType::kWrite, 0, {data.bytes()});
  world().user("b").submit(held);
  world().run_for(5 * kNsPerSec);
  EXPECT_FALSE(held.done);
  EXPECT_GT(world().held, 0);
  EXPECT_GT(world().store().usage().waiting_writes, 0U);
  remove("a");
  EXPECT_EQ(world().finish(held), IoStatus::kOk);
  PageBuffer found(4 * kMiB);
  EXPECT_EQ(world().read("b", 0, found.bytes()), IoStatus::kOk);
  EXPECT_TRUE(found == data);
  EXPECT_THAT(world().findings(), IsEmpty());
}

TEST_F(StoreTest, AHeldWriteFailsWhenNobodyHoldsAnyMore) {
  make({.size_bytes = 8 * kMiB});
  create("a", 16 * kMiB);
  world().hosts().on(world().store_thread(), [&] { world().store().set_hold_when_full(true); });
  PageBuffer data(8 * kMiB, 3);
  TestIo held(IoType::kWrite, 0, {data.bytes()});
  world().user("a").submit(held);
  world().run_for(kNsPerSec);
  EXPECT_FALSE(held.done);
  world().hosts().on(world().store_thread(), [&] { world().store().set_hold_when_full(false); });
  EXPECT_EQ(world().finish(held), IoStatus::kNoSpace);
}

// The room that metadata need is kept, however the store is filled: what changes without taking a cluster must find it,
// or the journal would be full one day, without a way out.
TEST_F(StoreTest, AFullStoreCanWriteItsMetadata) {
  make({.size_bytes = 24 * kMiB});
  for (uint32_t i = 0; i < 60; ++i) {
    const Result<VolumeId> made =
        world().await(world().store().create({.name = "v" + std::to_string(i), .size_bytes = 20000 * 64 * kKiB}));
    if (!made) break;
  }
  // Every write another leaf, and an interior page.
  PageBuffer data(4 * kKiB, 5);
  bool full = false;
  for (uint64_t cluster = 0; cluster < 20000 && !full; cluster += 256) {
    for (const auto& [id, volume] : world().store().volumes().all()) {
      const IoStatus status = world().write(volume->record->name, cluster * 64 * kKiB, data.bytes());
      full = status == IoStatus::kNoSpace;
      ASSERT_TRUE(full || status == IoStatus::kOk);
      if (full) break;
    }
  }
  ASSERT_TRUE(full);
  checkpoint();
  // Changes all pages, but no cluster is needed.
  for (uint64_t cluster = 0; cluster < 20000; cluster += 256) {
    for (const auto& [id, volume] : world().store().volumes().all()) {
      const uint64_t offset = cluster * 64 * kKiB + 8 * kKiB;
      const IoStatus status = world().write(volume->record->name, offset, data.bytes());
      ASSERT_TRUE(status == IoStatus::kOk || status == IoStatus::kNoSpace);
    }
  }
  checkpoint();
  checkpoint();
  EXPECT_THAT(world().findings(), IsEmpty());
  const std::vector<VolumeId> ids = [&] {
    std::vector<VolumeId> all;
    for (const auto& [id, volume] : world().store().volumes().all()) all.push_back(id);
    return all;
  }();
  for (const VolumeId id : ids) {
    const std::string name = world().store().volumes().find(id)->record->name;
    ASSERT_TRUE(world().remove(name).has_value());
  }
  world().settle();
  checkpoint();
  EXPECT_EQ(free_clusters(), world().store().usage().total_clusters);
}

TEST_F(StoreTest, WhatWasFlushedSurvivesAPowerFailure) {
  make({});
  create("a", kMiB);
  write("a", 60 * kKiB, 20 * kKiB);
  ASSERT_EQ(world().flush("a"), IoStatus::kOk);
  cut_and_reopen();
  expect_all();
  // In place, and in part beside it.
  write("a", 62 * kKiB, 2 * kKiB);
  write("a", 512, 512);
  ASSERT_EQ(world().flush("a", 1), IoStatus::kOk);
  cut_and_reopen();
  expect_all();
}

TEST_F(StoreTest, OperationsThatHaveCompletedSurviveAPowerFailure) {
  make({});
  create("a", kMiB);
  write("a", 0, kMiB);
  snapshot("a", "s");
  create("b", kMiB);
  clone("s", "c");
  ASSERT_TRUE(world().await(world().store().rename(world().id("b"), "renamed")).has_value());
  ASSERT_TRUE(world().await(world().store().resize(world().id("renamed"), 3 * kMiB)).has_value());
  ASSERT_TRUE(world().await(world().store().rename_store("other")).has_value());
  content_.erase("b");
  content_["renamed"].assign(3 * kMiB, std::byte{0});
  remove("a");
  cut_and_reopen();
  EXPECT_EQ(world().find("a"), nullptr);
  EXPECT_EQ(world().find("b"), nullptr);
  EXPECT_EQ(world().store().name(), "other");
  expect_all();
}

TEST_F(StoreTest, AfterACleanCloseNothingIsReplayed) {
  make({});
  create("a", 2 * kMiB);
  write("a", 100 * kKiB, kMiB);
  snapshot("a", "s");
  write("a", 0, 200 * kKiB);
  reopen();
  expect_all();
  const CheckReport report = check(world().store());
  EXPECT_EQ(report.volumes, 2U);
  EXPECT_EQ(report.snapshots, 1U);
  EXPECT_EQ(report.map_pages, 2U);
  reopen();
  expect_all();
}

TEST_F(StoreTest, DiscardGivesWholeClustersBack) {
  make({});
  create("a", 4 * kMiB);
  write("a", 0, 4 * kMiB);
  world().settle();
  const uint32_t before = free_clusters();
  ASSERT_EQ(world().discard("a", 60 * kKiB, 200 * kKiB), IoStatus::kOk);
  zero("a", 64 * kKiB, 192 * kKiB);
  expect_all();
  EXPECT_EQ(free_clusters(), before + 3);
  cut_and_reopen();
  ASSERT_EQ(world().discard("a", 0, 4 * kMiB), IoStatus::kOk);
  zero("a", 0, 4 * kMiB);
  expect_all();
}

TEST_F(StoreTest, WhatWasCutOffIsZeroesWhenTheVolumeGrowsAgain) {
  make({});
  create("a", 2 * kMiB);
  write("a", 0, 2 * kMiB);
  snapshot("a", "s");
  ASSERT_TRUE(world().resize("a", 512 * kKiB).has_value());
  ASSERT_TRUE(world().resize("a", 3 * kMiB).has_value());
  content_["a"].resize(512 * kKiB);
  content_["a"].resize(3 * kMiB);
  expect_all();
  cut_and_reopen();
  expect_all();
}

TEST_F(StoreTest, AWriteInFlightBeyondTheNewEndLeavesNothingThere) {
  make({.cluster_bytes = 64 * kKiB});
  create("a", 1 * kMiB);
  const PageBuffer data(64 * kKiB, 1);
  // Each is somewhere else on its way when the end moves.
  for (int steps = 0; steps < 40; ++steps) {
    TestIo io(IoType::kWrite, 15 * 64 * kKiB, {data.bytes()});
    world().user("a").submit(io);
    for (int i = 0; i < steps; ++i) std::ignore = world().step();
    ASSERT_TRUE(world().await(world().store().resize(world().id("a"), 512 * kKiB)).has_value());
    const IoStatus status = world().finish(io);
    EXPECT_TRUE(status == IoStatus::kOk || status == IoStatus::kInvalid) << to_string(status);
    EXPECT_THAT(world().findings(), IsEmpty());
    ASSERT_TRUE(world().resize("a", 1 * kMiB).has_value());
    PageBuffer read(64 * kKiB, 2);
    ASSERT_EQ(world().read("a", 15 * 64 * kKiB, read.bytes()), IoStatus::kOk);
    EXPECT_TRUE(all_zero(read.bytes())) << steps;
  }
}

TEST_F(StoreTest, AStoreGrowsWithItsDisk) {
  make({.size_bytes = 32 * kMiB, .disk_bytes = 8 * kMiB});
  const uint32_t before = free_clusters();
  world().grow_disk();
  ASSERT_TRUE(world().await(world().store().grow()).has_value());
  EXPECT_EQ(free_clusters(), before + 24 * kMiB / (64 * kKiB));
  create("a", 20 * kMiB);
  write("a", 0, 20 * kMiB);
  ASSERT_EQ(world().flush("a"), IoStatus::kOk);
  cut_and_reopen();
  expect_all();
}

TEST_F(StoreTest, ALongJournalIsCheckpointedInTheBackground) {
  make({});
  create("a", 8 * kMiB);
  const uint64_t pages = world().store().geometry().journal_pages;
  for (uint64_t i = 0; i < 3 * pages; ++i) {
    write("a", i * 20 % 8192 * kKiB, 4 * kKiB);
    ASSERT_EQ(world().flush("a"), IoStatus::kOk);
  }
  expect_all();
  cut_and_reopen();
  expect_all();
}

// More changes than the journal holds, and none of them is flushed.
TEST_F(StoreTest, WritesWaitForRoomInTheJournal) {
  make({.size_bytes = 512 * kMiB});
  create("a", 400 * kMiB);
  std::list<TestIo> requests;
  PageBuffer data(4 * kKiB, 7);
  for (uint64_t offset = 0; offset + 4 * kKiB <= 400 * kMiB; offset += 4 * kKiB) {
    if (offset % (64 * kKiB) >= 16 * kKiB) continue;
    world()
        .user("a", offset / (4 * kKiB) % 2)
        .submit(requests.emplace_back(TestIo(IoType::kWrite, offset, {data.bytes()})));
  }
  for (const TestIo& request : requests) ASSERT_EQ(world().finish(request), IoStatus::kOk);
  EXPECT_THAT(world().findings(), IsEmpty());
}

// --- Errors of the disk ---

TEST_F(StoreTest, WhenMetadataCannotBeWrittenTheStoreCanStillBeRead) {
  make({});
  create("a", kMiB);
  write("a", 0, 100 * kKiB);
  snapshot("a", "s");
  write("a", 0, 4 * kKiB);
  // The next commit: a flush, and the journal.
  world().disk().fail_at(world().disk().requests() + 2);
  EXPECT_EQ(world().flush("a"), IoStatus::kFailed);
  EXPECT_EQ(world().failures, 1);
  EXPECT_FALSE(world().store().damage().empty());
  expect_content("a");
  expect_content("s");
  PageBuffer data(4 * kKiB);
  EXPECT_EQ(world().write("a", 200 * kKiB, data.bytes()), IoStatus::kFailed);
  EXPECT_EQ(world().flush("a"), IoStatus::kFailed);
  EXPECT_EQ(world().await(world().store().create({.name = "b", .size_bytes = kMiB})).error().code, EROFS);
  EXPECT_EQ(world().await(world().store().checkpoint()).error().code, EROFS);
  reopen();
  expect_content("s");
  EXPECT_THAT(world().findings(), IsEmpty());
}

// Each operation, with each of its requests failing in turn; and then with the power failing at each of them.
TEST_F(StoreTest, EachOperationEitherHappensOrNotWhateverRequestFails) {
  using Operate = std::function<Result<>(LvolWorld&)>;
  const auto to_result = [](const Result<VolumeId>& made) -> Result<> {
    if (!made) return std::unexpected(made.error());
    return {};
  };
  const std::vector<std::pair<std::string, Operate>> operations{
      {"create", [&](LvolWorld& w) { return to_result(w.await(w.store().create({.name = "n", .size_bytes = kMiB}))); }},
      {"create thick",
       [&](LvolWorld& w) {
         return to_result(w.await(w.store().create({.name = "n", .size_bytes = kMiB, .thin = false})));
       }},
      {"snapshot", [&](LvolWorld& w) { return to_result(w.await(w.store().snapshot(w.id("a"), "n", {}))); }},
      {"clone", [&](LvolWorld& w) { return to_result(w.await(w.store().clone(w.id("s"), "n", {}))); }},
      {"delete", [](LvolWorld& w) { return w.remove("a"); }},
      {"rename", [](LvolWorld& w) { return w.await(w.store().rename(w.id("a"), "n")); }},
      {"resize down", [](LvolWorld& w) { return w.resize("a", 64 * kKiB); }},
      {"resize up", [](LvolWorld& w) { return w.resize("a", 4 * kMiB); }},
      {"checkpoint", [](LvolWorld& w) { return w.await(w.store().checkpoint()); }},
  };
  for (const auto& [text, operate] : operations) {
    for (const bool cut : {false, true}) {
      bool happened = false;
      for (uint64_t n = 1; !happened; ++n) {
        SCOPED_TRACE(text + (cut ? ", the power fails at " : ", failing ") + std::to_string(n));
        ASSERT_LT(n, 100U);
        content_.clear();
        make({.seed = n});
        create("a", kMiB);
        write("a", 0, 200 * kKiB);
        snapshot("a", "s");
        write("a", 10 * kKiB, 100 * kKiB);
        ASSERT_EQ(world().flush("a"), IoStatus::kOk);
        if (cut) {
          world().disk().cut_at(world().disk().changes() + n, static_cast<CutMode>(n % kCutModes));
        } else {
          world().disk().fail_at(world().disk().requests() + n);
        }
        happened = operate(world()).has_value();
        if (cut) {
          world().cut(CutMode::kNothing);
        } else {
          world().close();
        }
        ASSERT_TRUE(world().open().has_value());
        ASSERT_THAT(world().findings(), IsEmpty());
        expect_content("s");
        for (const char* name : {"a", "n"}) {
          const Volume* volume = world().find(name);
          if (volume == nullptr) continue;
          const uint64_t bytes = std::min<uint64_t>(64 * kKiB, volume->record->size_bytes);
          PageBuffer found(bytes, 99);
          ASSERT_EQ(world().read(name, 0, found.bytes()), IoStatus::kOk);
          const std::span<const std::byte> expected = text.starts_with("create") && *name == 'n'
                                                          ? std::span<const std::byte>()
                                                      : text == "clone" && *name == 'n' ? std::span(content_["s"])
                                                                                        : std::span(content_["a"]);
          if (expected.empty()) {
            EXPECT_TRUE(all_zero(found.bytes()));
          } else {
            EXPECT_TRUE(std::ranges::equal(found.bytes(), expected.first(bytes)));
          }
        }
        if (happened) {
          EXPECT_EQ(world().find("a") == nullptr, text == "delete" || text == "rename");
          EXPECT_EQ(world().find("n") != nullptr,
                    text.starts_with("create") || text == "snapshot" || text == "clone" || text == "rename");
        }
      }
    }
  }
}

TEST_F(StoreTest, ADamagedPageOfAMapLeavesOtherVolumesReadable) {
  make({});
  create("a", kMiB);
  write("a", 0, 100 * kKiB);
  create("b", kMiB);
  write("b", 0, 100 * kKiB);
  checkpoint();
  const PageNumber place = world().find("a")->map.page()->place.page;
  ASSERT_NE(place, kNoPage);
  world().close();
  damage(place * kPageBytes + 100);

  ASSERT_TRUE(world().open().has_value());
  EXPECT_FALSE(world().store().damage().empty());
  PageBuffer found(100 * kKiB);
  EXPECT_EQ(world().read("a", 0, found.bytes()), IoStatus::kFailed);
  expect_content("b");
  EXPECT_TRUE(world().bdev("b").readonly());
  EXPECT_EQ(world().await(world().store().create({.name = "c", .size_bytes = kMiB})).error().code, EROFS);
  EXPECT_FALSE(world().findings().empty());
  const uint64_t changes = world().disk().changes();
  const uint64_t flushes = world().disk().flushes();
  world().close();
  EXPECT_EQ(world().disk().changes() - changes, world().disk().flushes() - flushes) << "nothing was written";
}

TEST_F(StoreTest, TwoDamagedSuperblocksAreAnError) {
  make({});
  create("a", kMiB);
  world().close();
  for (uint64_t slot = 0; slot < kSuperblockSlots; ++slot) damage(slot * kPageBytes + 50);
  const Result<> opened = world().open();
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().code, EILSEQ);
}

// --- Several at a time ---

TEST_F(StoreTest, OperationsOnOneVolumeExcludeEachOther) {
  make({});
  create("a", kMiB);
  const VolumeId id = world().id("a");
  std::vector<int> codes;
  world().hosts().on(world().store_thread(), [&] {
    const auto note = [&codes](const auto& result) { codes.push_back(result ? 0 : result.error().code); };
    start(world().store().snapshot(id, "s", {}), note);
    start(world().store().rename(id, "b"), note);
    start(world().store().resize(id, 2 * kMiB), note);
    start(world().store().remove(id), note);
    start(world().store().create({.name = "a", .size_bytes = kMiB}), note);
  });
  ASSERT_TRUE(world().run_until([&] { return codes.size() == 5; }));
  std::ranges::sort(codes);
  EXPECT_EQ(codes, (std::vector<int>{0, EBUSY, EBUSY, EBUSY, EEXIST}));
  reopen();
  EXPECT_NE(world().find("a"), nullptr);
  EXPECT_NE(world().find("s"), nullptr);
}

// While the clone's first write copies from a cluster, the snapshot that shares it goes, and the cluster could become
// the clone's own. Other writes must not go there: the copy will hide them in a moment.
TEST_F(StoreTest, AWriteIsNotLostWhenAClusterStopsBeingSharedWhileItIsCopied) {
  make({.cluster_bytes = 256 * kKiB});
  create("a", 256 * kKiB);
  // Every other sub-cluster: it takes a while to copy them.
  for (uint64_t offset = 0; offset < 256 * kKiB; offset += 8 * kKiB) write("a", offset, 4 * kKiB);
  snapshot("a", "s");
  remove("a");
  clone("s", "c");
  PageBuffer first(512, ++pattern_);
  TestIo copying(IoType::kWrite, 512, {first.bytes()});
  world().user("c", 0).submit(copying);
  remove("s");
  world().run_for(kNsPerMs);
  ASSERT_FALSE(copying.done);
  std::ranges::copy(first.bytes(), content_["c"].begin() + 512);
  for (uint64_t offset = 0; offset < 256 * kKiB; offset += 16 * kKiB) {
    if (offset > 0) write("c", offset, 512, 1);
  }
  EXPECT_EQ(world().finish(copying), IoStatus::kOk);
  expect_all();
}

}  // namespace
}  // namespace sluice::lvol
