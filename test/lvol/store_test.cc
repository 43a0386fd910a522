#include "lib/lvol/store.h"

#include <list>

#include "test/lvol/store_fixture.h"

namespace sluice::lvol {
namespace {

using testing::IsEmpty;

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
  ASSERT_EQ(world().flush("a"), IoStatus::kOk);
  cut_and_reopen();
  expect_all();
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

// Also where the base is not asked. DiskUser checks it.
TEST_F(StoreTest, NothingCompletesInsideSubmit) {
  make({});
  create("a", 1 * kMiB);
  write("a", 0, 128 * kKiB);
  ASSERT_EQ(world().flush("a"), IoStatus::kOk);
  std::vector<std::byte> buffer(256 * kKiB);
  const std::span<std::byte> bytes(buffer);
  std::list<TestIo> ios;
  ios.emplace_back(IoType::kRead, 0, std::initializer_list{bytes.first(4 * kKiB)});
  ios.emplace_back(IoType::kRead, 512 * kKiB, std::initializer_list{bytes.first(4 * kKiB)});
  ios.emplace_back(IoType::kRead, 0, std::initializer_list{bytes});  // a part of it is not mapped
  ios.emplace_back(IoType::kRead, 512 * kKiB, std::initializer_list{bytes});
  ios.emplace_back(IoType::kWrite, 0, std::initializer_list{bytes.first(4 * kKiB)});
  ios.emplace_back(IoType::kFlush, 0, 0);
  ios.emplace_back(IoType::kDiscard, 512 * kKiB, 4 * kKiB);
  ios.emplace_back(IoType::kReset, 0, 0);
  for (TestIo& io : ios) {
    world().user("a").submit(io);
    EXPECT_EQ(world().finish(io), IoStatus::kOk) << to_string(io.type);
  }
}

TEST_F(StoreTest, ARequestMayEndItsChannelWhenItCompletes) {
  make({});
  create("a", 1 * kMiB);
  write("a", 0, 4 * kKiB);
  struct LastIo : BlockIo {
    ChannelRef channel_ref;
    bool done = false;
  };
  LwThread& thread = world().store_thread();  // nobody else has a channel there
  std::vector<std::byte> buffer(4 * kKiB);
  iovec piece{.iov_base = buffer.data(), .iov_len = buffer.size()};
  for (const auto& [type, offset] : {std::pair{IoType::kRead, 0 * kKiB},        // from the base
                                     std::pair{IoType::kRead, 512 * kKiB},      // not mapped
                                     std::pair{IoType::kWrite, 0 * kKiB},       // in place
                                     std::pair{IoType::kWrite, 512 * kKiB}}) {  // the first one
    LastIo io;
    io.type = type;
    io.offset_bytes = offset;
    io.length_bytes = buffer.size();
    io.iov = &piece;
    io.iov_count = 1;
    io.run = [](Work& work) {
      auto& self = static_cast<LastIo&>(work);
      self.done = true;
      self.channel_ref.reset();
    };
    Bdev& bdev = world().bdev("a");
    world().hosts().on(thread, [&] {
      io.channel_ref = thread.get_channel(bdev).value();
      static_cast<BdevChannel&>(*io.channel_ref.get()).submit(io);
    });
    while (!io.done) ASSERT_TRUE(world().step());
    EXPECT_EQ(io.status, IoStatus::kOk);
  }
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
  EXPECT_THAT(world().findings(), IsEmpty());
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

TEST_F(StoreTest, ThresholdsOfUsageAreToldAsClustersAreTakenAndComeBack) {
  using Crossed = UsageWatch::Crossing;
  make({.size_bytes = 32 * kMiB});
  create("a", 30 * kMiB);
  const auto set = [this](std::vector<uint32_t> percents) {
    world().hosts().on(world().store_thread(), [&] { world().store().set_usage_thresholds(percents); });
  };
  set({50, 75});
  EXPECT_THAT(world().crossed, IsEmpty());
  write("a", 0, 14 * kMiB);
  EXPECT_THAT(world().crossed, IsEmpty());
  write("a", 14 * kMiB, 4 * kMiB);
  EXPECT_THAT(world().crossed, testing::ElementsAre(Crossed{50, true}));
  // One that is crossed already is told at once.
  set({25, 50, 75});
  EXPECT_THAT(world().crossed, testing::ElementsAre(Crossed{50, true}, Crossed{25, true}));
  world().crossed.clear();
  // From 57 percent to 49 and back: not far enough below.
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(world().discard("a", 14 * kMiB, 38 * 64 * kKiB), IoStatus::kOk);
    world().settle();
    write("a", 14 * kMiB, 38 * 64 * kKiB);
  }
  EXPECT_THAT(world().crossed, IsEmpty());
  ASSERT_EQ(world().discard("a", 0, 30 * kMiB), IoStatus::kOk);
  world().settle();
  EXPECT_THAT(world().crossed, testing::ElementsAre(Crossed{50, false}, Crossed{25, false}));
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

// Whole sub-clusters without content are written before anybody is asked. A write of a part, which fills the rest with
// what was there before, must not hide what such a write has left around it; neither must a copy.
TEST_F(StoreTest, AWriteThatDidNotAskIsNotHiddenByOneThatFills) {
  make({.cluster_bytes = 256 * kKiB});
  constexpr uint64_t kStep = 4 * kKiB;
  create("a", 256 * kKiB);
  write("a", 0, 256 * kKiB);
  snapshot("a", "s");
  for (uint64_t at = kStep; at < 256 * kKiB; at += kStep) {
    const std::string name = "c" + std::to_string(at);
    clone("s", name);
    write(name, 0, kStep);
    const PageBuffer whole(kStep, 1);
    const PageBuffer part(512, 2);
    TestIo unasked(IoType::kWrite, at, {whole.bytes()});
    TestIo filling(IoType::kWrite, at + 512, {part.bytes()});
    // The one or the other is first, by few or many steps.
    const bool part_first = at / kStep % 2 == 1;
    world().user(name, 0).submit(part_first ? filling : unasked);
    for (uint64_t i = 0; i < at / kStep / 4; ++i) std::ignore = world().step();
    world().user(name, 1).submit(part_first ? unasked : filling);
    ASSERT_EQ(world().finish(unasked), IoStatus::kOk);
    ASSERT_EQ(world().finish(filling), IoStatus::kOk);
    PageBuffer found(kStep, 3);
    ASSERT_EQ(world().read(name, at, found.bytes()), IoStatus::kOk);
    const auto same = [&](uint64_t offset, uint64_t length, std::span<const std::byte> bytes) {
      return std::ranges::equal(found.bytes().subspan(offset, length), bytes);
    };
    EXPECT_TRUE(same(0, 512, whole.bytes().first(512))) << name;
    EXPECT_TRUE(same(1024, kStep - 1024, whole.bytes().subspan(1024))) << name;
    EXPECT_TRUE(same(512, 512, whole.bytes().subspan(512, 512)) || same(512, 512, part.bytes())) << name;
    remove(name);
  }
  expect_all();
}

// The cluster leaves the volume while it is written to, and may belong to another one soon.
TEST_F(StoreTest, AWriteThatDidNotAskLeavesNothingInAClusterThatWasDiscarded) {
  make({.cluster_bytes = 64 * kKiB});
  for (int steps = 0; steps < 40; ++steps) {
    create("a", 64 * kKiB);
    create("b", 64 * kKiB);
    ASSERT_EQ(world().write("a", 0, PageBuffer(1 * kKiB, 1).bytes()), IoStatus::kOk);
    const PageBuffer late(1 * kKiB, 2);
    TestIo unasked(IoType::kWrite, 8 * kKiB, {late.bytes()});
    world().user("a", 0).submit(unasked);
    for (int i = 0; i < steps; ++i) std::ignore = world().step();
    ASSERT_EQ(world().discard("a", 0, 64 * kKiB), IoStatus::kOk);
    ASSERT_EQ(world().write("b", 0, PageBuffer(1 * kKiB, 3).bytes()), IoStatus::kOk);
    ASSERT_EQ(world().finish(unasked), IoStatus::kOk);
    PageBuffer found(64 * kKiB, 4);
    ASSERT_EQ(world().read("b", 0, found.bytes()), IoStatus::kOk);
    EXPECT_TRUE(all_zero(found.bytes().subspan(1 * kKiB))) << steps;
    for (const char* name : {"a", "b"}) ASSERT_TRUE(world().remove(name).has_value());
  }
  ASSERT_TRUE(world().await(world().store().checkpoint()).has_value());  // the last one: none runs meanwhile
  EXPECT_THAT(world().findings(), IsEmpty());
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
// A load would find pages where the maps of that checkpoint say that data are.
TEST_F(StoreTest, ClustersThatACheckpointNamesAreNotFreeBeforeItsEnd) {
  make({.cluster_bytes = 64 * kKiB});
  // Many pages of a map, so that it takes a while to write them.
  constexpr uint64_t kPages = 200;
  constexpr uint64_t kPerPage = 256 * 64 * kKiB;
  world().create("a", kPages * kPerPage);
  const PageBuffer data(4 * kKiB, 1);
  for (uint64_t page = 0; page < kPages; ++page) {
    ASSERT_EQ(world().write("a", page * kPerPage, data.bytes()), IoStatus::kOk);
  }
  world().settle();
  std::optional<Result<>> done;
  world().hosts().on(world().store_thread(),
                     [&] { start(world().store().checkpoint(), [&](Result<> result) { done = result; }); });
  ASSERT_EQ(world().discard("a", 0, 64 * kKiB), IoStatus::kOk);
  ASSERT_TRUE(world().await(world().store().commit()).has_value());
  world().hosts().on(world().store_thread(), [&] { start(world().store().settle(), [] {}); });
  int turns = 0;
  for (; world().store().maps().checkpointing(); ++turns) {
    EXPECT_EQ(world().store().clusters().in_quarantine(), 1U) << turns;
    ASSERT_TRUE(world().step());
  }
  EXPECT_GT(turns, 10);
  world().settle();
  EXPECT_EQ(world().store().clusters().in_quarantine(), 0U);
  ASSERT_TRUE(done && *done);
}

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
