// SplitQueue: the device's side of a split virtqueue in guest memory: takes available chains, publishes used ones,
// and decides who has to be notified.
//
// Thread:     the queue's.
// Ownership:  borrows the map that attach() is given, until it is given another one. The guest may change its memory at
//             any moment: what is acted upon is read once, then checked.
// Source:     virtio 1.3, "Split Virtqueues", "Used Buffer Notification Suppression".
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "lib/vhost/chain.h"
#include "lib/vhost/dirty_log.h"
#include "lib/vhost/memory_map.h"
#include "lib/virtio/virtio.h"
#include "lib/virtio/wire.h"

namespace sluice::vhost {

class SplitQueue {
 public:
  // Points the queue at its rings. False, with the queue as it was, if an address is misaligned or not mapped.
  bool attach(const MemoryMap& map, const VringAddr& addresses, uint16_t size, uint64_t features);
  // Where to mark what is written to the used ring from now on, if its address asks for that; nullptr: nowhere.
  void set_log(DirtyLog* log) { log_ = log; }

  // The position in the available ring; survives attach().
  uint16_t last_avail() const { return last_avail_; }
  void set_last_avail(uint16_t index) { last_avail_ = index; }
  // At the start of a ring: goes on where the used ring in memory ends.
  void load_used_index();
  uint16_t used_index() const { return used_index_; }

  // How many chains are available; nothing if the index is impossible.
  std::optional<uint16_t> available() const {
    const auto count = static_cast<uint16_t>(load_avail_index() - last_avail_);
    if (count > size_) return std::nullopt;
    return count;
  }
  bool has_work() const { return load_avail_index() != last_avail_; }

  // Has the processor fetch what the next `count` chains begin with: the driver's core has just written it, and one
  // miss should not wait for the other. Requires: that many are available.
  void prefetch(uint32_t count) const;

  // Takes the next available chain. Requires available() > 0.
  RingFault pop(Chain& chain);
  // Takes a chain once more that a back end before us has taken. Requires: head < size.
  RingFault pop_again(Chain& chain, uint16_t head) {
    chain.head = head;
    return read_chain(chain);
  }

  // Notes a chain as used; the driver sees it after publish(). `written` counts from the chain's first writable byte.
  void push_used(uint16_t head, uint32_t written);
  // Shows the driver all used chains; true if it wants to be notified of them.
  bool publish();

  // Asks the driver for kicks; true if chains are available all the same.
  bool enable_kicks();
  void disable_kicks();

 private:
  uint16_t load_avail_index() const { return __atomic_load_n(&avail_->idx, __ATOMIC_ACQUIRE); }
  RingFault read_chain(Chain& chain);
  // Of the used ring.
  void mark(size_t offset, size_t bytes) {
    if (log_ != nullptr && log_address_) [[unlikely]]
      log_->mark(*log_address_ + offset, bytes);
  }
  void mark_published(uint16_t before);

  ChainReader reader_;
  SplitDesc* desc_ = nullptr;
  SplitAvail* avail_ = nullptr;
  uint16_t* avail_ring_ = nullptr;
  uint16_t* used_event_ = nullptr;
  SplitUsed* used_ = nullptr;
  SplitUsedElem* used_ring_ = nullptr;
  uint16_t* avail_event_ = nullptr;
  DirtyLog* log_ = nullptr;
  std::optional<uint64_t> log_address_;  // guest physical, of the used ring
  uint16_t size_ = 0;
  bool event_idx_ = false;
  bool indirect_ = false;
  // Where the last chain began. Most drivers use first what they got back last, so at depth 1 the next one does, too.
  uint16_t last_head_ = 0;
  const void* last_first_ = nullptr;
  uint16_t last_avail_ = 0;
  uint16_t used_index_ = 0;       // next to be filled
  uint16_t published_index_ = 0;  // what the driver has been shown
};

}  // namespace sluice::vhost
