#include "test/lvol/kill_model.h"

#include <gtest/gtest.h>

namespace sluice::lvol {
namespace {

constexpr uint64_t kSectors = 300;
constexpr uint64_t kWritten = 10;  // a sector that the base has
constexpr uint64_t kHole = 200;    // one that it has not

using Sector = std::array<std::byte, kSectorBytes>;

class KillModelTest : public testing::Test {
 protected:
  uint32_t write(uint64_t sector) {
    const uint32_t version = model.begin({sector, 1}, false);
    model.done({sector, 1}, version);
    return version;
  }
  uint32_t zero(uint64_t sector) {
    const uint32_t version = model.begin({sector, 1}, true);
    model.done({sector, 1}, version);
    return version;
  }
  void flush() { model.flushed(std::vector<uint32_t>(model.completed())); }

  Sector content(uint64_t sector, uint32_t version) const {
    Sector bytes;
    model.fill(bytes, sector, version);
    return bytes;
  }
  static Sector base(uint64_t sector) {
    Sector bytes;
    KillModel::fill_base(bytes, sector);
    return bytes;
  }
  // After a kill.
  bool may_be(uint64_t sector, const Sector& bytes) const {
    KillModel copy = model;
    return copy.settle(bytes, sector).empty();
  }
  bool is(uint64_t sector, const Sector& bytes) const { return model.check(bytes, sector).empty(); }

  KillModel model{1, kSectors};
  const Sector zeroes{};
};

TEST_F(KillModelTest, BeginsAsTheBase) {
  EXPECT_TRUE(is(kWritten, base(kWritten)));
  EXPECT_TRUE(is(kHole, zeroes));
  EXPECT_FALSE(is(kWritten, zeroes));
  EXPECT_FALSE(is(kWritten, base(kWritten + 1)));
  EXPECT_NE(base(kHole), base(kWritten));
}

TEST_F(KillModelTest, AllowsWhatWasFlushedAndAnythingLater) {
  const uint32_t first = write(kWritten);
  const uint32_t second = write(kWritten);
  flush();
  const uint32_t third = write(kWritten);
  const uint32_t failed = model.begin({kWritten, 1}, false);
  EXPECT_FALSE(may_be(kWritten, base(kWritten)));
  EXPECT_FALSE(may_be(kWritten, content(kWritten, first)));
  EXPECT_TRUE(may_be(kWritten, content(kWritten, second)));
  EXPECT_TRUE(may_be(kWritten, content(kWritten, third)));
  EXPECT_TRUE(may_be(kWritten, content(kWritten, failed)));
  EXPECT_FALSE(may_be(kWritten, content(kWritten, failed + 1)));
  EXPECT_FALSE(is(kWritten, content(kWritten, second)));
  EXPECT_TRUE(is(kWritten, content(kWritten, third)));
}

TEST_F(KillModelTest, RefusesWhatIsOfAnotherSectorDiskOrTime) {
  const uint32_t version = write(kWritten);
  EXPECT_FALSE(may_be(kWritten, content(kWritten + 1, version)));
  Sector other;
  KillModel(2, kSectors).fill(other, kWritten, version);
  EXPECT_FALSE(may_be(kWritten, other));
  Sector torn = content(kWritten, version);
  const Sector next = content(kWritten, write(kWritten));
  std::copy(next.begin() + 256, next.end(), torn.begin() + 256);
  EXPECT_FALSE(may_be(kWritten, torn));
}

TEST_F(KillModelTest, AFlushCoversWhatWasDoneWhenItWasSubmitted) {
  const std::vector<uint32_t> nothing = model.completed();
  write(kWritten);
  model.flushed(nothing);
  EXPECT_TRUE(may_be(kWritten, base(kWritten)));
  flush();
  EXPECT_FALSE(may_be(kWritten, base(kWritten)));
}

TEST_F(KillModelTest, WhatWasFoundAfterAKillStays) {
  const uint32_t first = write(kWritten);
  const uint32_t second = write(kWritten);
  EXPECT_EQ(model.settle(content(kWritten, first), kWritten), "");
  model.settled();
  EXPECT_TRUE(is(kWritten, content(kWritten, first)));
  EXPECT_FALSE(may_be(kWritten, content(kWritten, second)));
  EXPECT_FALSE(may_be(kWritten, base(kWritten)));
  EXPECT_TRUE(may_be(kWritten, content(kWritten, write(kWritten))));
}

TEST_F(KillModelTest, TellsZeroesThatMayBeThereFromOthers) {
  zero(kWritten);
  EXPECT_TRUE(may_be(kWritten, zeroes));
  const uint32_t version = write(kWritten);
  EXPECT_TRUE(may_be(kWritten, zeroes));
  EXPECT_EQ(model.settle(content(kWritten, version), kWritten), "");
  model.settled();
  EXPECT_FALSE(may_be(kWritten, zeroes));
  zero(kWritten);
  flush();
  EXPECT_TRUE(may_be(kWritten, zeroes));
  EXPECT_FALSE(may_be(kWritten, content(kWritten, version)));
}

TEST_F(KillModelTest, ASnapshotHoldsWhatWasDoneBeforeItAndNothingOfLater) {
  const uint32_t before = write(kWritten);
  KillModel snapshot = model.begin_window();
  const uint32_t during = write(kWritten);
  snapshot.end_window(model);
  const uint32_t after = write(kWritten);
  const auto may_be_there = [&](const Sector& bytes) {
    KillModel copy = snapshot;
    return copy.settle(bytes, kWritten).empty();
  };
  EXPECT_FALSE(may_be_there(base(kWritten)));
  EXPECT_TRUE(may_be_there(content(kWritten, before)));
  EXPECT_TRUE(may_be_there(content(kWritten, during)));
  EXPECT_FALSE(may_be_there(content(kWritten, after)));
  EXPECT_EQ(snapshot.settle(content(kWritten, during), kWritten), "");
  snapshot.settled();
  EXPECT_FALSE(may_be_there(content(kWritten, before)));
}

}  // namespace
}  // namespace sluice::lvol
