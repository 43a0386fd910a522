// How many clusters are a volume's own: Store::own_clusters_of(), against a walk, after whatever may change it.
#include <random>
#include <set>

#include "lib/lvol/copying.h"
#include "test/lvol/store_fixture.h"

namespace sluice::lvol {
namespace {

constexpr uint64_t kOwnCluster = 64 * kKiB;

class OwnClusters : public StoreTest {
 protected:
  OwnClusters() { make({.size_bytes = 64 * kMiB, .cluster_bytes = kOwnCluster}); }

  uint64_t own(const std::string& name) {
    return world().await(world().store().own_clusters_of(world().id(name))).value();
  }
  // Entry by entry.
  uint64_t walked(const std::string& name) {
    const Volume& volume = *world().find(name);
    const Volume* parent = world().store().volumes().find(volume.record->parent);
    Maps& maps = world().store().maps();
    uint64_t count = 0;
    for (uint64_t index = 0; index < volume.record->size_bytes / kOwnCluster; ++index) {
      const Entry entry = maps.find(volume.map, index).entry;
      const Entry below = parent == nullptr ? Entry{} : maps.find(parent->map, index).entry;
      std::set<ClusterIndex> clusters{entry.own, entry.base};
      for (const ClusterIndex cluster : {kBaseOrigin, kBaseZeros, below.own, below.base}) clusters.erase(cluster);
      count += clusters.size();
    }
    return count;
  }
  void expect_counts() {
    for (const auto& [id, volume] : world().store().volumes().all()) {
      const std::string name = volume->record->name;
      EXPECT_EQ(own(name), walked(name)) << name;
    }
  }
  Result<> make_own(const std::string& name, bool allocate) {
    Bdev& bdev = world().bdev(name);
    LwThread& thread = world().store_thread();
    ChannelRef channel = world().hosts().on(thread, [&] { return thread.get_channel(bdev).value(); });
    CopyProgress progress;
    const Result<> result = world().await(
        own_clusters(world().store(), world().id(name), static_cast<BdevChannel&>(*channel.get()), allocate, progress));
    world().hosts().on(thread, [&] { channel.reset(); });
    return result;
  }
};

TEST_F(OwnClusters, AreThoseThatTheParentHasNot) {
  create("a", kMiB);
  create("thick", kMiB, false);
  write("a", 0, 4 * kOwnCluster);
  EXPECT_EQ(own("a"), 4U);
  EXPECT_EQ(own("thick"), 16U);

  snapshot("a", "s");
  EXPECT_EQ(own("s"), 4U) << "a snapshot takes over what its volume has";
  EXPECT_EQ(own("a"), 0U);
  clone("s", "b");
  EXPECT_EQ(own("b"), 0U);

  write("a", 0, 4 * kKiB);
  write("a", 9 * kOwnCluster, kOwnCluster);
  write("b", 0, 2 * kOwnCluster);
  EXPECT_EQ(own("a"), 2U);
  EXPECT_EQ(own("b"), 2U);
  ASSERT_EQ(world().discard("a", 9 * kOwnCluster, kOwnCluster), IoStatus::kOk);
  EXPECT_EQ(own("a"), 1U);
  EXPECT_EQ(own("s"), 4U);

  remove("s");
  EXPECT_EQ(own("a"), 5U) << "its children take over what it has, but for what they have overwritten";
  EXPECT_EQ(own("b"), 4U);
  cut_and_reopen();
  EXPECT_EQ(own("a"), 5U);
  EXPECT_EQ(own("b"), 4U);
  expect_counts();
}

TEST_F(OwnClusters, AreKeptWithoutAWalk) {
  create("a", kMiB);
  write("a", 0, 4 * kOwnCluster);
  snapshot("a", "s");
  clone("s", "b");
  snapshot("b", "t");
  write("b", 0, kOwnCluster);
  Maps& maps = world().store().maps();
  for (const auto& [name, count] : std::map<std::string, uint64_t>{{"a", 0}, {"s", 4}, {"t", 0}, {"b", 1}}) {
    EXPECT_EQ(maps.count_own(world().find(name)->map, 0), count) << name;
  }
}

TEST_F(OwnClusters, OfADeletedParentAreTakenOverWithoutAWalkByClonesThatHaveNotChanged) {
  create("a", kMiB);
  write("a", 0, 4 * kOwnCluster);
  snapshot("a", "s");
  clone("s", "b");
  clone("s", "c");
  write("c", 0, kOwnCluster);
  remove("s");
  Maps& maps = world().store().maps();
  EXPECT_EQ(maps.count_own(world().find("b")->map, 0), 4U);
  EXPECT_EQ(maps.count_own(world().find("c")->map, 0), std::nullopt);
  EXPECT_EQ(own("c"), 4U);
}

TEST_F(OwnClusters, OfAReadOnlyVolumeThatChangesAfterAllAreCountedAnew) {
  create("a", kMiB);
  write("a", 0, 4 * kOwnCluster);
  snapshot("a", "s");
  world().close_bdev("a");
  ASSERT_TRUE(world().await(world().store().set_readonly(world().id("a"))).has_value());
  clone("a", "b");
  write("b", 0, kOwnCluster);
  EXPECT_EQ(own("b"), 1U);
  ASSERT_TRUE(make_own("a", true));
  EXPECT_EQ(own("a"), 16U);
  EXPECT_EQ(own("b"), 4U) << "what they shared is the snapshot's and this one's now";
  EXPECT_THAT(world().findings(), testing::IsEmpty());
}

// Everything that may happen, in random order; sometimes nobody asks for long.
class OwnClustersAtRandom : public OwnClusters, public testing::WithParamInterface<uint32_t> {
 protected:
  uint64_t below(uint64_t bound) { return random_() % bound; }
  std::string some(bool writable) {
    std::vector<std::string> names;
    for (const auto& [id, volume] : world().store().volumes().all()) {
      if (volume->writable() == writable) names.push_back(volume->record->name);
    }
    return names.empty() ? "" : names[below(names.size())];
  }
  void close_bdev(const std::string& name) {
    if (world().has_bdev(name)) world().close_bdev(name);
  }

