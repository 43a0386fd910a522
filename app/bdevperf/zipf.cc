#include "app/bdevperf/zipf.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace sluice::bdevperf {
namespace {

// log(1 + x) / x and (exp(x) - 1) / x, also around 0, where theta is 1.
double log1p_ratio(double x) { return std::abs(x) > 1e-8 ? std::log1p(x) / x : 1 - x / 2; }
double expm1_ratio(double x) { return std::abs(x) > 1e-8 ? std::expm1(x) / x : 1 + x / 2; }

// Neighbours in rank come to lie about 0.618 of the range apart.
uint64_t stride_for(uint64_t count) {
  auto stride = static_cast<uint64_t>(static_cast<double>(count) * 0.6180339887498949);
  stride = std::max<uint64_t>(stride, 1);
  while (std::gcd(stride, count) != 1) ++stride;
  return stride;
}

}  // namespace

Zipf::Zipf(uint64_t count, double theta)
    : count_(count),
      stride_(stride_for(count)),
      theta_(theta),
      integral_first_(integral(1.5) - 1),
      integral_last_(integral(static_cast<double>(count) + 0.5)),
      shortcut_(2 - inverse_integral(integral(2.5) - density(2))) {}

uint64_t Zipf::rank(Random& random) const {
  for (;;) {
    const double unit = static_cast<double>(random.next() >> 11) * 0x1p-53;
    const double y = integral_last_ + unit * (integral_first_ - integral_last_);
    const double x = inverse_integral(y);
    const double k = std::clamp(std::floor(x + 0.5), 1.0, static_cast<double>(count_));
    if (k - x <= shortcut_ || y >= integral(k + 0.5) - density(k)) {
      return std::min(static_cast<uint64_t>(k), count_) - 1;
    }
  }
}

uint64_t Zipf::scatter(uint64_t rank) const {
  if (count_ <= UINT32_MAX) return rank * stride_ % count_;
  return static_cast<uint64_t>(static_cast<unsigned __int128>(rank) * stride_ % count_);
}

// The integral of x^-theta from 1 to x.
double Zipf::integral(double x) const {
  const double log_x = std::log(x);
  return expm1_ratio((1 - theta_) * log_x) * log_x;
}

double Zipf::inverse_integral(double y) const {
  const double t = std::max(y * (1 - theta_), -1.0);
  return std::exp(log1p_ratio(t) * y);
}

double Zipf::density(double x) const { return std::exp(-theta_ * std::log(x)); }

}  // namespace sluice::bdevperf
