// Clock: monotonic nanoseconds for the reactors, read from the time stamp counter where it runs at a constant rate
// (one instruction instead of a call), from CLOCK_MONOTONIC elsewhere. Any thread.
#pragma once

#include <cstdint>

namespace sluice {

inline constexpr uint64_t kNsPerSec = 1'000'000'000;
inline constexpr uint64_t kNsPerMs = 1'000'000;
inline constexpr uint64_t kNsPerUs = 1'000;

// ns = base_ns + (tsc - base_tsc) * ns_per_tick / 2^32. The product is taken in 128 bits, so it never overflows.
struct CounterCalibration {
  uint64_t base_tsc = 0;
  uint64_t base_ns = 0;
  uint64_t ns_per_tick_shifted = 0;  // 0: the counter is of no use

  CounterCalibration();
};
extern const CounterCalibration counter_calibration;
uint64_t system_monotonic_ns();

// Nanoseconds since an arbitrary start before the process's; never goes back on one core.
inline uint64_t now_ns() {
  const CounterCalibration& calibration = counter_calibration;
  if (calibration.ns_per_tick_shifted == 0) return system_monotonic_ns();
  const auto ticks = static_cast<unsigned __int128>(__builtin_ia32_rdtsc() - calibration.base_tsc);
  return calibration.base_ns + static_cast<uint64_t>((ticks * calibration.ns_per_tick_shifted) >> 32);
}

}  // namespace sluice
