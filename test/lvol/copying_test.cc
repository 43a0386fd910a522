#include "lib/lvol/copying.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "lib/bdev/bdev.h"
#include "test/lvol/lvol_world.h"

namespace sluice::lvol {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint64_t kCluster = 64U << 10;
constexpr uint64_t kClusters = 16;
constexpr uint64_t kBytes = kClusters * kCluster;
constexpr uint64_t kSubcluster = 4096;

class LvolCopyingTest : public testing::Test {
 protected:
  // What a volume holds, read by its first user.
  std::vector<std::byte> content(const std::string& name) {
    PageBuffer buffer(kBytes, 1);
    EXPECT_EQ(world_.read(name, 0, buffer.bytes()), IoStatus::kOk);
    return {buffer.bytes().begin(), buffer.bytes().end()};
  }
  // Writes a pattern, and the same to `model`.
  void write(const std::string& name, uint64_t offset, uint64_t length, uint32_t pattern,
             std::vector<std::byte>& model) {
    const PageBuffer buffer(length, pattern);
    ASSERT_EQ(world_.write(name, offset, buffer.bytes()), IoStatus::kOk);
    std::ranges::copy(buffer.bytes(), model.begin() + static_cast<std::ptrdiff_t>(offset));
  }
  static std::vector<std::byte> zeros() { return std::vector<std::byte>(kBytes); }

  // Runs fn(channel) as a task of the store's thread, with a channel of the volume there.
  template <typename Fn>
  Result<> with_channel(const std::string& name, Fn fn) {
    Bdev& bdev = world_.bdev(name);
    LwThread& thread = world_.store_thread();
    ChannelRef channel = world_.hosts().on(thread, [&] { return thread.get_channel(bdev).value(); });
    const Result<> result = world_.await(fn(static_cast<BdevChannel&>(*channel.get())));
    world_.hosts().on(thread, [&] { channel.reset(); });
    return result;
  }
  Result<> own(const std::string& name, bool allocate) {
    return with_channel(name, [&](BdevChannel& channel) {
      return own_clusters(world_.store(), world_.id(name), channel, allocate, progress_);
    });
  }
  VolumeUsage usage(const std::string& name) { return world_.await(world_.store().usage_of(world_.id(name))).value(); }
  std::vector<uint64_t> changed(VolumeId from, const std::string& to, uint64_t limit = 1000) {
    std::vector<uint64_t> clusters;
    for (uint64_t next = 0; next < kClusters;) {
      auto part = world_.await(world_.store().changed_clusters(from, world_.id(to), next, limit));
      EXPECT_TRUE(part);
      EXPECT_LE(part->clusters.size(), limit);
      clusters.insert(clusters.end(), part->clusters.begin(), part->clusters.end());
      next = part->next;
    }
    return clusters;
  }

  // "origin" with data, its snapshot "s", and "clone" of that, with data of its own.
  void make_clone() {
    world_.create("origin", kBytes);
    write("origin", 0, 3 * kCluster, 1, of_origin_);
    write("origin", 5 * kCluster + kSubcluster, kSubcluster, 2, of_origin_);
    world_.snapshot("origin", "s");
    world_.clone("s", "clone");
    of_clone_ = of_origin_;
    write("clone", kCluster + 2 * kSubcluster, 3 * kSubcluster, 3, of_clone_);
    write("clone", 5 * kCluster + 8 * kSubcluster, kSubcluster, 4, of_clone_);
    write("clone", 9 * kCluster, kSubcluster, 5, of_clone_);
  }

