// VirtQueue: a virtqueue of either kind, split or packed: what BlkQueue takes requests out of.
//
// Which one it is, is decided when it is attached. A queue stays what it is for long, so that the processor foresees
// each of the branches in here: measured, they cost nothing.
//
// Thread, ownership: as of the two kinds.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "lib/vhost/packed_queue.h"
#include "lib/vhost/queue_inflight.h"
#include "lib/vhost/split_queue.h"

namespace sluice::vhost {

class VirtQueue {
 public:
  // Points the queue at its rings. False, with the queue as it was, if an address is misaligned or not mapped, or the
  // base that was set is none of this kind of ring. `base_follows`: begin() tells where it goes on, not the base.
  bool attach(const MemoryMap& map, const VringAddr& addresses, uint16_t size, uint64_t features, bool base_follows) {
    const bool packed = wants_packed(features);
    const std::optional<uint32_t> base = base_follows ? 0 : base_;
    if (packed) {
      if (!packed_.attach(map, addresses, size, features, base)) return false;
    } else {
      if (base.value_or(0) > UINT16_MAX || !split_.attach(map, addresses, size, features)) return false;
      if (base) split_.set_last_avail(static_cast<uint16_t>(*base));
    }
    base_.reset();
    is_packed_ = packed;
    size_ = size;
    return true;
  }
  // Where to mark what is written to the rings from now on; nullptr: nowhere.
  void set_log(DirtyLog* log) {
    split_.set_log(log);
    packed_.set_log(log);
  }
  // Whether it may be attached like this while requests are in flight: a packed ring has room for its own only.
  bool can_go_on(uint16_t size, uint64_t features) const {
    return wants_packed(features) == is_packed_ && (!is_packed_ || (size == size_ && !base_));
  }
  // Whether it would go on as it is if it was attached like this.
  bool unchanged(uint16_t size, uint64_t features) const {
    return wants_packed(features) == is_packed_ && size == size_ && !base_;
  }

  // Where the queue goes on, in the form of SET_VRING_BASE; survives attach(). What is set counts from then on.
  uint32_t base() const { return base_.value_or(is_packed_ ? packed_.base() : split_.last_avail()); }
  void set_base(uint32_t base) { base_ = base; }
  // Nothing if it has never been attached, and no base was set.
  std::optional<uint32_t> known_base() const { return size_ == 0 && !base_ ? std::nullopt : std::optional(base()); }
  // It has just been attached, and no chain is in flight, but for those that `inflight`, if there is one, finds: they
  // are to be taken first, by pop_again(). Errors: see QueueInflight.
  RingFault begin(QueueInflight* inflight, std::vector<UnfinishedChain>& unfinished) {
    is_packed_ ? packed_.forget_in_flight() : split_.load_used_index();
    packed_.keep_copies(inflight != nullptr);
    if (inflight == nullptr) return RingFault::kNone;
    return is_packed_ ? inflight->begin(packed_, unfinished) : inflight->begin(split_, unfinished);
  }

  // How many chains are available, of a packed ring up to a batch; nothing if that is impossible.
  std::optional<uint16_t> available() const { return is_packed_ ? packed_.look() : split_.available(); }
  bool has_work() const { return is_packed_ ? packed_.has_work() : split_.has_work(); }
  // Has the processor fetch what the next `count` chains begin with: the driver's core has just written it, and one
  // miss should not wait for the other. Requires: that many are available.
  void prefetch(uint32_t count) const {
    if (!is_packed_) split_.prefetch(count);  // otherwise available() has done it
  }
  // Takes the next available chain. Requires: there is one.
  RingFault pop(Chain& chain) { return is_packed_ ? packed_.pop(chain) : split_.pop(chain); }
  RingFault pop_again(Chain& chain, const UnfinishedChain& taken) {
    return is_packed_ ? packed_.pop_again(chain, taken.descs) : split_.pop_again(chain, taken.head);
  }
  // Of a packed ring with a QueueInflight: the descriptors of the chain that was taken last.
  std::span<const PackedDesc> copies() const { return packed_.copies(); }

  // Notes a chain as used; the driver sees it after publish(). `written` counts from the chain's first writable byte.
  void push_used(const Chain& chain, uint32_t written) {
    is_packed_ ? packed_.push_used(chain, written) : split_.push_used(chain.head, written);
  }
  // Shows the driver all used chains; true if it wants to be notified of them.
  bool publish() { return is_packed_ ? packed_.publish() : split_.publish(); }

  // Asks the driver for kicks; true if chains are available all the same.
  bool enable_kicks() { return is_packed_ ? packed_.enable_kicks() : split_.enable_kicks(); }
  void disable_kicks() { is_packed_ ? packed_.disable_kicks() : split_.disable_kicks(); }

  static bool wants_packed(uint64_t features) { return (features & kFeatureRingPacked) != 0; }

 private:
  bool is_packed_ = false;
  uint16_t size_ = 0;
  std::optional<uint32_t> base_;
  SplitQueue split_;
  PackedQueue packed_;
};

}  // namespace sluice::vhost
