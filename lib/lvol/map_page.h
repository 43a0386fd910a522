// MapPage: a page of a map in memory, all of which are. Leaves hold entries, interior pages hold other pages; pages are
// shared between the maps of snapshots and clones, and then never changed: see Maps.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "lib/base/intrusive_list.h"
#include "lib/lvol/layout.h"

namespace sluice::lvol {

struct MapPageTag;

// Thread: atomics may be read by any thread inside an epoch (Epochs); everything else is the owner's.
struct MapPage : ListHook<MapPageTag> {
  explicit MapPage(uint32_t of_level) : level(of_level) {}

  const uint32_t level;                  // 0: a LeafPage; above: an InteriorPage
  std::atomic<uint32_t> references = 1;  // roots and interior pages that hold it
  uint32_t generation = 0;               // Maps::generation() when it was made
  // Where it is on disk as it is now; page kNoPage: nowhere. Then the same goes for all pages above it.
  PageRef place;
};

struct LeafPage : MapPage {
  LeafPage() : MapPage(0) {}

  // Any thread. Never a mixture of two states of an entry. Waits while the entry is being stored, which is two stores.
  Entry load(uint32_t slot) const;
  // Owner. Readers see the old entry or the new one.
  void store(uint32_t slot, const Entry& entry);
  // Owner: takes over all entries. Requires: no reader knows this page yet.
  void copy_from(const LeafPage& other);

 private:
  std::atomic<uint32_t> version_ = 0;  // odd while an entry is being changed
  // Aligned, so that no entry lies across two cache lines.
  struct alignas(16) Slot {
    std::atomic<uint64_t> place = 0;  // own in the low half, base in the high one
    std::atomic<uint64_t> valid = 0;
  };
  std::array<Slot, kFanOut> slots_;
};
// The entries and one cache line: the memory that a fully mapped store takes.
static_assert(sizeof(LeafPage) == kFanOut * 16 + 64);

struct InteriorPage : MapPage {
  explicit InteriorPage(uint32_t of_level) : MapPage(of_level) {}
  std::array<std::atomic<MapPage*>, kFanOut> children{};
};

inline uint32_t slot_of(uint64_t index, uint32_t level) {
  return static_cast<uint32_t>(index >> (kFanOutBits * level)) & (kFanOut - 1);
}

}  // namespace sluice::lvol
