#include "lib/base/clock.h"

#include <cpuid.h>
#include <time.h>
#include <x86intrin.h>

namespace sluice {
namespace {

uint64_t monotonic_ns() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<uint64_t>(time.tv_sec) * kNsPerSec + static_cast<uint64_t>(time.tv_nsec);
}

bool counter_is_invariant() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  // CPUID leaf 0x80000007, EDX bit 8: the counter runs at a constant rate in all power states.
  return __get_cpuid(0x80000007, &eax, &ebx, &ecx, &edx) != 0 && (edx & (1U << 8)) != 0;
}

// ns = base_ns + (tsc - base_tsc) * ns_per_tick / 2^32. The product is taken in 128 bits, so it never overflows.
struct Calibration {
  bool use_counter = false;
  uint64_t base_tsc = 0;
  uint64_t base_ns = 0;
  uint64_t ns_per_tick_shifted = 0;

  Calibration() {
    if (!counter_is_invariant()) return;
    // 2 ms against CLOCK_MONOTONIC, whose reading takes some 50 ns: 50 ppm, which is ample for deadlines and
    // statistics.
    base_ns = monotonic_ns();
    base_tsc = __rdtsc();
    uint64_t end_ns = base_ns;
    while (end_ns - base_ns < 2 * kNsPerMs) end_ns = monotonic_ns();
    const uint64_t ticks = __rdtsc() - base_tsc;
    if (ticks == 0) return;
    ns_per_tick_shifted = static_cast<uint64_t>((static_cast<unsigned __int128>(end_ns - base_ns) << 32) / ticks);
    use_counter = ns_per_tick_shifted != 0;
  }
};

const Calibration calibration;

}  // namespace

uint64_t now_ns() {
  if (!calibration.use_counter) return monotonic_ns();
  const auto ticks = static_cast<unsigned __int128>(__rdtsc() - calibration.base_tsc);
  return calibration.base_ns + static_cast<uint64_t>((ticks * calibration.ns_per_tick_shifted) >> 32);
}

}  // namespace sluice
