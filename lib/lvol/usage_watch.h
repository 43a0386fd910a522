// UsageWatch: tells when the part of a store that is in use crosses a threshold, up or down. It is down again only when
// it is some way below, so that what goes to and fro around a threshold is told once.
//
// Thread:    one.
// Ownership: values.
#pragma once

#include <cstdint>
#include <vector>

namespace sluice::lvol {

class UsageWatch {
 public:
  static constexpr uint32_t kGapPercent = 2;

  struct Crossing {
    uint32_t percent;
    bool above;
    bool operator==(const Crossing&) const = default;
  };

  // Requires: each is 1 to 100 (checked). Those that there were keep their state; new ones have not been crossed.
  void set(std::vector<uint32_t> percents);
  // In order, each once.
  std::vector<uint32_t> thresholds() const;

  // What has been crossed since the last look; on the way up the lowest first, on the way down the highest. Costs next
  // to nothing when that is nothing.
  std::vector<Crossing> look(uint64_t used, uint64_t total) {
    if (total == total_ && used > falls_at_ && used < rises_at_) [[likely]]
      return {};
    return find(used, total);
  }

 private:
  struct Threshold {
    uint32_t percent;
    bool above;
  };

  std::vector<Crossing> find(uint64_t used, uint64_t total);

  std::vector<Threshold> thresholds_;  // in order
  // Between these, nothing is crossed.
  uint64_t total_ = UINT64_MAX;
  uint64_t falls_at_ = 0;
  uint64_t rises_at_ = 0;
};

}  // namespace sluice::lvol
