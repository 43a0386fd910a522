// PackedQueue: the device's side of a packed virtqueue in guest memory, in the role that SplitQueue has for a split
// one: descriptors, what is available and what is used share one ring, through which both sides go round.
//
// Thread:     the queue's.
// Ownership:  borrows the map that attach() is given, until it is given another one. The guest may change its memory at
//             any moment: what is acted upon is read once, then checked.
// Invariants: (1) no two chains in flight have the same id. (2) positions lie within the ring.
// Source:     virtio 1.3, "Packed Virtqueues"; Vhost-user Protocol, "A vring state description", for the base.
#pragma once

#include <bitset>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "lib/vhost/chain.h"
#include "lib/vhost/dirty_log.h"
#include "lib/vhost/limits.h"
#include "lib/virtio/virtio.h"
#include "lib/virtio/wire.h"

namespace sluice::vhost {

class PackedQueue {
 public:
  // Points the queue at its ring and the two event structures; it goes on at `base`, if there is one, which has the
  // form of SET_VRING_BASE. False, with the queue as it was, if an address is misaligned or not mapped, or the queue
  // would go on outside the ring.
  bool attach(const MemoryMap& map, const VringAddr& addresses, uint16_t size, uint64_t features,
              std::optional<uint32_t> base = std::nullopt);
  // Where to mark what is written to ring and event structure from now on, if the address asks for that; nullptr:
  // nowhere.
  void set_log(DirtyLog* log) { log_ = log; }

  // Where the queue goes on; survives attach().
  uint32_t base() const { return avail_.encoded() | uint32_t{used_.encoded()} << 16; }
  // The next descriptor to be given back: an offset, and the wrap counter in bit 15.
  uint16_t used_position() const { return used_.encoded(); }
  // Whether the descriptor there has not been given back since it was made available. Requires: it is in the ring.
  bool still_available(uint16_t position) const {
    const Position at = Position::decode(position);
    return is_available(__atomic_load_n(&ring_[at.offset].flags, __ATOMIC_ACQUIRE), at.wrap);
  }
  // Goes on where a back end before us was killed: `descriptors` of the ring, from `used` on, are in flight. Requires:
  // as many as the ring has, at most.
  void resume(uint16_t used, uint32_t descriptors);
  // A ring that broke has taken a chain that it never gave back. Requires: nothing else is in flight.
  void forget_in_flight() { in_flight_.reset(); }

  // How many chains are available, up to a batch: the driver may still be writing what lies beyond, and they have to be
  // counted one by one. Has the processor fetch what each begins with: one miss should not wait for the other.
  uint16_t look() const;
  bool has_work() const {
    return is_available(__atomic_load_n(&ring_[avail_.offset].flags, __ATOMIC_ACQUIRE), avail_.wrap);
  }
  // Takes the next available chain. Requires has_work().
  RingFault pop(Chain& chain);
  // Takes a chain once more that a back end before us has taken; it lies behind what is available. Requires:
  // descriptors of one chain, as they were in the ring.
  RingFault pop_again(Chain& chain, std::span<const PackedDesc> descs);
  // Whether pop() keeps what it has read of the ring, for copies().
  void keep_copies(bool keep) { keeps_copies_ = keep; }
  std::span<const PackedDesc> copies() const { return copies_; }

  // Notes a chain as used; the driver sees it after publish().
  void push_used(const Chain& chain, uint32_t written);
  // Shows the driver all used chains; true if it wants to be notified of them.
  bool publish();

  // Asks the driver for kicks; true if chains are available all the same.
  bool enable_kicks();
  void disable_kicks();

 private:
  // A place in the ring, and the wrap counter of the round in which it is reached.
  struct Position {
    uint16_t offset = 0;
    bool wrap = true;

    uint16_t encoded() const { return static_cast<uint16_t>(offset | (wrap ? kPackedWrapBit : 0)); }
    static Position decode(uint16_t value) {
      return {.offset = static_cast<uint16_t>(value & ~kPackedWrapBit), .wrap = (value & kPackedWrapBit) != 0};
    }
    // Requires: count <= size.
    void advance(uint32_t count, uint32_t size) {
      const uint32_t next = offset + count;
      const bool over = next >= size;
      offset = static_cast<uint16_t>(over ? next - size : next);
      wrap = wrap != over;
    }
    // Counted from where the ring began, in two rounds.
    uint32_t linear(uint32_t size) const { return offset + (wrap ? 0 : size); }
  };

  static bool is_available(uint16_t flags, bool wrap) {
    return ((flags & kPackedDescAvail) != 0) == wrap && ((flags & kPackedDescUsed) != 0) != wrap;
  }
  RingFault read_chain(Chain& chain, Position& at);
  RingFault add(Chain& chain, const PackedDesc& desc);
  RingFault claim(const Chain& chain);
  RingFault read_table(Chain& chain, const PackedDesc& desc);
  void mark_desc(uint16_t offset) {
    if (log_ != nullptr && logged_) [[unlikely]]
      log_->mark(log_ring_ + offset * sizeof(PackedDesc), sizeof(PackedDesc));
  }
  void write_device_event(PackedEvent wish);

  ChainReader reader_;
  PackedDesc* ring_ = nullptr;
  const uint32_t* driver_event_ = nullptr;  // each a PackedEvent, read and written as a whole
  uint32_t* device_event_ = nullptr;
  DirtyLog* log_ = nullptr;
  bool logged_ = false;
  uint64_t log_ring_ = 0;  // guest physical, as the next one
  uint64_t log_device_event_ = 0;
  uint16_t size_ = 0;
  bool event_idx_ = false;
  bool indirect_ = false;
  Position avail_;                        // next to be taken
  Position used_;                         // next to be given back
  Position published_;                    // up to where the driver has been shown
  uint32_t unpublished_ = 0;              // descriptors from there to used_
  uint16_t first_flags_ = 0;              // of the first of these, which makes them all visible
  std::bitset<kMaxQueueSize> in_flight_;  // by id
  bool keeps_copies_ = false;
  std::vector<PackedDesc> copies_;  // of the chain that was taken last
};

}  // namespace sluice::vhost
