// IoStats: what a channel has done. Counted without locks by the channel's thread, summed by BdevManager::iostat().
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "lib/bdev/block_io.h"

namespace sluice {

enum class IoStatsReset : uint8_t { kNone, kAll, kMaxMin, kErrors };

struct IoTypeStats {
  uint64_t ops = 0;
  uint64_t bytes = 0;
  uint64_t total_ns = 0;  // latency, from submit to completion
  uint64_t max_ns = 0;
  uint64_t min_ns = UINT64_MAX;
};

struct IoStats {
  std::array<IoTypeStats, kIoTypes> by_type{};
  std::array<uint64_t, kIoStatuses> by_status{};  // requests that ended so; kOk is not counted

  const IoTypeStats& of(IoType type) const { return by_type[static_cast<size_t>(type)]; }
  IoTypeStats& of(IoType type) { return by_type[static_cast<size_t>(type)]; }
  uint64_t errors(IoStatus status) const { return by_status[static_cast<size_t>(status)]; }

  void add(const IoStats& other);
  void reset(IoStatsReset mode);
};

}  // namespace sluice
