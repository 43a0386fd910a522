// QueueInflight: what a queue of either kind notes of its requests in flight: a SplitInflight or a PackedInflight.
//
// Thread:     the queue's.
// Ownership:  the queue's. Keeps the region mapped.
// Source:     Vhost-user Protocol, "Inflight I/O tracking".
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "lib/vhost/inflight_region.h"
#include "lib/vhost/packed_inflight.h"
#include "lib/vhost/split_inflight.h"

namespace sluice::vhost {

class QueueInflight {
 public:
  // Of a ring of this kind and size. `settled`: what the region holds of a ring before this one is of no interest.
  QueueInflight(std::shared_ptr<const InflightRegion> region, uint32_t queue, bool packed, uint16_t ring_size,
                bool settled)
      : region_(std::move(region)), settled_(settled) {
    std::byte* area = region_->queue_area(queue, packed);
    if (area == nullptr || ring_size > region_->queue_size()) return;
    if (packed) {
      packed_.emplace(area, region_->queue_size(), ring_size);
    } else {
      split_.emplace(area, region_->queue_size(), ring_size);
    }
    has_notes_ = !settled && (packed ? packed_->has_notes() : split_->has_notes());
  }

  const InflightRegion* region() const { return region_.get(); }
  bool lost() const { return region_->lost(); }
  // Whether a back end before us has noted here where the ring goes on.
  bool has_notes() const { return has_notes_; }
  // Whether that has been read, and is not to be read again: all that was in flight has been taken up.
  bool settled() const { return settled_; }
  // Whether these are this ring's notes, from its begin on.
  bool begun() const { return begun_; }
  void set_begun() {
    settled_ = begun_ = true;
    has_notes_ = false;
  }

  // The ring has just been attached, and no chain of it is in flight: begins, or finds those that were. Errors:
  // kInflightSize, kBadInflight, kInflightLost.
  RingFault begin(SplitQueue& ring, std::vector<UnfinishedChain>& unfinished) {
    return begin(split_, ring, unfinished);
  }
  RingFault begin(PackedQueue& ring, std::vector<UnfinishedChain>& unfinished) {
    return begin(packed_, ring, unfinished);
  }

  // Before it is submitted. False if that cannot be.
  bool take(const Chain& chain, std::span<const PackedDesc> copies) {
    if (packed_) return packed_->take(copies);
    split_->take(chain.head);
    return true;
  }
  void give_back(const Chain& chain) {
    pending_ = true;
    packed_ ? packed_->give_back(chain.head) : split_->give_back(chain.head);
  }
  // Around the queue's publish().
  void before_publish() {
    if (pending_) packed_ ? packed_->before_publish() : split_->before_publish();
  }
  void after_publish() {
    if (pending_) packed_ ? packed_->after_publish() : split_->after_publish();
    pending_ = false;
  }

 private:
  template <typename Notes, typename Ring>
  RingFault begin(std::optional<Notes>& notes, Ring& ring, std::vector<UnfinishedChain>& unfinished) {
    if (!notes) return RingFault::kInflightSize;
    RingFault fault = RingFault::kNone;
    if (has_notes_) {
      fault = notes->recover(ring, unfinished);
    } else if (!begun_) {
      notes->begin(ring);
    }
    return lost() ? RingFault::kInflightLost : fault;
  }

  const std::shared_ptr<const InflightRegion> region_;
  std::optional<SplitInflight> split_;
  std::optional<PackedInflight> packed_;
  bool settled_;
  bool begun_ = false;
  bool has_notes_ = false;
  bool pending_ = false;  // something was given back and is not published
};

}  // namespace sluice::vhost