  LvolWorld world_{{.cluster_bytes = kCluster}};
  CopyProgress progress_;
  std::vector<std::byte> of_origin_ = zeros();
  std::vector<std::byte> of_clone_ = zeros();
};

TEST_F(LvolCopyingTest, AnInflatedVolumeOwnsAllOfItself) {
  make_clone();
  ASSERT_TRUE(own("clone", true));
  EXPECT_EQ(content("clone"), of_clone_);
  EXPECT_EQ(usage("clone").allocated, kClusters);
  EXPECT_EQ(usage("clone").exclusive, kClusters);
  EXPECT_EQ(world_.find("clone")->record->parent, kNoVolume);
  EXPECT_FALSE(world_.find("clone")->record->thin);
  EXPECT_EQ(progress_.done_clusters, kClusters);
  EXPECT_THAT(world_.findings(), IsEmpty());
}

TEST_F(LvolCopyingTest, InflatingAnEmptyVolumeWritesNoData) {
  world_.create("empty", kBytes);
  const uint64_t before = world_.disk().changes();
  ASSERT_TRUE(own("empty", true));
  EXPECT_LT(world_.disk().changes() - before, kClusters / 2);  // pages of the journal
  EXPECT_EQ(usage("empty").allocated, kClusters);
  EXPECT_EQ(content("empty"), zeros());
  EXPECT_THAT(world_.findings(), IsEmpty());
}

// A first write has been granted a cluster, then the volume gets one for that place, and another write goes there.
TEST_F(LvolCopyingTest, AWriteUnderWayHidesNothingThatIsWrittenWhileItsVolumeIsInflated) {
  LwThread& thread = world_.store_thread();
  for (int steps = 0; steps < 40; ++steps) {
    world_.create("a", kBytes);
    ChannelRef channel = world_.hosts().on(thread, [&] { return thread.get_channel(world_.bdev("a")).value(); });
    const PageBuffer first(kSubcluster, 1);
    const PageBuffer second(kSubcluster, 2);
    TestIo asking(IoType::kWrite, 0, {first.bytes()});
    world_.user("a", 0).submit(asking);
    for (int i = 0; i < steps; ++i) std::ignore = world_.step();
    std::optional<Result<>> inflated;
    world_.hosts().on(thread, [&] {
      start(own_clusters(world_.store(), world_.id("a"), static_cast<BdevChannel&>(*channel.get()), true, progress_),
            [&](Result<> result) { inflated = result; });
    });
    ASSERT_EQ(world_.write("a", kSubcluster, second.bytes(), 1), IoStatus::kOk);
    ASSERT_EQ(world_.finish(asking), IoStatus::kOk);
    ASSERT_TRUE(world_.run_until([&] { return inflated.has_value(); }));
    world_.hosts().on(thread, [&] { channel.reset(); });
    PageBuffer found(kSubcluster, 3);
    ASSERT_EQ(world_.read("a", kSubcluster, found.bytes()), IoStatus::kOk);
    EXPECT_TRUE(std::ranges::equal(found.bytes(), second.bytes())) << steps;
    ASSERT_TRUE(world_.remove("a"));
  }
}

TEST_F(LvolCopyingTest, ACloneOfAThickVolumeOwnsTheClustersThatNobodyHasWrittenTo) {
  world_.create("thick", kBytes, false);
  write("thick", 0, kSubcluster, 1, of_origin_);
  world_.snapshot("thick", "s");
  world_.clone("s", "clone");
  ASSERT_TRUE(own("clone", false));
  EXPECT_EQ(content("clone"), of_origin_);
  EXPECT_EQ(usage("clone").exclusive, kClusters);
  EXPECT_THAT(world_.findings(), IsEmpty());
}

TEST_F(LvolCopyingTest, ADecoupledVolumeTakesOnlyWhatItHas) {
  make_clone();
  ASSERT_TRUE(own("clone", false));
  EXPECT_EQ(content("clone"), of_clone_);
  EXPECT_EQ(usage("clone").allocated, 5U);
  EXPECT_EQ(usage("clone").exclusive, 5U);
  EXPECT_EQ(world_.find("clone")->record->parent, kNoVolume);
  EXPECT_TRUE(world_.find("clone")->record->thin);
  ASSERT_TRUE(world_.remove("origin"));
  ASSERT_TRUE(world_.remove("s"));
  EXPECT_EQ(content("clone"), of_clone_);
  EXPECT_THAT(world_.findings(), IsEmpty());
}

TEST_F(LvolCopyingTest, WhatIsWrittenMeanwhileIsNotOverwritten) {
  make_clone();
  Bdev& bdev = world_.bdev("clone");
  LwThread& thread = world_.store_thread();
  ChannelRef channel = world_.hosts().on(thread, [&] { return thread.get_channel(bdev).value(); });
  std::optional<Result<>> done;
  world_.hosts().on(thread, [&] {
    start(own_clusters(world_.store(), world_.id("clone"), static_cast<BdevChannel&>(*channel.get()), true, progress_),
          [&](Result<> result) { done = result; });
  });
  std::mt19937_64 random(1);
  uint32_t pattern = 10;
  while (!done) {
    const uint64_t offset = random() % (kBytes / 512 - 32) * 512;
    write("clone", offset, (1 + random() % 32) * 512, ++pattern, of_clone_);
  }
  EXPECT_TRUE(*done);
  EXPECT_GT(pattern, 12U);
  world_.hosts().on(thread, [&] { channel.reset(); });
  EXPECT_EQ(content("clone"), of_clone_);
  EXPECT_EQ(usage("clone").exclusive, kClusters);
  EXPECT_EQ(content("s"), of_origin_);
  EXPECT_THAT(world_.findings(), IsEmpty());
}

TEST_F(LvolCopyingTest, AnOperationThatIsEndedEarlyLeavesAClone) {
  make_clone();
  progress_.cancelled = true;
  const Result<> result = own("clone", true);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ECANCELED);
  EXPECT_NE(world_.find("clone")->record->parent, kNoVolume);
  EXPECT_FALSE(world_.find("clone")->busy);
  EXPECT_EQ(content("clone"), of_clone_);
}