  void change_content(const std::string& name) {
    const uint64_t clusters = world().find(name)->record->size_bytes / kOwnCluster;
    const uint64_t first = below(clusters);
    const uint64_t bytes = (1 + below(std::min<uint64_t>(3, clusters - first))) * kOwnCluster;
    PageBuffer data(kOwnCluster, 1);
    switch (below(4)) {
      case 0:
        std::ignore = world().discard(name, first * kOwnCluster, bytes);
        return;
      case 1:
        std::ignore = world().write(name, first * kOwnCluster, data.bytes());
        return;
      default:
        std::ignore = world().write(name, first * kOwnCluster + below(16) * 4096, data.bytes().first(4096));
    }
  }

  void change_volumes() {
    const std::string name = "v" + std::to_string(++names_);
    const std::string volume = some(true);
    const std::string still = some(false);
    Store& store = world().store();
    const bool few = store.volumes().all().size() < 10;
    switch (below(10)) {
      case 0:
        if (few) std::ignore = world().await(store.create({.name = name, .size_bytes = (1 + below(40)) * kOwnCluster}));
        return;
      case 1:
        if (few) std::ignore = world().await(store.create({.name = name, .size_bytes = kMiB, .thin = false}));
        return;
      case 2:
      case 3:
        if (few && !volume.empty()) std::ignore = world().await(store.snapshot(world().id(volume), name, {}));
        return;
      case 4:
        if (few && !still.empty()) std::ignore = world().await(store.clone(world().id(still), name, {}));
        return;
      case 5:
        if (const std::string gone = some(below(2) == 0); !gone.empty()) std::ignore = world().remove(gone);
        return;
      case 6:
        if (!volume.empty()) std::ignore = make_own(volume, below(2) == 0);
        return;
      case 7:
        if (!volume.empty()) std::ignore = world().resize(volume, (1 + below(40)) * kOwnCluster);
        return;
      case 8:
        if (volume.empty() || still.empty()) return;
        close_bdev(volume);
        if (world().await(store.set_parent(world().id(volume), world().id(still), "")).has_value()) ++parents_;
        return;
      default:
        if (below(4) != 0 || volume.empty()) return;
        close_bdev(volume);
        std::ignore = world().await(store.set_readonly(world().id(volume)));
    }
  }

  std::mt19937_64 random_{GetParam()};
  uint64_t names_ = 0;
  uint64_t parents_ = 0;  // set
};
INSTANTIATE_TEST_SUITE_P(Seeds, OwnClustersAtRandom, testing::Range(1U, 9U));

TEST_P(OwnClustersAtRandom, AreThoseOfAWalk) {
  for (int step = 0; step < 400; ++step) {
    const std::string volume = some(true);
    if (!volume.empty() && below(3) != 0) {
      change_content(volume);
    } else {
      change_volumes();
    }
    if (below(100) == 0) reopen();
    if (below(100) == 0) cut_and_reopen(CutMode::kEverything);
    if (below(8) == 0) expect_counts();
    if (HasFailure()) FAIL() << "step " << step;
  }
  expect_counts();
  EXPECT_THAT(world().findings(), testing::IsEmpty());
  EXPECT_GT(parents_, 0U);
}

}  // namespace
}  // namespace sluice::lvol
