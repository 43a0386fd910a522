#include "lib/bdev/io_stats.h"

#include <algorithm>

namespace sluice {

void IoStats::add(const IoStats& other) {
  for (size_t i = 0; i < by_type.size(); ++i) {
    IoTypeStats& mine = by_type[i];
    const IoTypeStats& more = other.by_type[i];
    mine.ops += more.ops;
    mine.bytes += more.bytes;
    mine.total_ns += more.total_ns;
    mine.max_ns = std::max(mine.max_ns, more.max_ns);
    mine.min_ns = std::min(mine.min_ns, more.min_ns);
  }
  for (size_t i = 0; i < by_status.size(); ++i) by_status[i] += other.by_status[i];
}

void IoStats::reset(IoStatsReset mode) {
  if (mode == IoStatsReset::kAll) *this = IoStats{};
  if (mode == IoStatsReset::kErrors) by_status = {};
  if (mode == IoStatsReset::kMaxMin) {
    for (IoTypeStats& type : by_type) {
      type.max_ns = 0;
      type.min_ns = UINT64_MAX;
    }
  }
}

}  // namespace sluice
