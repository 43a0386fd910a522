#include "lib/lvol/usage_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace sluice::lvol {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

using Crossed = UsageWatch::Crossing;

TEST(UsageWatch, TellsThatAThresholdIsReachedAndLaterThatItIsNotAnyMore) {
  UsageWatch watch;
  watch.set({80});
  EXPECT_THAT(watch.look(0, 1000), IsEmpty());
  EXPECT_THAT(watch.look(799, 1000), IsEmpty());
  EXPECT_THAT(watch.look(800, 1000), ElementsAre(Crossed{80, true}));
  EXPECT_THAT(watch.look(900, 1000), IsEmpty());
  EXPECT_THAT(watch.look(780, 1000), ElementsAre(Crossed{80, false}));
  EXPECT_THAT(watch.look(0, 1000), IsEmpty());
  EXPECT_THAT(watch.look(1000, 1000), ElementsAre(Crossed{80, true}));
}

TEST(UsageWatch, WhatGoesToAndFroIsToldOnce) {
  UsageWatch watch;
  watch.set({80});
  EXPECT_THAT(watch.look(800, 1000), ElementsAre(Crossed{80, true}));
  for (const uint64_t used : {799U, 800U, 781U, 810U}) EXPECT_THAT(watch.look(used, 1000), IsEmpty()) << used;
  EXPECT_THAT(watch.look(780, 1000), ElementsAre(Crossed{80, false}));
  for (const uint64_t used : {781U, 799U, 780U}) EXPECT_THAT(watch.look(used, 1000), IsEmpty()) << used;
}

TEST(UsageWatch, TellsAllThatOneStepCrossesInOrder) {
  UsageWatch watch;
  watch.set({95, 80, 95, 100});
  EXPECT_THAT(watch.thresholds(), ElementsAre(80, 95, 100));
  EXPECT_THAT(watch.look(96, 100), ElementsAre(Crossed{80, true}, Crossed{95, true}));
  EXPECT_THAT(watch.look(1, 100), ElementsAre(Crossed{95, false}, Crossed{80, false}));
  EXPECT_THAT(watch.look(100, 100), ElementsAre(Crossed{80, true}, Crossed{95, true}, Crossed{100, true}));
}

TEST(UsageWatch, KeepsTheStateOfThresholdsThatStay) {
  UsageWatch watch;
  watch.set({50, 80});
  EXPECT_THAT(watch.look(90, 100), ElementsAre(Crossed{50, true}, Crossed{80, true}));
  watch.set({80, 85});
  EXPECT_THAT(watch.look(90, 100), ElementsAre(Crossed{85, true}));
  watch.set({});
  EXPECT_THAT(watch.look(0, 100), IsEmpty());
  EXPECT_THAT(watch.look(100, 100), IsEmpty());
}

TEST(UsageWatch, AStoreThatGrowsFallsBelow) {
  UsageWatch watch;
  watch.set({90});
  EXPECT_THAT(watch.look(90, 100), ElementsAre(Crossed{90, true}));
  EXPECT_THAT(watch.look(90, 200), ElementsAre(Crossed{90, false}));
}

TEST(UsageWatch, ALowThresholdIsLeftWhenNothingIsUsed) {
  UsageWatch watch;
  watch.set({1});
  EXPECT_THAT(watch.look(1, 100), ElementsAre(Crossed{1, true}));
  EXPECT_THAT(watch.look(0, 100), ElementsAre(Crossed{1, false}));
}

// Each step is told as if it were the first look: what is skipped in between is skipped rightly.
TEST(UsageWatch, MissesNothingOnTheWay) {
  for (const uint64_t total : {7U, 33U, 99U, 100U, 1001U}) {
    UsageWatch watch;
    watch.set({3, 50, 51, 99});
    std::vector<Crossed> up;
    std::vector<Crossed> down;
    for (uint64_t used = 0; used <= total; ++used) {
      for (const Crossed& told : watch.look(used, total)) {
        EXPECT_GE(used * 100, told.percent * total);
        EXPECT_LT((used - 1) * 100, told.percent * total);
        up.push_back(told);
      }
    }
    for (uint64_t used = total + 1; used-- > 0;) {
      for (const Crossed& told : watch.look(used, total)) {
        EXPECT_LE(used * 100, (told.percent - 2) * total);
        EXPECT_GT((used + 1) * 100, (told.percent - 2) * total);
        down.push_back(told);
      }
    }
    EXPECT_THAT(up, ElementsAre(Crossed{3, true}, Crossed{50, true}, Crossed{51, true}, Crossed{99, true})) << total;
    EXPECT_THAT(down, ElementsAre(Crossed{99, false}, Crossed{51, false}, Crossed{50, false}, Crossed{3, false}))
        << total;
  }
}

}  // namespace
}  // namespace sluice::lvol
