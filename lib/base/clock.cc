#include "lib/base/clock.h"

#include <cpuid.h>
#include <time.h>

namespace sluice {
namespace {

bool counter_is_invariant() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  // CPUID leaf 0x80000007, EDX bit 8: the counter runs at a constant rate in all power states.
  return __get_cpuid(0x80000007, &eax, &ebx, &ecx, &edx) != 0 && (edx & (1U << 8)) != 0;
}

}  // namespace

CounterCalibration::CounterCalibration() {
  if (!counter_is_invariant()) return;
  // 2 ms against CLOCK_MONOTONIC, whose reading takes some 50 ns: 50 ppm, which is ample for deadlines and statistics.
  base_ns = system_monotonic_ns();
  base_tsc = __builtin_ia32_rdtsc();
  uint64_t end_ns = base_ns;
  while (end_ns - base_ns < 2 * kNsPerMs) end_ns = system_monotonic_ns();
  const uint64_t ticks = __builtin_ia32_rdtsc() - base_tsc;
  if (ticks == 0) return;
  ns_per_tick_shifted = static_cast<uint64_t>((static_cast<unsigned __int128>(end_ns - base_ns) << 32) / ticks);
}

const CounterCalibration counter_calibration;

uint64_t system_monotonic_ns() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<uint64_t>(time.tv_sec) * kNsPerSec + static_cast<uint64_t>(time.tv_nsec);
}

}  // namespace sluice