TEST_F(LvolCopyingTest, AShallowCopyHasTheVolumesOwnClustersOnly) {
  make_clone();
  world_.snapshot("clone", "to_copy");
  world_.create("target", kBytes);
  Bdev& target = world_.bdev("target");
  LwThread& thread = world_.store_thread();
  ChannelRef to = world_.hosts().on(thread, [&] { return thread.get_channel(target).value(); });
  const Result<> copied = with_channel("to_copy", [&](BdevChannel& from) {
    return shallow_copy(world_.store(), world_.id("to_copy"), from, static_cast<BdevChannel&>(*to.get()), progress_);
  });
  EXPECT_TRUE(copied);
  const Result<> refused = with_channel("clone", [&](BdevChannel& from) {
    return shallow_copy(world_.store(), world_.id("clone"), from, static_cast<BdevChannel&>(*to.get()), progress_);
  });
  world_.hosts().on(thread, [&] { to.reset(); });
  EXPECT_EQ(refused.error().code, EPERM);
  // "clone" has written to clusters 1, 5 and 9: these, whole.
  std::vector<std::byte> expected = zeros();
  for (const uint64_t index : {1U, 5U, 9U}) {
    std::ranges::copy_n(of_clone_.begin() + static_cast<std::ptrdiff_t>(index * kCluster), kCluster,
                        expected.begin() + static_cast<std::ptrdiff_t>(index * kCluster));
  }
  EXPECT_EQ(content("target"), expected);
  EXPECT_EQ(progress_.total_clusters, 3U);
  EXPECT_EQ(progress_.done_clusters, 3U);
}

TEST_F(LvolCopyingTest, ChangedClustersAreThoseWrittenSince) {
  make_clone();
  EXPECT_THAT(changed(world_.id("s"), "clone"), ElementsAre(1, 5, 9));
  EXPECT_THAT(changed(world_.id("s"), "clone", 1), ElementsAre(1, 5, 9));
  EXPECT_THAT(changed(kNoVolume, "s"), ElementsAre(0, 1, 2, 5));
  EXPECT_THAT(changed(world_.id("s"), "origin"), IsEmpty());
  EXPECT_EQ(world_.discard("clone", 0, kCluster), IoStatus::kOk);
  EXPECT_THAT(changed(world_.id("s"), "clone"), ElementsAre(0, 1, 5, 9));
}

