// SplitRing: the driver's side of a split virtqueue: hands descriptor chains to the back end and takes them back.
//
// What the back end could have changed is never read for our own bookkeeping: which descriptors are free, and how they
// are chained, is kept in private memory too.
//
// Thread:    the queue's.
// Ownership: borrows the ring's memory, which the back end may change at any moment.
// Source:    virtio 1.3, "Split Virtqueues", "Driver Requirements" and "Used Buffer Notification Suppression".
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

#include "lib/virtio/virtio.h"

namespace sluice::virtio {

class SplitRing {
 public:
  // Where the parts of a ring of `size` descriptors lie in its memory; the device's part has cache lines of its own.
  struct Layout {
    explicit constexpr Layout(size_t size)
        : avail(vhost::split_desc_bytes(size)),
          used((avail + vhost::split_avail_bytes(size) + 127) / 128 * 128),
          bytes(used + vhost::split_used_bytes(size)) {}
    size_t avail;  // the descriptors are at 0
    size_t used;
    size_t bytes;
  };

  // An empty ring in `memory`, which is zeroed. Requires: `size` is a power of two.
  void reset(std::span<std::byte> memory, uint16_t size, bool event_idx);

  uint16_t free_descriptors() const { return free_count_; }

  // Takes a free descriptor and links it to what is taken next. Requires: there is one.
  uint16_t take() {
    const uint16_t index = free_head_;
    free_head_ = links_[index];
    --free_count_;
    return index;
  }
  // The descriptor that the next take() gives.
  uint16_t next() const { return free_head_; }
  void set(uint16_t index, uint64_t address, uint32_t length, uint16_t flags, uint16_t next) {
    desc_[index] = {.addr = address, .len = length, .flags = flags, .next = next};
  }
  // Gives back a chain of `count` descriptors that were taken in succession, `head` first.
  void give_back(uint16_t head, uint16_t count) {
    uint16_t last = head;
    for (uint16_t i = 1; i < count; ++i) last = links_[last];
    links_[last] = free_head_;
    free_head_ = head;
    free_count_ = static_cast<uint16_t>(free_count_ + count);
  }

  // Makes a chain available; the back end sees it after publish().
  void offer(uint16_t head) { avail_ring_[avail_index_++ & mask_] = head; }
  // Shows the back end all that was offered; true if it wants to be kicked for it.
  bool publish() {
    const uint16_t before = published_index_;
    if (avail_index_ == before) return false;
    published_index_ = avail_index_;
    __atomic_store_n(&avail_->idx, avail_index_, __ATOMIC_RELEASE);
    // The index must be visible before we look at the back end's wish: it states its wish, then looks at the index.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (event_idx_) {
      return vhost::need_event(__atomic_load_n(avail_event_, __ATOMIC_RELAXED), avail_index_, before);
    }
    return (__atomic_load_n(&used_->flags, __ATOMIC_RELAXED) & vhost::kUsedNoNotify) == 0;
  }

  // How many chains have come back, as far as the back end is to be believed.
  uint16_t used_count() const {
    return static_cast<uint16_t>(__atomic_load_n(&used_->idx, __ATOMIC_ACQUIRE) - used_index_);
  }
  // The next of them. Requires: used_count() > 0.
  vhost::SplitUsedElem pop_used() {
    const vhost::SplitUsedElem& element = used_ring_[used_index_++ & mask_];
    return {.id = __atomic_load_n(&element.id, __ATOMIC_RELAXED),
            .len = __atomic_load_n(&element.len, __ATOMIC_RELAXED)};
  }

  // Asks for a call at the next chain that comes back; true if one has come back all the same.
  bool enable_calls() {
    if (event_idx_) {
      __atomic_store_n(used_event_, used_index_, __ATOMIC_RELAXED);
    } else {
      __atomic_store_n(&avail_->flags, uint16_t{0}, __ATOMIC_RELAXED);
    }
    // The wish must be visible before we look again: the back end publishes, then looks at the wish.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return used_count() > 0;
  }
  void disable_calls() {
    // With EVENT_IDX the event stays where it is, behind what comes: the next call would be 2^16 chains away.
    if (!event_idx_) __atomic_store_n(&avail_->flags, vhost::kAvailNoInterrupt, __ATOMIC_RELAXED);
  }

 private:
  vhost::SplitDesc* desc_ = nullptr;
  vhost::SplitAvail* avail_ = nullptr;
  uint16_t* avail_ring_ = nullptr;
  uint16_t* used_event_ = nullptr;
  vhost::SplitUsed* used_ = nullptr;
  vhost::SplitUsedElem* used_ring_ = nullptr;
  uint16_t* avail_event_ = nullptr;

  uint16_t mask_ = 0;
  bool event_idx_ = false;
  uint16_t avail_index_ = 0;      // next to be offered
  uint16_t published_index_ = 0;  // what the back end has been shown
  uint16_t used_index_ = 0;       // next to be taken back
  uint16_t free_head_ = 0;
  uint16_t free_count_ = 0;
  std::unique_ptr<uint16_t[]> links_;  // of free descriptors and of chains
};

}  // namespace sluice::virtio
