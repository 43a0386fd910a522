#include "lib/lvol/usage_watch.h"

#include <algorithm>
#include <ranges>

#include "lib/base/check.h"

namespace sluice::lvol {
namespace {

bool rises(uint64_t used, uint64_t total, uint32_t percent) { return used * 100 >= total * percent; }
bool falls(uint64_t used, uint64_t total, uint32_t percent) {
  return used * 100 <= total * (percent - std::min(percent, UsageWatch::kGapPercent));
}

}  // namespace

void UsageWatch::set(std::vector<uint32_t> percents) {
  std::ranges::sort(percents);
  const auto repeated = std::ranges::unique(percents);
  percents.erase(repeated.begin(), repeated.end());
  std::vector<Threshold> thresholds;
  for (const uint32_t percent : percents) {
    CHECK(percent >= 1 && percent <= 100);
    const auto before = std::ranges::find(thresholds_, percent, &Threshold::percent);
    thresholds.push_back({.percent = percent, .above = before != thresholds_.end() && before->above});
  }
  thresholds_ = std::move(thresholds);
  total_ = UINT64_MAX;
}

std::vector<uint32_t> UsageWatch::thresholds() const {
  std::vector<uint32_t> percents;
  for (const Threshold& threshold : thresholds_) percents.push_back(threshold.percent);
  return percents;
}

std::vector<UsageWatch::Crossing> UsageWatch::find(uint64_t used, uint64_t total) {
  std::vector<Crossing> crossed;
  for (Threshold& threshold : thresholds_) {
    if (threshold.above || !rises(used, total, threshold.percent)) continue;
    threshold.above = true;
    crossed.push_back({.percent = threshold.percent, .above = true});
  }
  for (Threshold& threshold : thresholds_ | std::views::reverse) {
    if (!threshold.above || !falls(used, total, threshold.percent)) continue;
    threshold.above = false;
    crossed.push_back({.percent = threshold.percent, .above = false});
  }
  // How far it may go without crossing anything, rounded to the safe side.
  total_ = total;
  falls_at_ = 0;
  rises_at_ = UINT64_MAX;
  for (const Threshold& threshold : thresholds_) {
    if (threshold.above) {
      falls_at_ = total * (threshold.percent - std::min(threshold.percent, kGapPercent)) / 100;
    } else {
      rises_at_ = std::min(rises_at_, total * threshold.percent / 100);
    }
  }
  return crossed;
}

}  // namespace sluice::lvol
