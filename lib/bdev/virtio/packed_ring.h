// PackedRing: the driver's side of a packed virtqueue, in the role that SplitRing has for a split one, and in the same
// place: the event structures lie where a split ring has its indexes.
//
// Each request takes one descriptor, which names an indirect table: so there are as many ids as descriptors, and what
// comes back in any order leaves no holes.
//
// Thread:    the queue's.
// Ownership: borrows the ring's memory, which the back end may change at any moment; nothing of it is read for our own
//            bookkeeping.
// Source:    virtio 1.3, "Packed Virtqueues".
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>
#include <span>

#include "lib/virtio/virtio.h"

namespace sluice::virtio {

class PackedRing {
 public:
  // What SET_VRING_BASE says of an empty ring: both sides at its beginning, in the first round.
  static constexpr uint32_t kBase = uint32_t{vhost::kPackedWrapBit} << 16 | vhost::kPackedWrapBit;

  // An empty ring in `memory`, of which as much as SplitRing::Layout says is zeroed. Requires: `size` is a power of
  // two.
  void reset(std::span<std::byte> memory, uint16_t size, bool event_idx);

  uint16_t free_descriptors() const { return free_count_; }

  // Takes a free id. Requires: there is one.
  uint16_t take() {
    const uint16_t id = free_head_;
    free_head_ = entries_[id].link;
    --free_count_;
    return id;
  }
  void set(uint16_t id, uint64_t address, uint32_t length, uint16_t flags) {
    entries_[id] = {.address = address, .length = length, .flags = flags, .link = 0};
  }
  void give_back(uint16_t id) {
    entries_[id].link = free_head_;
    free_head_ = id;
    ++free_count_;
  }

  // Makes a request available, as it was set; the back end sees it after publish().
  void offer(uint16_t id) {
    const Entry& entry = entries_[id];
    vhost::PackedDesc& desc = ring_[avail_ & mask_];
    desc.addr = entry.address;
    desc.len = entry.length;
    desc.id = id;
    const auto flags =
        static_cast<uint16_t>(entry.flags | (wrap_of(avail_) ? vhost::kPackedDescAvail : vhost::kPackedDescUsed));
    // The back end looks at one after the other: it sees none of those to come before it sees the first.
    if (avail_ == published_) {
      first_flags_ = flags;
    } else {
      __atomic_store_n(&desc.flags, flags, __ATOMIC_RELAXED);
    }
    ++avail_;
  }
  // Shows the back end all that was offered; true if it wants to be kicked for it.
  bool publish() {
    const uint16_t before = published_;
    const auto count = static_cast<uint16_t>(avail_ - before);
    if (count == 0) return false;
    __atomic_store_n(&ring_[before & mask_].flags, first_flags_, __ATOMIC_RELEASE);
    published_ = avail_;
    // The descriptors must be visible before we look at the back end's wish: it states its wish, then looks at them.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const auto event = std::bit_cast<vhost::PackedEvent>(__atomic_load_n(device_event_, __ATOMIC_RELAXED));
    const unsigned wish = event.flags & vhost::kPackedEventFlagsMask;
    if (wish != vhost::kPackedEventDesc || !event_idx_) return wish != vhost::kPackedEventDisable;
    // Whether the descriptor it names is among those just shown.
    const bool wrap = (event.off_wrap & vhost::kPackedWrapBit) != 0;
    const auto named = static_cast<uint16_t>((event.off_wrap & ~vhost::kPackedWrapBit) + (wrap ? 0 : mask_ + 1));
    return (static_cast<uint16_t>(named - before) & (2 * mask_ + 1)) < count;
  }

  // How many requests have come back, as far as the back end is to be believed.
  uint16_t used_count() const {
    uint16_t count = 0;
    while (count <= mask_ && is_used(static_cast<uint16_t>(used_ + count))) ++count;
    return count;
  }
  bool has_used() const { return is_used(used_); }
  // The next of them. Requires: has_used().
  vhost::SplitUsedElem pop_used() {
    const vhost::PackedDesc& desc = ring_[used_++ & mask_];
    return {.id = __atomic_load_n(&desc.id, __ATOMIC_RELAXED), .len = __atomic_load_n(&desc.len, __ATOMIC_RELAXED)};
  }

  // Asks for a call at the next request that comes back; true if one has come back all the same.
  bool enable_calls() {
    const auto next = static_cast<uint16_t>((used_ & mask_) | (wrap_of(used_) ? vhost::kPackedWrapBit : 0));
    wish(event_idx_ ? vhost::PackedEvent{.off_wrap = next, .flags = vhost::kPackedEventDesc}
                    : vhost::PackedEvent{.off_wrap = 0, .flags = vhost::kPackedEventEnable});
    // The wish must be visible before we look again: the back end publishes, then looks at the wish.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return has_used();
  }
  void disable_calls() { wish({.off_wrap = 0, .flags = vhost::kPackedEventDisable}); }

 private:
  // What a request says to the back end, in private memory: its descriptor is overwritten when it comes back.
  struct Entry {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t link;  // of free ids
  };

  // Positions are counted on and on, which a power of two divides: every other round of the ring has the wrap counter
  // 0.
  bool wrap_of(uint16_t position) const { return (position & (mask_ + 1)) == 0; }
  bool is_used(uint16_t position) const {
    const uint16_t flags = __atomic_load_n(&ring_[position & mask_].flags, __ATOMIC_ACQUIRE);
    const bool wrap = wrap_of(position);
    return ((flags & vhost::kPackedDescAvail) != 0) == wrap && ((flags & vhost::kPackedDescUsed) != 0) == wrap;
  }
  void wish(vhost::PackedEvent event) {
    __atomic_store_n(driver_event_, std::bit_cast<uint32_t>(event), __ATOMIC_RELAXED);
  }

  vhost::PackedDesc* ring_ = nullptr;
  uint32_t* driver_event_ = nullptr;  // each a PackedEvent, read and written as a whole
  const uint32_t* device_event_ = nullptr;

  uint16_t mask_ = 0;
  bool event_idx_ = false;
  uint16_t avail_ = 0;      // next to be offered
  uint16_t published_ = 0;  // up to where the back end has been shown
  uint16_t used_ = 0;       // next to be taken back
  uint16_t first_flags_ = 0;
  uint16_t free_head_ = 0;
  uint16_t free_count_ = 0;
  std::unique_ptr<Entry[]> entries_;  // by id
};

}  // namespace sluice::virtio
