// Stores without space, and on disks that fail.
#include "test/lvol/store_fixture.h"

namespace sluice::lvol {
namespace {

using testing::IsEmpty;

// --- No space ---

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

// What was dropped is free in memory then, though nothing will be written any more: nobody waits for it for ever.
TEST_F(StoreTest, SettlesAfterACheckpointThatFailed) {
  make({.cluster_bytes = 64 * kKiB});
  constexpr uint64_t kPages = 200;
  constexpr uint64_t kPerPage = 256 * 64 * kKiB;
  world().create("a", kPages * kPerPage);
  for (uint64_t page = 0; page < kPages; ++page) {
    ASSERT_EQ(world().write("a", page * kPerPage, PageBuffer(4 * kKiB, 1).bytes()), IoStatus::kOk);
  }
  std::optional<Result<>> done;
  world().hosts().on(world().store_thread(),
                     [&] { start(world().store().checkpoint(), [&](Result<> result) { done = result; }); });
  ASSERT_EQ(world().discard("a", 0, 64 * kKiB), IoStatus::kOk);
  ASSERT_TRUE(world().await(world().store().commit()).has_value());
  ASSERT_FALSE(done.has_value());
  world().disk().fail_at(world().disk().requests() + 1);
  ASSERT_TRUE(world().run_until([&done] { return done.has_value(); }));
  ASSERT_FALSE(done->has_value());
  bool settled = false;
  world().hosts().on(world().store_thread(), [&] { start(world().store().settle(), [&settled] { settled = true; }); });
  for (int turns = 0; !settled && turns < 1000; ++turns) std::ignore = world().step();
  EXPECT_TRUE(settled);
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
          // One that says it has all of its clusters has them.
          if (!volume->record->thin) {
            const auto usage = world().await(world().store().usage_of(volume->id()));
            ASSERT_TRUE(usage.has_value());
            EXPECT_EQ(usage->allocated, volume->record->size_bytes / world().store().geometry().cluster_bytes);
          }
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

}  // namespace
}  // namespace sluice::lvol
