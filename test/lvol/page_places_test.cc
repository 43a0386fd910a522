#include "lib/lvol/page_places.h"

#include <gtest/gtest.h>

#include <random>

namespace sluice::lvol {
namespace {

constexpr uint32_t kEveryPage = UINT32_MAX;

// 16 places in a cluster.
struct PagePlacesTest : testing::Test {
  const Geometry geometry{.cluster_bytes = 64 << 10, .total_clusters = 10, .reserved_clusters = 2};
  Epochs epochs;
  ClusterTable clusters{geometry, epochs};
  PagePlaces places{geometry, clusters};

  void complete_checkpoint() {
    places.begin_checkpoint();
    places.end_checkpoint();
    while (places.settle(kEveryPage)) {
    }
  }
};

TEST_F(PagePlacesTest, TakesPlacesOneAfterTheOtherThroughClusters) {
  for (PageNumber expected = 2 * 16; expected < 10 * 16; ++expected) {
    EXPECT_EQ(places.take(), expected);
    EXPECT_EQ(places.spare(), 15 - expected % 16);
  }
  EXPECT_EQ(places.clusters(), 8U);
  EXPECT_EQ(clusters.free(), 0U);
  EXPECT_EQ(places.take(), std::nullopt);
}

TEST_F(PagePlacesTest, TakesNoClusterOfData) {
  clusters.add_reference(clusters.take().value());
  EXPECT_EQ(places.take(), 3 * 16);
  EXPECT_TRUE(places.has(3));
  EXPECT_FALSE(places.has(2));
}

TEST_F(PagePlacesTest, APlaceThatWasLeftIsFreeAfterACheckpointThatBeganLater) {
  std::vector<PageNumber> taken;
  for (int i = 0; i < 16; ++i) taken.push_back(places.take().value());
  places.leave(taken[3]);
  places.begin_checkpoint();
  places.leave(taken[5]);  // the checkpoint has it still
  EXPECT_EQ(places.spare(), 0U);
  places.end_checkpoint();
  while (places.settle(1)) {
  }
  EXPECT_EQ(places.spare(), 1U);
  EXPECT_EQ(places.take(), taken[3]);
  complete_checkpoint();
  EXPECT_EQ(places.take(), taken[5]);
}

TEST_F(PagePlacesTest, ACheckpointThatFailsFreesNothing) {
  for (int i = 0; i < 16; ++i) places.take();
  places.leave(2 * 16);
  places.begin_checkpoint();
  places.leave(2 * 16 + 1);
  places.abandon_checkpoint();
  EXPECT_FALSE(places.settle(kEveryPage));
  EXPECT_EQ(places.spare(), 0U);
  complete_checkpoint();
  EXPECT_EQ(places.spare(), 2U);
}

TEST_F(PagePlacesTest, PrefersPlacesThatACheckpointHasFreedToANewCluster) {
  for (int i = 0; i < 16; ++i) places.take();
  places.leave(2 * 16 + 7);
  places.begin_checkpoint();
  places.end_checkpoint();
  EXPECT_EQ(places.take(), 2 * 16 + 7);
}

TEST_F(PagePlacesTest, GivesBackAClusterWithoutPages) {
  for (int i = 0; i < 20; ++i) places.take();
  EXPECT_EQ(clusters.free(), 6U);
  for (PageNumber page = 2 * 16; page < 3 * 16; ++page) places.leave(page);
  complete_checkpoint();
  EXPECT_EQ(clusters.free(), 7U);
  EXPECT_EQ(places.clusters(), 1U);
  EXPECT_EQ(places.spare(), 12U);
  // The next ones follow the last one still.
  EXPECT_EQ(places.take(), 3 * 16 + 4);
}

TEST_F(PagePlacesTest, GivesAPlaceBackAtOnce) {
  const PageNumber page = places.take().value();
  places.take();
  places.give_back(page);
  EXPECT_EQ(places.spare(), 15U);
  EXPECT_EQ(places.clusters(), 1U);
}

TEST_F(PagePlacesTest, AtLoadRefusesPlacesThatCannotBe) {
  clusters.add_reference(5);
  EXPECT_FALSE(places.take(PageNumber{0}));
  EXPECT_FALSE(places.take(PageNumber{2 * 16 - 1}));
  EXPECT_FALSE(places.take(PageNumber{10 * 16}));
  EXPECT_FALSE(places.take(PageNumber{UINT64_MAX}));
  EXPECT_FALSE(places.take(PageNumber{5 * 16 + 3}));
  EXPECT_TRUE(places.take(PageNumber{4 * 16 + 3}));
  EXPECT_TRUE(places.take(PageNumber{4 * 16 + 3}));  // of a page that is shared
  EXPECT_EQ(places.spare(), 15U);
  EXPECT_FALSE(clusters.is_free(4));
  places.give_back(4 * 16 + 3);
  EXPECT_TRUE(clusters.is_free(4));
}

TEST_F(PagePlacesTest, WorksWithClustersOfMoreThan64PlacesAndAfterGrowing) {
  const Geometry large{.cluster_bytes = 1 << 20, .total_clusters = 4, .reserved_clusters = 2};
  ClusterTable table(large, epochs);
  PagePlaces pages(large, table);
  for (PageNumber expected = 2 * 256; expected < 4 * 256; ++expected) ASSERT_EQ(pages.take(), expected);
  EXPECT_EQ(pages.take(), std::nullopt);
  pages.give_back(3 * 256 + 200);
  EXPECT_EQ(pages.take(), 3 * 256 + 200);
  table.grow(5);
  EXPECT_EQ(pages.take(), 4 * 256);
  EXPECT_TRUE(pages.take(PageNumber{5 * 256 - 1}));
}

TEST_F(PagePlacesTest, NeverHandsOutAPlaceTwiceUnderRandomUse) {
  for (uint32_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    ClusterTable table(geometry, epochs);
    PagePlaces pages(geometry, table);
    std::vector<PageNumber> in_use;
    std::set<PageNumber> busy;  // in use, or left and not free
    std::vector<PageNumber> left;
    std::vector<PageNumber> left_before;
    bool checkpointing = false;
    for (int step = 0; step < 5000; ++step) {
      switch (random() % 6) {
        case 0:
        case 1:
        case 2:
          if (const auto page = pages.take()) {
            ASSERT_TRUE(busy.insert(*page).second);
            in_use.push_back(*page);
          } else {
            ASSERT_EQ(busy.size(), 8 * 16U);
          }
          break;
        case 3:
        case 4:
          if (!in_use.empty()) {
            std::swap(in_use[random() % in_use.size()], in_use.back());
            pages.leave(in_use.back());
            left.push_back(in_use.back());
            in_use.pop_back();
          }
          break;
        default:
          if (!checkpointing) {
            pages.begin_checkpoint();
            left_before.insert(left_before.end(), left.begin(), left.end());
            left.clear();
          } else if (random() % 4 == 0) {
            pages.abandon_checkpoint();
          } else {
            pages.end_checkpoint();
            while (pages.settle(5)) {
            }
            for (const PageNumber page : left_before) busy.erase(page);
            left_before.clear();
          }
          checkpointing = !checkpointing;
      }
      ASSERT_EQ(pages.spare() + busy.size(), pages.clusters() * 16U);
      ASSERT_EQ(pages.clusters() + table.free(), 8U);
    }
  }
}

}  // namespace
}  // namespace sluice::lvol
