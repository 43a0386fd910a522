#include "lib/base/histogram.h"

#include <cmath>
#include <numeric>

namespace sluice {

uint64_t Histogram::highest_of(size_t bucket) {
  if (bucket < kExact) return bucket;
  const size_t shift = (bucket >> kBits) - 1;
  const uint64_t lowest = uint64_t{bucket - (shift << kBits)} << shift;
  return lowest + ((uint64_t{1} << shift) - 1);
}

void Histogram::merge(const Histogram& other) {
  for (size_t i = 0; i < kBuckets; ++i) counts_[i] += other.counts_[i];
  sum_ += other.sum_;
  min_ = std::min(min_, other.min_);
  max_ = std::max(max_, other.max_);
}

uint64_t Histogram::count() const { return std::accumulate(counts_.begin(), counts_.end(), uint64_t{0}); }

double Histogram::mean() const {
  const uint64_t values = count();
  return values == 0 ? 0 : static_cast<double>(sum_) / static_cast<double>(values);
}

uint64_t Histogram::percentile(double percent) const {
  const uint64_t values = count();
  if (values == 0) return 0;
  const double share = std::ceil(std::clamp(percent, 0.0, 100.0) / 100 * static_cast<double>(values));
  const uint64_t rank = std::clamp(static_cast<uint64_t>(share), uint64_t{1}, values);
  uint64_t seen = 0;
  for (size_t i = 0; i < kBuckets; ++i) {
    seen += counts_[i];
    if (seen >= rank) return std::clamp(highest_of(i), min_, max_);
  }
  return max_;
}

}  // namespace sluice
