#include "app/bdevperf/zipf.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

namespace sluice::bdevperf {
namespace {

TEST(Zipf, RanksAreAsFrequentAsTheLawSays) {
  constexpr uint64_t kCount = 1000;
  constexpr int kDraws = 400'000;
  for (const double theta : {0.5, 0.99, 1.0, 1.2, 2.5}) {
    Random random(7);
    const Zipf zipf(kCount, theta);
    std::vector<int> drawn(kCount);
    for (int i = 0; i < kDraws; ++i) {
      const uint64_t rank = zipf.rank(random);
      ASSERT_LT(rank, kCount);
      ++drawn[rank];
    }
    double sum = 0;
    for (uint64_t k = 1; k <= kCount; ++k) sum += std::pow(k, -theta);
    for (const uint64_t rank : {0U, 1U, 2U, 9U, 99U}) {
      const double expected = kDraws * std::pow(static_cast<double>(rank + 1), -theta) / sum;
      // Five standard deviations.
      EXPECT_NEAR(drawn[rank], expected, 5 * std::sqrt(expected) + 1) << "theta " << theta << ", rank " << rank;
    }
  }
}

TEST(Zipf, ScattersRanksOverTheWholeRangeEachToItsOwnPlace) {
  for (const uint64_t count : {1U, 2U, 3U, 10U, 1000U, 4096U}) {
    const Zipf zipf(count, 1);
    std::set<uint64_t> places;
    for (uint64_t rank = 0; rank < count; ++rank) places.insert(zipf.scatter(rank));
    EXPECT_EQ(places.size(), count);
    EXPECT_LT(*places.rbegin(), count);
  }
  const Zipf zipf(1000, 1);
  EXPECT_GT(zipf.scatter(1), 100U);
}

TEST(Zipf, WorksOnTheLargestDisks) {
  constexpr uint64_t kCount = uint64_t{1} << 52;
  Random random(1);
  const Zipf zipf(kCount, 0.8);
  uint64_t max = 0;
  for (int i = 0; i < 1000; ++i) {
    const uint64_t place = zipf.next(random);
    ASSERT_LT(place, kCount);
    max = std::max(max, place);
  }
  EXPECT_GT(max, kCount / 2);
}

TEST(Random, ReachesAllOfARangeEvenly) {
  Random random(3);
  std::vector<int> drawn(10);
  for (int i = 0; i < 100'000; ++i) ++drawn[random.below(10)];
  for (const int count : drawn) EXPECT_NEAR(count, 10'000, 500);
}

}  // namespace
}  // namespace sluice::bdevperf
