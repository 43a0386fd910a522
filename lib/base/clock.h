// Clock: monotonic nanoseconds for the reactors, read from the time stamp counter where it runs at a constant rate
// (one instruction instead of a call), from CLOCK_MONOTONIC elsewhere. Any thread.
#pragma once

#include <cstdint>

namespace sluice {

inline constexpr uint64_t kNsPerSec = 1'000'000'000;
inline constexpr uint64_t kNsPerMs = 1'000'000;
inline constexpr uint64_t kNsPerUs = 1'000;

// Nanoseconds since an arbitrary start before the process's; never goes back on one core.
uint64_t now_ns();

}  // namespace sluice
