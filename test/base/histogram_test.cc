#include "lib/base/histogram.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace sluice {
namespace {

TEST(Histogram, IsZeroWithoutValues) {
  const Histogram histogram;
  EXPECT_EQ(histogram.count(), 0U);
  EXPECT_EQ(histogram.min(), 0U);
  EXPECT_EQ(histogram.max(), 0U);
  EXPECT_EQ(histogram.mean(), 0);
  EXPECT_EQ(histogram.percentile(50), 0U);
}

TEST(Histogram, IsExactForSmallValues) {
  Histogram histogram;
  for (uint64_t value = 1; value <= 100; ++value) histogram.record(value);
  EXPECT_EQ(histogram.count(), 100U);
  EXPECT_EQ(histogram.min(), 1U);
  EXPECT_EQ(histogram.max(), 100U);
  EXPECT_EQ(histogram.mean(), 50.5);
  EXPECT_EQ(histogram.percentile(0), 1U);
  EXPECT_EQ(histogram.percentile(1), 1U);
  EXPECT_EQ(histogram.percentile(50), 50U);
  EXPECT_EQ(histogram.percentile(99), 99U);
  EXPECT_EQ(histogram.percentile(99.5), 100U);
  EXPECT_EQ(histogram.percentile(100), 100U);
}

TEST(Histogram, IsNeverTooLowAndAtMostABucketTooHigh) {
  std::mt19937_64 random(1);
  std::vector<uint64_t> values;
  Histogram histogram;
  for (int i = 0; i < 100'000; ++i) {
    values.push_back(random() >> (random() % 64));
    histogram.record(values.back());
  }
  std::ranges::sort(values);
  for (const double percent : {0.1, 1.0, 25.0, 50.0, 90.0, 99.0, 99.9, 99.99}) {
    const auto rank = static_cast<size_t>(std::ceil(percent / 100 * static_cast<double>(values.size())));
    const uint64_t exact = values[rank - 1];
    EXPECT_GE(histogram.percentile(percent), exact) << percent;
    EXPECT_LE(histogram.percentile(percent) - exact, exact / 64) << percent;
  }
}

TEST(Histogram, TakesTheExtremesOfItsType) {
  Histogram histogram;
  histogram.record(0);
  histogram.record(UINT64_MAX);
  EXPECT_EQ(histogram.percentile(50), 0U);
  EXPECT_EQ(histogram.percentile(100), UINT64_MAX);
  for (unsigned bit = 0; bit < 64; ++bit) {
    Histogram one;
    one.record(uint64_t{1} << bit);
    EXPECT_EQ(one.percentile(50), uint64_t{1} << bit);
  }
}

TEST(Histogram, MergesAsIfAllHadBeenRecordedInOne) {
  Histogram a;
  Histogram b;
  Histogram both;
  for (uint64_t i = 0; i < 1000; ++i) {
    (i % 3 == 0 ? a : b).record(i * i);
    both.record(i * i);
  }
  a.merge(b);
  a.merge(Histogram());
  EXPECT_EQ(a.count(), both.count());
  EXPECT_EQ(a.min(), both.min());
  EXPECT_EQ(a.max(), both.max());
  EXPECT_EQ(a.mean(), both.mean());
  for (const double percent : {1.0, 50.0, 99.0}) EXPECT_EQ(a.percentile(percent), both.percentile(percent));
  a.reset();
  EXPECT_EQ(a.count(), 0U);
  EXPECT_EQ(a.max(), 0U);
}

}  // namespace
}  // namespace sluice
