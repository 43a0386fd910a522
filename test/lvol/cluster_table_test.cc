#include "lib/lvol/cluster_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <random>
#include <set>
#include <vector>

namespace sluice::lvol {
namespace {

constexpr uint32_t kAll = UINT32_MAX;

Geometry geometry(uint32_t clusters) { return {.total_clusters = clusters, .reserved_clusters = 3}; }

TEST(ClusterTable, AllButTheReservedOnesAreFree) {
  Epochs epochs;
  ClusterTable table(geometry(1000), epochs);
  EXPECT_EQ(table.free(), 997U);
  EXPECT_EQ(table.total(), 1000U);
  for (ClusterIndex cluster = 0; cluster < 1000; ++cluster) EXPECT_EQ(table.is_free(cluster), cluster >= 3);
}

TEST(ClusterTable, TakesOneAfterTheOtherAndThenWhatWasGivenBack) {
  Epochs epochs;
  ClusterTable table(geometry(300), epochs);
  for (ClusterIndex expected = 3; expected < 300; ++expected) EXPECT_EQ(table.take(), expected);
  EXPECT_EQ(table.take(), std::nullopt);
  table.give_back(150);
  table.give_back(7);
  EXPECT_EQ(table.free(), 2U);
  EXPECT_EQ(table.take(), 7U);
  EXPECT_EQ(table.take(), 150U);
  EXPECT_EQ(table.take(), std::nullopt);
}

TEST(ClusterTable, FindsTheOnlyFreeOneWhereverItIs) {
  constexpr uint32_t kClusters = 64 * 64 * 3 + 17;  // several words of the summary, the last one not full
  Epochs epochs;
  ClusterTable table(geometry(kClusters), epochs);
  while (table.take()) {
  }
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    const ClusterIndex cluster = 3 + static_cast<ClusterIndex>(random() % (kClusters - 3));
    table.give_back(cluster);
    ASSERT_EQ(table.take(), cluster);
    ASSERT_EQ(table.take(), std::nullopt);
  }
}

TEST(ClusterTable, IsSharedFromTheSecondReferenceOn) {
  Epochs epochs;
  ClusterTable table(geometry(10), epochs);
  const ClusterIndex cluster = table.take().value();
  EXPECT_FALSE(table.shared(cluster));
  table.add_reference(cluster);
  EXPECT_FALSE(table.shared(cluster));
  table.add_reference(cluster);
  EXPECT_TRUE(table.shared(cluster));
  EXPECT_EQ(table.references(cluster), 2U);
}

TEST(ClusterTable, DoesNotCountWhatIsNoCluster) {
  Epochs epochs;
  ClusterTable table(geometry(10), epochs);
  table.add_reference(kBaseOrigin);
  table.add_reference(kBaseZeros);
  table.drop_reference(kBaseZeros, 1);
  EXPECT_EQ(table.in_quarantine(), 0U);
  EXPECT_EQ(table.free(), 7U);
}

TEST(ClusterTable, AtLoadTheFirstReferenceTakesACluster) {
  Epochs epochs;
  ClusterTable table(geometry(10), epochs);
  table.add_reference(5);
  EXPECT_FALSE(table.is_free(5));
  EXPECT_EQ(table.free(), 6U);
}

TEST(ClusterTable, ADropCountsWhenItsRecordIsDurable) {
  Epochs epochs;
  ClusterTable table(geometry(10), epochs);
  const ClusterIndex cluster = table.take().value();
  table.add_reference(cluster);
  table.add_reference(cluster);
  table.drop_reference(cluster, 5);
  table.drop_reference(cluster, 6);
  EXPECT_EQ(table.in_quarantine(), 2U);
  EXPECT_FALSE(table.settle(4, kAll));
  EXPECT_TRUE(table.shared(cluster));
  EXPECT_FALSE(table.settle(5, kAll));
  EXPECT_FALSE(table.shared(cluster));
  EXPECT_FALSE(table.is_free(cluster));
  EXPECT_FALSE(table.settle(6, kAll));
  EXPECT_TRUE(table.is_free(cluster));
  EXPECT_EQ(table.in_quarantine(), 0U);
}

TEST(ClusterTable, ADropThatIsDurableAlreadyDoesNotWaitForThoseBeforeIt) {
  Epochs epochs;
  ClusterTable table(geometry(10), epochs);
  const ClusterIndex waiting = table.take().value();
  const ClusterIndex cluster = table.take().value();
  table.add_reference(waiting);
  table.add_reference(cluster);
  table.drop_reference(waiting, 5);
  table.drop_reference(cluster, 0);
  EXPECT_FALSE(table.settle(4, kAll));
  EXPECT_FALSE(table.is_free(waiting));
  EXPECT_TRUE(table.is_free(cluster));
}

TEST(ClusterTable, ADropCountsWhenWhatWasInFlightHasCompleted) {
  Epochs epochs;
  EpochReader reader(epochs);
  ClusterTable table(geometry(10), epochs);
  const ClusterIndex cluster = table.take().value();
  table.add_reference(cluster);
  table.add_reference(cluster);

  // Not only the last reference: one that is left alone with the cluster writes to it in place.
  EpochUse before;
  reader.enter(before);
  table.drop_reference(cluster, 1);
  EXPECT_FALSE(table.settle(1, kAll));
  EXPECT_TRUE(table.shared(cluster));
  EpochUse after;
  reader.enter(after);
  reader.leave(before);
  EXPECT_FALSE(table.settle(1, kAll));
  EXPECT_FALSE(table.shared(cluster));

  table.drop_reference(cluster, 2);
  EXPECT_FALSE(table.settle(2, kAll));
  EXPECT_FALSE(table.is_free(cluster));
  reader.leave(after);
  EXPECT_FALSE(table.settle(2, kAll));
  EXPECT_TRUE(table.is_free(cluster));
}

TEST(ClusterTable, SettlesInSteps) {
  Epochs epochs;
  ClusterTable table(geometry(110), epochs);
  for (int i = 0; i < 107; ++i) {
    const ClusterIndex cluster = table.take().value();
    table.add_reference(cluster);
    table.drop_reference(cluster, 1);
  }
  uint32_t free = table.free();
  while (table.settle(1, 10)) {
    EXPECT_LE(table.free(), free + 10);
    free = table.free();
  }
  EXPECT_EQ(table.free(), 107U);
}

TEST(ClusterTable, CountsMoreThanFitInto16Bits) {
  constexpr uint32_t kMany = 70000;
  Epochs epochs;
  ClusterTable table(geometry(10), epochs);
  const ClusterIndex cluster = table.take().value();
  for (uint32_t i = 1; i <= kMany; ++i) {
    table.add_reference(cluster);
    ASSERT_EQ(table.references(cluster), i);
    ASSERT_EQ(table.shared(cluster), i > 1);
  }
  for (uint32_t i = 0; i < kMany; ++i) table.drop_reference(cluster, 0);
  for (uint32_t left = kMany; left > 0; --left) {
    ASSERT_EQ(table.references(cluster), left);
    ASSERT_EQ(table.settle(0, 1), left > 1);
  }
  EXPECT_TRUE(table.is_free(cluster));
}

TEST(ClusterTable, GrowsAtTheEndAndKeepsItsCounts) {
  Epochs epochs;
  ClusterTable table(geometry(10), epochs);
  while (table.take()) {
  }
  for (int i = 0; i < 3; ++i) table.add_reference(9);
  // Into the next word, and beyond the first chunk of counts.
  table.grow(80);
  EXPECT_EQ(table.free(), 70U);
  EXPECT_EQ(table.take(), 10U);
  table.grow(600'000);
  EXPECT_EQ(table.total(), 600'000U);
  EXPECT_EQ(table.free(), 600'000U - 11);
  EXPECT_EQ(table.references(9), 3U);
  table.take(599'999);
  table.add_reference(599'999);
  table.add_reference(599'999);
  EXPECT_TRUE(table.shared(599'999));
  EXPECT_EQ(table.take(), 11U);
}

TEST(ClusterTableDeathTest, RefusesToTakeTwiceAndToGiveBackWhatIsReferredTo) {
  Epochs epochs;
  ClusterTable table(geometry(10), epochs);
  table.take(5);
  EXPECT_DEATH(table.take(5), "is_free");
  table.add_reference(5);
  EXPECT_DEATH(table.give_back(5), "references");
  EXPECT_DEATH(table.add_reference(2), "reserved_");
  EXPECT_DEATH(table.add_reference(10), "total_");
}

TEST(ClusterTable, AgreesWithAModelUnderRandomUse) {
  for (uint32_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    Epochs epochs;
    ClusterTable table(geometry(200), epochs);
    std::vector<uint32_t> references(200);
    struct Drop {
      ClusterIndex cluster;
      RecordNumber by;
    };
    std::deque<Drop> drops;
    std::set<ClusterIndex> taken;
    RecordNumber record = 0;
    for (int step = 0; step < 3000; ++step) {
      const ClusterIndex some = 3 + static_cast<ClusterIndex>(random() % 197);
      switch (random() % 4) {
        case 0:
          if (const auto cluster = table.take()) {
            ASSERT_TRUE(taken.insert(*cluster).second);
            table.add_reference(*cluster);
            ++references[*cluster];
          }
          break;
        case 1:
          if (references[some] > 0) {
            table.add_reference(some);
            ++references[some];
          }
          break;
        case 2:
          // Never the same reference twice.
          if (static_cast<uint32_t>(std::ranges::count(drops, some, &Drop::cluster)) < references[some]) {
            drops.push_back({some, ++record});
            table.drop_reference(some, record);
          }
          break;
        default: {
          const RecordNumber durable = record - random() % 4 * record / 8;
          while (table.settle(durable, 3)) {
          }
          while (!drops.empty() && drops.front().by <= durable) {
            if (--references[drops.front().cluster] == 0) taken.erase(drops.front().cluster);
            drops.pop_front();
          }
        }
      }
      ASSERT_EQ(table.references(some), references[some]);
      ASSERT_EQ(table.in_quarantine(), drops.size());
      ASSERT_EQ(table.free(), 197 - taken.size());
    }
  }
}

}  // namespace
}  // namespace sluice::lvol
