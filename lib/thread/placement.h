// plan_moves(): which lightweight threads should run elsewhere, by what they have cost lately. A pure function: the
// Scheduler measures and moves.
//
// Idle threads are packed on the first cores, so that whole cores sleep; busy ones are spread, so that each has as much
// of a core as it can use. What keeps threads from going to and fro: a busy one moves only if the fuller of the two
// cores is then kMargin less full than before; an idle one only after it has been quiet for kQuietPeriods or where its
// core is too full, and only to a core that has kMargin to spare. While loads stay as they are, a few rounds bring
// everything to rest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lib/base/cpu_mask.h"

namespace sluice {

// All loads are in percent of a core's time.
struct PlacementLimits {
  double load_limit = 20;  // a thread below it is idle
  double core_limit = 80;  // a core above it gives threads away; a thread above it is left where it is
  double core_busy = 95;   // no core is filled beyond it

  bool operator==(const PlacementLimits&) const = default;
};

// A core and all that it runs.
struct CoreLoad {
  uint32_t lcore = 0;
  double load = 0;
};

// A thread that may be moved.
struct ThreadLoad {
  uint64_t id = 0;
  double load = 0;
  CpuMask cpumask;
  size_t core = 0;             // the index of its core
  uint32_t quiet_periods = 0;  // for how many it has been below kQuietShare of load_limit
};

struct PlannedMove {
  uint64_t thread_id = 0;
  size_t core = 0;  // the index of where it goes
  bool operator==(const PlannedMove&) const = default;
};

inline constexpr double kMargin = 10;
inline constexpr double kQuietShare = 0.75;
inline constexpr uint32_t kQuietPeriods = 3;

// `cores` in order of preference: idle threads are packed on the first ones.
// Each thread moves at most once; the busiest ones come first.
std::vector<PlannedMove> plan_moves(const PlacementLimits& limits, std::vector<CoreLoad> cores,
                                    std::vector<ThreadLoad> threads);

}  // namespace sluice
