// Zipf: random numbers below `count` of which few are frequent: the k-th most frequent one has a probability
// proportional to 1 / k^theta. Frequent ones lie scattered over the whole range, the same ones for the same count.
// Source: W. Hoermann, G. Derflinger, Rejection-inversion to generate variates from monotone discrete distributions
// (1996): constant time and memory, for any theta above 0 and any count. Some 40 ns each.
#pragma once

#include <cstdint>

#include "app/bdevperf/random.h"

namespace sluice::bdevperf {

class Zipf {
 public:
  // Requires: count and theta above 0.
  Zipf(uint64_t count, double theta);

  uint64_t next(Random& random) const { return scatter(rank(random)); }
  // From 0, the most frequent one.
  uint64_t rank(Random& random) const;
  // Where the one of this rank lies: a permutation.
  uint64_t scatter(uint64_t rank) const;

 private:
  double integral(double x) const;
  double inverse_integral(double y) const;
  double density(double x) const;

  uint64_t count_;
  uint64_t stride_;  // has no common divisor with count_
  double theta_;
  double integral_first_;
  double integral_last_;
  double shortcut_;
};

}  // namespace sluice::bdevperf
