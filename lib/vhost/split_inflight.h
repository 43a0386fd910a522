// SplitInflight: what the queue of a split ring notes in its part of the InflightRegion.
//
// A chain is noted before it is submitted, and struck off after the driver has been shown it: whoever comes after a
// crash finds in flight what the driver has not been shown, and nothing else.
//
// Thread:     the queue's.
// Ownership:  borrows the region's memory, which it reads in recover() only, once: the front end may change it at any
//             time.
// Source:     Vhost-user Protocol, "Inflight I/O tracking".
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lib/vhost/chain.h"
#include "lib/vhost/inflight_region.h"
#include "lib/vhost/split_queue.h"

namespace sluice::vhost {

class SplitInflight {
 public:
  // Requires: room for `entries` at `area`; ring_size <= entries.
  SplitInflight(std::byte* area, uint16_t entries, uint16_t ring_size);

  // Whether somebody has made notes here.
  bool has_notes() const { return __atomic_load_n(&header_->version, __ATOMIC_RELAXED) != 0; }
  // Nothing is in flight in the ring.
  void begin(const SplitQueue& ring);
  // Finds what was in flight, in the order in which it was taken, and sets `ring` behind it. Errors, with the notes as
  // they were: kBadInflight.
  RingFault recover(SplitQueue& ring, std::vector<UnfinishedChain>& unfinished);

  void take(uint16_t head);
  // It is in the used ring. The notes show it with the next batch.
  void give_back(uint16_t head) { batch_.push_back(head); }
  // Around the update of the used index.
  void before_publish();
  void after_publish();

 private:
  SplitInflightHeader* const header_;
  SplitInflightEntry* const entries_;
  const uint16_t count_;
  const uint16_t ring_size_;
  uint64_t counter_ = 0;
  uint16_t used_index_ = 0;
  uint16_t last_batch_head_ = 0;
  std::vector<uint16_t> batch_;  // given back, but not shown to the driver yet
};

}  // namespace sluice::vhost
