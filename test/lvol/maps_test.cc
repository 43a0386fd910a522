#include "lib/lvol/maps.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>
#include <thread>  // check-layers: allow os-thread (readers are on other threads)

namespace sluice::lvol {
namespace {

constexpr uint32_t kAll = UINT32_MAX;

struct MapsTest : testing::Test {
  explicit MapsTest(uint32_t clusters = 10'000)
      : geometry{.total_clusters = clusters, .reserved_clusters = 2},
        table(geometry, epochs),
        places(geometry, table) {}

  // A new cluster for cluster `index` of a volume.
  ClusterIndex map(MapRoot& root, uint32_t index) {
    const ClusterIndex own = table.take().value();
    maps.set(root, index, {.own = own, .valid = ~0ULL}, ++record);
    return own;
  }
  void settle() {
    while (maps.settle(record, 1000) || table.settle(record, 1000)) {
    }
  }
  void release(MapRoot& root) { maps.release(root, ++record); }
  Entry entry(const MapRoot& root, uint64_t index) const { return maps.find(root, index).entry; }

  // What the checkpoint does: places for all below a page, and for it.
  void place(MapPage* page) {
    if (page == nullptr || page->place.page != kNoPage) return;
    if (page->level > 0) {
      for (auto& child : static_cast<InteriorPage*>(page)->children) place(child.load());
    }
    maps.placed(*page, {.page = places.take().value(), .crc = 1});
  }
  void checkpoint(std::initializer_list<const MapRoot*> roots) {
    maps.begin_checkpoint();
    places.begin_checkpoint();
    for (const MapRoot* root : roots) place(root->page());
    maps.end_checkpoint();
    places.end_checkpoint();
    settle();
  }

  Geometry geometry;
  Epochs epochs;
  ClusterTable table;
  PagePlaces places;
  Maps maps{table, places, epochs};
  RecordNumber record = 0;
};

TEST_F(MapsTest, AnEmptyMapHasEmptyEntriesEverywhere) {
  const MapRoot root;
  EXPECT_EQ(entry(root, 0), Entry{});
  EXPECT_EQ(entry(root, UINT64_MAX), Entry{});
  EXPECT_FALSE(maps.find(root, 0).in_place);
  EXPECT_EQ(maps.next_mapped(root, 0, 1000), 1000U);
}

TEST_F(MapsTest, GrowsLevelsAsNeeded) {
  MapRoot root;
  std::vector<std::pair<uint32_t, ClusterIndex>> mapped;
  for (const uint32_t index : {5U, 255U, 256U, 65535U, 65536U, 20'000'000U, UINT32_MAX}) {
    mapped.emplace_back(index, map(root, index));
    for (const auto& [at, own] : mapped) {
      const Found found = maps.find(root, at);
      EXPECT_EQ(found.entry, (Entry{.own = own, .valid = ~0ULL}));
      EXPECT_TRUE(found.in_place);
    }
    EXPECT_EQ(entry(root, index - 2), Entry{});
    EXPECT_EQ(entry(root, uint64_t{index} + 1), Entry{});
  }
  EXPECT_EQ(root.page()->level, kMaxLevel);
  EXPECT_EQ(entry(root, 1ULL << 32), Entry{});
  std::vector<uint64_t> seen;
  for (uint64_t at = 0; (at = maps.next_mapped(root, at, 1ULL << 32)) < 1ULL << 32; ++at) seen.push_back(at);
  EXPECT_THAT(seen, testing::ElementsAre(5, 255, 256, 65535, 65536, 20'000'000, UINT32_MAX));
  release(root);
  settle();
  EXPECT_EQ(table.free(), 9998U);
}

TEST_F(MapsTest, ASnapshotKeepsWhatTheVolumeChanges) {
  MapRoot volume;
  MapRoot snapshot;
  const ClusterIndex one = map(volume, 1);
  const ClusterIndex two = map(volume, 70'000);
  maps.share(volume, snapshot);
  EXPECT_FALSE(maps.find(volume, 1).in_place);
  EXPECT_EQ(table.references(one), 1U);  // in a leaf that both have

  const Entry cow{.own = table.take().value(), .base = one, .valid = 1};
  maps.set(volume, 1, cow, ++record);
  EXPECT_EQ(entry(volume, 1), cow);
  EXPECT_EQ(entry(snapshot, 1).own, one);
  EXPECT_TRUE(maps.find(volume, 1).in_place);
  EXPECT_FALSE(maps.find(snapshot, 1).in_place);
  EXPECT_EQ(table.references(one), 2U);
  EXPECT_EQ(table.references(two), 1U);
  EXPECT_FALSE(maps.find(volume, 70'000).in_place);  // the leaf is still shared

  // The volume's own copy is complete: what it was made from is the snapshot's alone, when that is durable.
  maps.set(volume, 1, {.own = cow.own, .valid = ~0ULL}, ++record);
  EXPECT_FALSE(maps.find(snapshot, 1).in_place);
  settle();
  EXPECT_TRUE(maps.find(snapshot, 1).in_place);
  release(volume);
  release(snapshot);
  settle();
  EXPECT_EQ(table.free(), 9998U);
  EXPECT_EQ(maps.pages(), 0U);
}

TEST_F(MapsTest, AReleaseCountsWhenItIsDurableAndNothingIsInFlight) {
  EpochReader reader(epochs);
  EpochUse use;
  MapRoot volume;
  MapRoot snapshot;
  map(volume, 1);
  maps.share(volume, snapshot);
  reader.enter(use);  // may have found the cluster by way of the snapshot
  release(snapshot);
  EXPECT_TRUE(snapshot.empty());
  while (maps.settle(record - 1, kAll)) {
  }
  EXPECT_FALSE(maps.settled());
  EXPECT_FALSE(maps.find(volume, 1).in_place);
  settle();
  EXPECT_FALSE(maps.find(volume, 1).in_place);
  reader.leave(use);
  settle();
  EXPECT_TRUE(maps.settled());
  EXPECT_TRUE(maps.find(volume, 1).in_place);
  release(volume);
  settle();
}

TEST_F(MapsTest, ReleasesInStepsThatTheBudgetBounds) {
  MapRoot root;
  for (uint32_t index = 0; index < 5000; ++index) map(root, index);
  release(root);
  uint64_t steps = 0;
  for (uint64_t free = table.in_quarantine(); maps.settle(record, 100); ++steps) {
    ASSERT_LE(table.in_quarantine(), free + 100);
    free = table.in_quarantine();
  }
  EXPECT_GE(steps, 50U);
  settle();
  EXPECT_EQ(table.free(), 9998U);
}

TEST_F(MapsTest, PagesThatBecomeEmptyLeaveTheMap) {
  MapRoot root;
  for (uint32_t index = 0; index < 3000; ++index) map(root, index);
  EXPECT_EQ(maps.pages(), 13U);
  for (uint32_t index = 256; index < 3000; ++index) maps.set(root, index, {}, ++record);
  settle();
  EXPECT_EQ(maps.pages(), 2U);
  EXPECT_EQ(maps.next_mapped(root, 256, 1'000'000), 1'000'000U);
  for (uint32_t index = 0; index < 256; ++index) maps.set(root, index, {}, ++record);
  EXPECT_TRUE(root.empty());
  settle();
  EXPECT_EQ(maps.pages(), 0U);
  EXPECT_EQ(table.free(), 9998U);
}

TEST_F(MapsTest, DoesNothingForAnEntryThatIsSoAlready) {
  MapRoot volume;
  MapRoot snapshot;
  map(volume, 1);
  maps.share(volume, snapshot);
  maps.set(volume, 1, entry(volume, 1), ++record);
  maps.set(volume, 100'000, {}, ++record);
  EXPECT_EQ(volume.page(), snapshot.page());
  release(volume);
  release(snapshot);
}

TEST_F(MapsTest, CompareVisitsOnlyWhatDiffers) {
  MapRoot a;
  MapRoot b;
  for (uint32_t index = 0; index < 4000; ++index) map(a, index);
  maps.share(a, b);
  map(b, 17);
  map(b, 3999);
  map(b, 1'000'000);  // another root, of a higher level
  maps.set(b, 256, {}, ++record);
  std::vector<uint64_t> differ;
  const auto note = [&](uint64_t index, const Entry& in_a, const Entry& in_b) {
    EXPECT_EQ(in_a, entry(a, index));
    EXPECT_EQ(in_b, entry(b, index));
    differ.push_back(index);
  };
  // 4 leaves that differ, and pages or gaps beside them: less than 256 in each of 4 pages above.
  EXPECT_EQ(maps.compare(a, b, 0, 1ULL << 32, (4 + 4) * kFanOut, note), 1ULL << 32);
  EXPECT_THAT(differ, testing::ElementsAre(17, 256, 3999, 1'000'000));
  differ.clear();
  uint64_t at = 0;
  while (at < 4000) at = maps.compare(a, b, at, 4000, 10, note);
  EXPECT_EQ(at, 4000U);
  EXPECT_THAT(differ, testing::ElementsAre(17, 256, 3999));
  release(a);
  release(b);
}

TEST_F(MapsTest, FindReportsDamageWhereverItIs) {
  MapRoot root;
  InteriorPage& top = maps.new_interior(1);
  LeafPage& leaf = maps.new_leaf();
  leaf.store(3, {.own = 50, .valid = 1});
  maps.count_leaf(leaf);
  maps.placed(leaf, {.page = 4000, .crc = 1});
  maps.placed(top, {.page = 4001, .crc = 1});
  top.children[0] = &leaf;
  top.children[1] = &maps.damaged_page();
  maps.put_root(root, top);
  EXPECT_EQ(entry(root, 3).own, 50U);
  EXPECT_TRUE(maps.find(root, 3).in_place);
  EXPECT_FALSE(maps.find(root, 3).damaged);
  EXPECT_TRUE(maps.find(root, 256).damaged);
  EXPECT_TRUE(maps.find(root, 511).damaged);
  EXPECT_FALSE(maps.find(root, 256).in_place);
  EXPECT_FALSE(maps.find(root, 512).damaged);
  EXPECT_EQ(maps.next_mapped(root, 4, 10'000), 256U);
  EXPECT_EQ(maps.unplaced_pages(), 0U);

  MapRoot lost;
  maps.put_root(lost, maps.damaged_page());
  EXPECT_TRUE(maps.find(lost, 0).damaged);
  EXPECT_TRUE(maps.find(lost, UINT32_MAX).damaged);
  EXPECT_EQ(maps.next_mapped(lost, 7, 10), 7U);
  release(lost);
  settle();
  maps.abandon({&root});
  EXPECT_EQ(maps.pages(), 0U);
}

TEST_F(MapsTest, AChangedPageLeavesItsPlaceAndSoDoThoseAboveIt) {
  MapRoot root;
  for (const uint32_t index : {1U, 300U, 70'000U}) map(root, index);
  EXPECT_EQ(maps.pages(), 6U);  // three leaves, two pages above, the root
  EXPECT_EQ(maps.unplaced_pages(), 6U);
  checkpoint({&root});
  EXPECT_EQ(maps.unplaced_pages(), 0U);
  map(root, 2);
  EXPECT_EQ(maps.unplaced_pages(), 3U);
  map(root, 3);
  EXPECT_EQ(maps.unplaced_pages(), 3U);
  map(root, 301);
  EXPECT_EQ(maps.unplaced_pages(), 4U);
  // Places left are spare after the next checkpoint.
  const uint64_t spare = places.spare();
  checkpoint({&root});
  EXPECT_EQ(maps.unplaced_pages(), 0U);
  EXPECT_EQ(places.spare(), spare);
  release(root);
  settle();
  checkpoint({});
  EXPECT_EQ(table.free(), 9998U);
}

TEST_F(MapsTest, ACheckpointSeesTheMapsAsTheyWereAndSharesNoClusters) {
  MapRoot volume;
  MapRoot gone;
  const ClusterIndex one = map(volume, 1);
  const ClusterIndex two = map(gone, 2);
  maps.begin_checkpoint();
  places.begin_checkpoint();
  MapPage* const frozen = volume.page();
  MapPage* const frozen_gone = gone.page();

  const ClusterIndex other = map(volume, 1);
  map(volume, 5);
  EXPECT_EQ(table.references(one), 1U);  // of the entry that was dropped, for the time being
  EXPECT_EQ(table.references(other), 1U);
  EXPECT_TRUE(maps.find(volume, 1).in_place);
  release(gone);
  settle();
  EXPECT_TRUE(table.is_free(one));
  EXPECT_TRUE(table.is_free(two));
  EXPECT_NE(volume.page(), frozen);
  EXPECT_EQ(static_cast<LeafPage*>(frozen)->load(1).own, one);
  EXPECT_EQ(static_cast<LeafPage*>(frozen)->load(5), Entry{});
  EXPECT_EQ(static_cast<LeafPage*>(frozen_gone)->load(2).own, two);
  EXPECT_EQ(maps.pages(), 3U);
  place(frozen);
  place(frozen_gone);
  EXPECT_EQ(maps.unplaced_pages(), 1U);
  maps.end_checkpoint();
  places.end_checkpoint();
  settle();
  EXPECT_EQ(maps.pages(), 1U);
  EXPECT_EQ(places.clusters(), 1U);  // on disk the two frozen pages are still referred to
  checkpoint({&volume});
  EXPECT_EQ(places.spare() + 1, geometry.pages_per_cluster());
  release(volume);
  settle();
}

TEST_F(MapsTest, ACheckpointThatFailsLeavesPagesToTheNext) {
  MapRoot volume;
  map(volume, 1);
  map(volume, 300);
  maps.begin_checkpoint();
  places.begin_checkpoint();
  MapPage* const frozen = volume.page();
  map(volume, 1);
  std::vector<MapPage*> placed{static_cast<InteriorPage*>(frozen)->children[0].load(),
                               static_cast<InteriorPage*>(frozen)->children[1].load(), frozen};
  place(frozen);
  for (MapPage* page : placed) {
    places.give_back(page->place.page);
    maps.misplaced(*page);
  }
  maps.end_checkpoint();
  places.abandon_checkpoint();
  settle();
  EXPECT_EQ(maps.unplaced_pages(), 3U);
  EXPECT_EQ(maps.pages(), 3U);
  EXPECT_EQ(places.clusters(), 0U);
  checkpoint({&volume});
  EXPECT_EQ(maps.unplaced_pages(), 0U);
  release(volume);
  settle();
}

TEST_F(MapsTest, PagesAreFreedWhenNobodyCanBeLookingAtThem) {
  EpochReader reader(epochs);
  EpochUse use;
  MapRoot root;
  map(root, 1);
  reader.enter(use);
  maps.set(root, 1, {}, ++record);
  settle();
  EXPECT_EQ(maps.pages(), 1U);
  EXPECT_EQ(table.in_quarantine(), 1U);
  reader.leave(use);
  settle();
  EXPECT_EQ(maps.pages(), 0U);
  EXPECT_EQ(table.in_quarantine(), 0U);
}

TEST_F(MapsTest, AbandonForgetsEverythingAtOnce) {
  MapRoot one;
  MapRoot two;
  for (uint32_t index = 0; index < 1000; ++index) map(one, index);
  maps.share(one, two);
  maps.begin_checkpoint();
  map(two, 5);
  MapRoot three;
  maps.share(two, three);
  release(three);
  maps.settle(record, 10);
  maps.abandon({&one, &two});
  EXPECT_TRUE(one.empty() && two.empty());
  EXPECT_EQ(maps.pages(), 0U);
  EXPECT_TRUE(maps.settled());
}

TEST(MapsMemory, ATebibyteMappedTakesLessThan80MebibytesOfMemory) {
  constexpr uint64_t kClusters = (1ULL << 40) / kDefaultClusterBytes;
  constexpr uint64_t kLeaves = kClusters / kFanOut;
  constexpr uint64_t kInterior = kLeaves / kFanOut + 1;
  constexpr uint64_t kAllocation = 16;  // what the heap adds
  constexpr uint64_t kTable = kClusters * 2 + kClusters / 8 + kClusters / 8 / 64;
  constexpr uint64_t kBytes =
      kLeaves * (sizeof(LeafPage) + kAllocation) + kInterior * (sizeof(InteriorPage) + kAllocation) + kTable;
  EXPECT_LT(kBytes, 80ULL << 20) << "75 MiB: 65 in leaves, 8 in counts, the rest in pages above and bits";
}

// Readers look entries up while the owner sets, shares, releases and checkpoints. Two volumes stand on one image; each
// cluster is marked with the volume that it was taken for. A reader must find the image's clusters or its own volume's,
// and they must stay so as long as it is in its epoch: what it read is what it wrote, or what all may see.
TEST_F(MapsTest, ReadersNeverSeeAnotherVolumesClustersWhileTheOwnerChangesMaps) {
  constexpr uint32_t kIndexes = 520;  // three leaves, so that there is a page above
  constexpr uint32_t kImage = 0;
  std::vector<std::atomic<uint32_t>> taken_for(10'000);
  MapRoot image;
  std::array<MapRoot, 2> volumes;
  const auto fresh = [&](uint32_t volume) {
    const ClusterIndex own = table.take().value();
    taken_for[own].store(volume, std::memory_order_relaxed);
    // A mixture of two entries would show.
    return Entry{.own = own, .base = own % 2, .valid = own * 0x9e3779b97f4a7c15ULL};
  };
  for (uint32_t index = 0; index < kIndexes; ++index) maps.set(image, index, fresh(kImage), ++record);
  for (MapRoot& root : volumes) maps.share(image, root);

  std::atomic<bool> stop = false;
  std::atomic<uint32_t> running = 0;
  std::atomic<uint64_t> wrong = 0;
  std::atomic<uint64_t> looked = 0;
  const auto read = [&](uint32_t volume) {
    EpochReader reader(epochs);
    std::mt19937 random(volume);
    std::array<EpochUse, 3> uses;
    std::array<ClusterIndex, 3> found_by{};
    const auto is_ours = [&](ClusterIndex own) {
      const uint32_t whose = taken_for[own].load(std::memory_order_relaxed);
      return own == kNoCluster || whose == kImage || whose == volume;
    };
    running.fetch_add(1);
    // Several in flight, each as long as the others need.
    for (uint32_t turn = 0; !stop.load(std::memory_order_relaxed); ++turn) {
      const uint32_t i = turn % 3;
      if (turn >= 3) {
        if (!is_ours(found_by[i])) wrong.fetch_add(1);
        reader.leave(uses[i]);
      }
      reader.enter(uses[i]);
      const Entry entry = maps.find(volumes[volume - 1], random() % kIndexes).entry;
      if (entry != Entry{} && entry.valid != entry.own * 0x9e3779b97f4a7c15ULL) wrong.fetch_add(1);
      if (!is_ours(entry.own)) wrong.fetch_add(1);
      found_by[i] = entry.own;
      looked.fetch_add(1, std::memory_order_relaxed);
    }
    for (EpochUse& use : uses) {
      if (use.entered()) reader.leave(use);
    }
  };
  std::thread one(read, 1);
  std::thread two(read, 2);
  while (running.load() < 2) std::this_thread::yield();

  std::mt19937 random(5);
  for (int turn = 0; turn < 30'000 || looked.load() < 10'000; ++turn) {
    const uint32_t volume = 1 + static_cast<uint32_t>(random() % 2);
    MapRoot& root = volumes[volume - 1];
    // Never more than the table has, however long readers take.
    if (table.free() > 1000) maps.set(root, static_cast<uint32_t>(random() % kIndexes), fresh(volume), ++record);
    switch (random() % 64) {
      case 0:
        maps.release(root, ++record);
        maps.share(image, root);
        break;
      case 1:
        if (maps.checkpointing()) {
          maps.end_checkpoint();
        } else {
          maps.begin_checkpoint();
        }
        break;
      case 2:
        for (uint32_t index = 0; index < 256; ++index) maps.set(root, index, {}, ++record);
        break;
      default:
        maps.settle(record, 200);
        table.settle(record, 200);
    }
  }
  stop.store(true);
  one.join();
  two.join();
  EXPECT_EQ(wrong.load(), 0U);
  if (maps.checkpointing()) maps.end_checkpoint();
  for (MapRoot& root : volumes) release(root);
  release(image);
  settle();
  EXPECT_EQ(table.free(), 9998U);
  EXPECT_EQ(maps.pages(), 0U);
}

// The narrow case of the above: a reader of one volume is on a page that both have when that volume gets a copy, and
// the other volume, alone with the page now, changes it in place.
TEST_F(MapsTest, AReaderOnAPageThatItsMapHasLeftNeverSeesWhatOthersPutThere) {
  MapRoot volume;
  MapRoot other;
  // Entries of the volume have odd bits, those of the other one even ones, until all are made odd before a share().
  const auto change = [&](MapRoot& root, uint64_t bits) {
    maps.set(root, 0, {.own = table.take().value(), .valid = bits}, ++record);
  };
  change(other, 1);
  std::atomic<bool> stop = false;
  std::atomic<uint64_t> wrong = 0;
  std::atomic<uint64_t> looked = 0;
  std::thread thread([&] {
    EpochReader reader(epochs);
    EpochUse use;
    while (!stop.load(std::memory_order_relaxed)) {
      reader.enter(use);
      const Entry entry = maps.find(volume, 0).entry;
      if (entry != Entry{} && entry.valid % 2 == 0) wrong.fetch_add(1);
      reader.leave(use);
      looked.fetch_add(1, std::memory_order_relaxed);
    }
  });
  for (int round = 0; round < 20'000 || looked.load() < 1000; ++round) {
    maps.share(other, volume);
    change(volume, 3);
    change(other, 2);  // in place
    release(volume);
    change(other, 1);
    settle();
    while (!maps.settled() || table.free() < 5000) settle();  // the reader is somewhere in an older epoch
  }
  stop.store(true);
  thread.join();
  EXPECT_EQ(wrong.load(), 0U);
  release(other);
  settle();
}

}  // namespace
}  // namespace sluice::lvol
