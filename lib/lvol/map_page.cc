#include "lib/lvol/map_page.h"

namespace sluice::lvol {

// A sequence lock. The entry's halves are atomics of their own, stored with release and loaded with acquire: a reader
// that has got a new half then also sees the version that was set before it, and looks again.
Entry LeafPage::load(uint32_t slot) const {
  const Slot& from = slots_[slot];
  for (;;) {
    const uint32_t before = version_.load(std::memory_order_acquire);
    const uint64_t place = from.place.load(std::memory_order_acquire);
    const uint64_t valid = from.valid.load(std::memory_order_acquire);
    if (before % 2 != 0 || version_.load(std::memory_order_relaxed) != before) continue;
    return {.own = static_cast<ClusterIndex>(place), .base = static_cast<ClusterIndex>(place >> 32), .valid = valid};
  }
}

void LeafPage::store(uint32_t slot, const Entry& entry) {
  Slot& to = slots_[slot];
  const uint32_t before = version_.load(std::memory_order_relaxed);
  version_.store(before + 1, std::memory_order_relaxed);
  to.place.store(entry.own | static_cast<uint64_t>(entry.base) << 32, std::memory_order_release);
  to.valid.store(entry.valid, std::memory_order_release);
  version_.store(before + 2, std::memory_order_release);
}

void LeafPage::copy_from(const LeafPage& other) {
  for (uint32_t slot = 0; slot < kFanOut; ++slot) {
    const Slot& from = other.slots_[slot];
    slots_[slot].place.store(from.place.load(std::memory_order_relaxed), std::memory_order_relaxed);
    slots_[slot].valid.store(from.valid.load(std::memory_order_relaxed), std::memory_order_relaxed);
  }
}

}  // namespace sluice::lvol