TEST_F(LvolCopyingTest, AVolumeWithAnotherParentHasItsOwnPartsAndTheParents) {
  make_clone();
  std::vector<std::byte> of_other = zeros();
  world_.create("other", kBytes);
  write("other", 0, kCluster / 2, 20, of_other);     // partly where the clone has nothing of its own
  write("other", kCluster, kCluster, 21, of_other);  // wholly where it has
  write("other", 5 * kCluster + 4 * kSubcluster, kCluster / 2, 22, of_other);  // partly where it has
  world_.snapshot("other", "base");
  ASSERT_TRUE(world_.await(world_.store().set_parent(world_.id("clone"), world_.id("base"), "")));
  std::vector<std::byte> expected = of_other;
  const auto keep = [&](uint64_t offset, uint64_t length) {
    std::ranges::copy_n(of_clone_.begin() + static_cast<std::ptrdiff_t>(offset), static_cast<std::ptrdiff_t>(length),
                        expected.begin() + static_cast<std::ptrdiff_t>(offset));
  };
  keep(kCluster + 2 * kSubcluster, 3 * kSubcluster);
  // This sub-cluster of its own came along from the old parent when the cluster became the clone's.
  keep(5 * kCluster + kSubcluster, kSubcluster);
  keep(5 * kCluster + 8 * kSubcluster, kSubcluster);
  keep(9 * kCluster, kSubcluster);
  EXPECT_EQ(content("clone"), expected);
  EXPECT_EQ(content("base"), of_other);
  EXPECT_EQ(world_.find("clone")->record->parent, world_.id("base"));
  // Neither shares what the other writes from here on.
  of_clone_ = expected;
  write("clone", kCluster, 2 * kCluster, 30, of_clone_);
  EXPECT_EQ(content("clone"), of_clone_);
  EXPECT_EQ(content("base"), of_other);
  EXPECT_THAT(world_.findings(), IsEmpty());
}

TEST_F(LvolCopyingTest, AVolumeThatSharesWithASiblingIsNotPutOnAnotherParentInParts) {
  std::vector<std::byte> of_siblings = zeros();
  std::vector<std::byte> of_base = zeros();
  world_.create("origin", kBytes);
  write("origin", 0, kSubcluster, 1, of_siblings);
  world_.snapshot("origin", "s");
  world_.clone("s", "a");
  world_.clone("s", "b");
  ASSERT_TRUE(world_.remove("origin"));
  ASSERT_TRUE(world_.remove("s"));
  world_.create("other", kBytes);
  write("other", kSubcluster, kSubcluster, 2, of_base);
  world_.snapshot("other", "base");
  const Result<> refused = world_.await(world_.store().set_parent(world_.id("a"), world_.id("base"), ""));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, EPERM);
  EXPECT_EQ(content("a"), of_siblings);
  EXPECT_EQ(content("b"), of_siblings);
  ASSERT_TRUE(own("a", false));
  ASSERT_TRUE(world_.await(world_.store().set_parent(world_.id("a"), world_.id("base"), "")));
  EXPECT_EQ(content("b"), of_siblings);
  EXPECT_THAT(world_.findings(), IsEmpty());
}

TEST_F(LvolCopyingTest, OnlyAReadOnlyVolumeCanBecomeAParent) {
  make_clone();
  const Result<> writable = world_.await(world_.store().set_parent(world_.id("clone"), world_.id("origin"), ""));
  ASSERT_FALSE(writable);
  EXPECT_EQ(writable.error().code, EPERM);
  const Result<> snapshot = world_.await(world_.store().set_parent(world_.id("s"), world_.id("s"), ""));
  ASSERT_FALSE(snapshot);
  EXPECT_EQ(snapshot.error().code, EPERM);
}

}  // namespace
}  // namespace sluice::lvol
