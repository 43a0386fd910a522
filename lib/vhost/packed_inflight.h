// PackedInflight: what the queue of a packed ring notes in its part of the InflightRegion, in the role that
// SplitInflight has for a split one. As the driver's descriptors may be overwritten by used ones while a chain is in
// flight, the notes hold copies of them.
//
// Each step of the queue takes effect by one store, before which recover() undoes, and after which it completes it: a
// chain is taken by that of old_free_head, a batch is given back by that of its first used descriptor, in the ring.
//
// Thread:     the queue's.
// Ownership:  borrows the region's memory, which it reads in recover() only, once: the front end may change it any
//             time.
// Source:     Vhost-user Protocol, "Inflight I/O tracking".
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "lib/vhost/chain.h"
#include "lib/vhost/inflight_region.h"
#include "lib/vhost/packed_queue.h"

namespace sluice::vhost {

class PackedInflight {
 public:
  // Requires: room for `entries` at `area`; ring_size <= entries.
  PackedInflight(std::byte* area, uint16_t entries, uint16_t ring_size);

  // Whether somebody has made notes here.
  bool has_notes() const { return __atomic_load_n(&header_->version, __ATOMIC_RELAXED) != 0; }
  // Nothing is in flight in the ring.
  void begin(const PackedQueue& ring);
  // Finds what was in flight, in the order in which it was taken, and sets `ring` behind it. Errors, with ring and
  // notes as they were: kBadInflight.
  RingFault recover(PackedQueue& ring, std::vector<UnfinishedChain>& unfinished);

  // The chain's descriptors as they are in the ring. False if there are more in flight than the ring has.
  bool take(std::span<const PackedDesc> descs);
  // It is in the ring, but not shown to the driver before the batch is published. Requires: it was taken.
  void give_back(uint16_t id) { batch_.push_back(by_id_[id]); }
  // Around the update of the ring that shows the batch.
  void before_publish();
  void after_publish();

 private:
  struct Taken {
    uint16_t entry = 0;  // the chain's first
    uint16_t last = 0;   // and its last one
    uint16_t num = 0;
  };
  struct Place {
    uint16_t offset = 0;
    bool wrap = true;

    uint16_t encoded() const { return static_cast<uint16_t>(offset | (wrap ? kPackedWrapBit : 0)); }
    static Place decode(uint16_t position) {
      return {.offset = static_cast<uint16_t>(position & ~kPackedWrapBit), .wrap = (position & kPackedWrapBit) != 0};
    }
    bool operator==(const Place&) const = default;
  };
  bool find_chains(const std::vector<PackedInflightEntry>& entries, uint16_t free_head,
                   std::vector<UnfinishedChain>& unfinished);
  void note_places(Place used, Place old_used);

  PackedInflightHeader* const header_;
  PackedInflightEntry* const entries_;
  const uint16_t count_;
  const uint16_t ring_size_;
  uint64_t counter_ = 0;
  // The notes as this has written them: what the front end may have made of them since does not matter.
  uint16_t free_head_ = 0;
  uint32_t free_count_ = 0;
  std::vector<uint16_t> next_;  // by entry
  Place used_;
  std::vector<Taken> by_id_;
  std::vector<Taken> batch_;  // given back, but not shown to the driver yet
};

}  // namespace sluice::vhost
