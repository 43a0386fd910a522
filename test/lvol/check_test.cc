#include "lib/lvol/check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "test/lvol/lvol_world.h"

namespace sluice::lvol {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint64_t kClusterBytes = 64U << 10;

class CheckTest : public testing::Test {
 protected:
  CheckTest() {
    world_.create("a", 4 * kClusterBytes);
    PageBuffer data(2 * kClusterBytes, 1);
    EXPECT_EQ(world_.write("a", 0, data.bytes()), IoStatus::kOk);
    world_.snapshot("a", "s");
    EXPECT_THAT(world_.findings(), IsEmpty());
  }

  // Changes something behind the store's back.
  template <typename Fn>
  void change(Fn fn) {
    world_.hosts().on(world_.store_thread(), fn);
  }
  Maps& maps() { return world_.store().maps(); }
  const ClusterTable& clusters() { return world_.store().clusters(); }
  ClusterIndex free_cluster() {
    ClusterIndex cluster = clusters().total();
    while (!clusters().is_free(--cluster)) {
    }
    return cluster;
  }

  LvolWorld world_{{.cluster_bytes = kClusterBytes}};
};

TEST_F(CheckTest, TellsWhatIsThere) {
  const CheckReport report = check(world_.store());
  EXPECT_THAT(report.findings, IsEmpty());
  EXPECT_EQ(report.volumes, 2U);
  EXPECT_EQ(report.snapshots, 1U);
  EXPECT_EQ(report.map_pages, 1U);
  EXPECT_EQ(report.data_clusters, 2U);
  EXPECT_EQ(report.reserved_clusters + report.data_clusters + report.metadata_clusters + report.free_clusters,
            report.total_clusters);
}

TEST_F(CheckTest, FindsWhatIsMappedBeyondTheEnd) {
  change([&] { maps().set(world_.find("a")->map, 7, {.own = free_cluster(), .base = kBaseOrigin, .valid = 1}, 0); });
  EXPECT_THAT(world_.findings(), ElementsAre(HasSubstr("has 4 clusters, but cluster 7 is mapped")));
}

TEST_F(CheckTest, FindsReferencesThatNoEntryHas) {
  change([&] { maps().count_leaf(static_cast<const LeafPage&>(*world_.find("s")->map.page())); });
  EXPECT_THAT(check(world_.store()).findings, ElementsAre(HasSubstr("but counts 2"), HasSubstr("but counts 2")));
}

TEST_F(CheckTest, FindsEntriesThatCannotBe) {
  change(
      [&] { maps().set(world_.find("a")->map, 2, {.own = free_cluster(), .base = kBaseOrigin, .valid = ~0ULL}, 0); });
  EXPECT_THAT(world_.findings(), Contains(HasSubstr("an entry cannot be")));
}

TEST_F(CheckTest, FindsPagesWithOneHolderTooMany) {
  change([&] { maps().add_holder(*world_.find("s")->map.page()); });
  EXPECT_THAT(check(world_.store()).findings, ElementsAre(HasSubstr("has 2 holders, but counts 3")));
}

TEST_F(CheckTest, FindsAVolumeThatCountsAgainstAnotherThanItsParent) {
  change([&] { maps().stand_on(world_.find("s")->map, &world_.find("a")->map); });
  EXPECT_THAT(check(world_.store()).findings, ElementsAre(HasSubstr("stands on another map than its parent's")));
}

TEST_F(CheckTest, FindsAPlaceThatIsUsedTwice) {
  ASSERT_TRUE(world_.await(world_.store().checkpoint()).has_value());
  EXPECT_THAT(world_.findings(), IsEmpty());
  PageBuffer data(4096, 2);
  ASSERT_EQ(world_.write("a", 0, data.bytes()), IoStatus::kOk);
  EXPECT_THAT(world_.findings(), IsEmpty());
  change([&] { maps().placed(*world_.find("a")->map.page(), world_.find("s")->map.page()->place); });
  EXPECT_THAT(check(world_.store()).findings, Contains(HasSubstr("is used twice")));
}

}  // namespace
}  // namespace sluice::lvol
