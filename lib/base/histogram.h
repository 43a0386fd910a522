// Histogram: how often each value occurred, in log-linear buckets: exact below 128, within 1/64 (1.6 %) above, for all
// of uint64_t. Fixed memory, 30 KiB, of which only what is used is touched; recording is a few instructions.
//
// Thread: one at a time.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace sluice {

class Histogram {
 public:
  void record(uint64_t value) {
    ++counts_[bucket_of(value)];
    sum_ += value;
    min_ = std::min(min_, value);
    max_ = std::max(max_, value);
  }
  void merge(const Histogram& other);
  void reset() { *this = Histogram(); }

  // Counted over the buckets when asked, to keep it out of record().
  uint64_t count() const;
  // Of no values: 0. The sum wraps at 2^64: 584 years of nanoseconds.
  uint64_t min() const { return min_ > max_ ? 0 : min_; }
  uint64_t max() const { return max_; }
  double mean() const;
  // The least value that `percent` (0 to 100) of all values do not exceed; too high by at most a bucket's width, never
  // too low. 0 of no values.
  uint64_t percentile(double percent) const;

 private:
  // A power of two's worth of values has so many buckets: 2^6.
  static constexpr unsigned kBits = 6;
  static constexpr size_t kExact = size_t{2} << kBits;
  static constexpr size_t kBuckets = ((64 - (kBits + 1)) << kBits) + kExact;

  // 128 to 255 in steps of 2, 256 to 511 in steps of 4: value >> shift is 64 to 127, and each shift adds 64 buckets.
  static size_t bucket_of(uint64_t value) {
    if (value < kExact) return value;
    const auto shift = static_cast<unsigned>(std::bit_width(value)) - (kBits + 1);
    return (size_t{shift} << kBits) + (value >> shift);
  }
  static uint64_t highest_of(size_t bucket);

  std::array<uint64_t, kBuckets> counts_{};
  uint64_t sum_ = 0;
  uint64_t min_ = UINT64_MAX;
  uint64_t max_ = 0;
};

}  // namespace sluice
