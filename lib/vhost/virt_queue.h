// VirtQueue: a virtqueue of either kind, split or packed: what BlkQueue takes requests out of.
//
// Which one it is, is decided when it is attached. A queue stays what it is for long, so that the processor foresees
// each of the branches in here: measured, they cost nothing.
//
// Thread, ownership: as of the two kinds.
#pragma once

#include <cstdint>
#include <optional>

#include "lib/vhost/packed_queue.h"
#include "lib/vhost/split_queue.h"

namespace sluice::vhost {

class VirtQueue {
 public:
  // Points the queue at its rings. False, with the queue as it was, if an address is misaligned or not mapped, or the
  // base that was set is none of this kind of ring.
  bool attach(const MemoryMap& map, const VringAddr& addresses, uint16_t size, uint64_t features) {
    const bool packed = wants_packed(features);
    if (packed) {
      if (!packed_.attach(map, addresses, size, features, base_)) return false;
    } else {
      if (base_.value_or(0) > UINT16_MAX || !split_.attach(map, addresses, size, features)) return false;
      if (base_) split_.set_last_avail(static_cast<uint16_t>(*base_));
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

  // Where the queue goes on, in the form of SET_VRING_BASE; survives attach(). What is set counts from then on.
  uint32_t base() const { return base_.value_or(is_packed_ ? packed_.base() : split_.last_avail()); }
  void set_base(uint32_t base) { base_ = base; }
  // It has just been attached, and no chain is in flight.
  void begin() { is_packed_ ? packed_.forget_in_flight() : split_.load_used_index(); }

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

  // Notes a chain as used; the driver sees it after publish(). `written` counts from the chain's first writable byte.
  void push_used(const Chain& chain, uint32_t written) {
    is_packed_ ? packed_.push_used(chain, written) : split_.push_used(chain.head, written);
  }
  // Shows the driver all used chains; true if it wants to be notified of them.
  bool publish() { return is_packed_ ? packed_.publish() : split_.publish(); }

  // Asks the driver for kicks; true if chains are available all the same.
  bool enable_kicks() { return is_packed_ ? packed_.enable_kicks() : split_.enable_kicks(); }
  void disable_kicks() { is_packed_ ? packed_.disable_kicks() : split_.disable_kicks(); }

 private:
  static bool wants_packed(uint64_t features) { return (features & kFeatureRingPacked) != 0; }

  bool is_packed_ = false;
  uint16_t size_ = 0;
  std::optional<uint32_t> base_;
  SplitQueue split_;
  PackedQueue packed_;
};

}  // namespace sluice::vhost
