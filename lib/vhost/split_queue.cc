#include "lib/vhost/split_queue.h"

#include <algorithm>
#include <vector>

#include "lib/vhost/limits.h"

namespace sluice::vhost {

bool SplitQueue::attach(const MemoryMap& map, const VringAddr& addresses, uint16_t size, uint64_t features) {
  std::byte* desc = map.translate_user(addresses.desc, split_desc_bytes(size));
  std::byte* avail = map.translate_user(addresses.avail, split_avail_bytes(size));
  std::byte* used = map.translate_user(addresses.used, split_used_bytes(size));
  if (desc == nullptr || avail == nullptr || used == nullptr) return false;
  // Our own addresses: a region may begin anywhere in its file.
  const auto misaligned = [](const std::byte* start, size_t alignment) {
    return reinterpret_cast<uintptr_t>(start) % alignment != 0;
  };
  if (misaligned(desc, kSplitDescAlignment) || misaligned(avail, kSplitAvailAlignment) ||
      misaligned(used, kSplitUsedAlignment)) {
    return false;
  }
  reader_.attach(map);
  last_head_ = 0;
  last_first_ = nullptr;
  desc_ = reinterpret_cast<SplitDesc*>(desc);
  avail_ = reinterpret_cast<SplitAvail*>(avail);
  avail_ring_ = reinterpret_cast<uint16_t*>(avail + sizeof(SplitAvail));
  used_event_ = reinterpret_cast<uint16_t*>(avail + split_used_event_offset(size));
  used_ = reinterpret_cast<SplitUsed*>(used);
  used_ring_ = reinterpret_cast<SplitUsedElem*>(used + sizeof(SplitUsed));
  avail_event_ = reinterpret_cast<uint16_t*>(used + split_avail_event_offset(size));
  log_address_.reset();
  if ((addresses.flags & kVringLogFlag) != 0) log_address_ = addresses.log;
  size_ = size;
  event_idx_ = (features & kFeatureEventIdx) != 0;
  indirect_ = (features & kFeatureIndirectDesc) != 0;
  return true;
}

void SplitQueue::load_used_index() { used_index_ = published_index_ = __atomic_load_n(&used_->idx, __ATOMIC_RELAXED); }

void SplitQueue::prefetch(uint32_t count) const {
  const auto descriptor = [this](uint32_t i) -> const SplitDesc& {
    return desc_[__atomic_load_n(&avail_ring_[(last_avail_ + i) & (size_ - 1)], __ATOMIC_RELAXED) & (size_ - 1)];
  };
  if (count == 1) {
    // Guessed, as the index, the descriptor and what it points to are one miss after the other.
    __builtin_prefetch(&desc_[last_head_]);
    __builtin_prefetch(last_first_);
    return;
  }
  for (uint32_t i = 0; i < count; ++i) __builtin_prefetch(&descriptor(i));
  const MemoryMap::Window& window = reader_.window();
  // The header, or the indirect table. Only within the guest's own memory: what is fetched can be told by its time.
  for (uint32_t i = 0; i < count; ++i) {
    const uint64_t offset = __atomic_load_n(&descriptor(i).addr, __ATOMIC_RELAXED) - window.guest_address;
    if (offset < window.size) __builtin_prefetch(window.host + offset);
  }
}

RingFault SplitQueue::pop(Chain& chain) {
  chain.head = __atomic_load_n(&avail_ring_[last_avail_ & (size_ - 1)], __ATOMIC_RELAXED);
  if (chain.head >= size_) return RingFault::kBadDescriptor;
  const RingFault fault = read_chain(chain);
  if (fault == RingFault::kNone) {
    ++last_avail_;
    last_head_ = chain.head;
  }
  return fault;
}

RingFault SplitQueue::read_chain(Chain& chain) {
  chain.clear();
  auto* table = reinterpret_cast<const std::byte*>(desc_);
  uint32_t table_length = size_;
  uint32_t next = chain.head;
  // An indirect table that crosses regions has no address of its own; it is gathered here.
  std::vector<std::byte> gathered;
  bool in_indirect = false;
  for (uint32_t followed = 0;; ++followed) {
    if (followed == std::max<uint32_t>(size_, kMaxChainLength)) return RingFault::kChainTooLong;
    if (next >= table_length) return RingFault::kBadDescriptor;
    const SplitDesc desc = read_descriptor<SplitDesc>(table + next * sizeof(SplitDesc));

    if ((desc.flags & kDescIndirect) != 0) {
      // "The driver MUST NOT set both NEXT and INDIRECT", nor nest tables; plain descriptors may come before one.
      if (in_indirect || !indirect_ || (desc.flags & kDescNext) != 0 || desc.len == 0 ||
          desc.len % sizeof(SplitDesc) != 0 || desc.len / sizeof(SplitDesc) > kMaxChainLength) {
        return RingFault::kBadIndirect;
      }
      table = reader_.table(chain, desc.addr, desc.len, gathered);
      if (table == nullptr) return RingFault::kNotMapped;
      if (gathered.empty()) last_first_ = table;
      table_length = static_cast<uint32_t>(desc.len / sizeof(SplitDesc));
      next = 0;
      in_indirect = true;
      continue;
    }

    const RingFault fault = reader_.add(chain, desc.addr, desc.len, (desc.flags & kDescWrite) != 0);
    if (fault != RingFault::kNone) return fault;
    if ((desc.flags & kDescNext) == 0) break;
    next = desc.next;
  }
  if (!in_indirect && !chain.segments->empty()) last_first_ = chain.segments->front().iov_base;
  return RingFault::kNone;
}

void SplitQueue::push_used(uint16_t head, uint32_t written) {
  SplitUsedElem& element = used_ring_[used_index_ & (size_ - 1)];
  __atomic_store_n(&element.id, head, __ATOMIC_RELAXED);
  __atomic_store_n(&element.len, written, __ATOMIC_RELAXED);
  ++used_index_;
}

bool SplitQueue::publish() {
  if (used_index_ == published_index_) return false;
  const uint16_t before = published_index_;
  published_index_ = used_index_;
  __atomic_store_n(&used_->idx, used_index_, __ATOMIC_RELEASE);
  if (log_ != nullptr) [[unlikely]]
    mark_published(before);
  // The index must be visible before we look whether the driver wants to know: it sets its wish, then looks at the
  // index.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (event_idx_) return need_event(__atomic_load_n(used_event_, __ATOMIC_RELAXED), used_index_, before);
  return (__atomic_load_n(&avail_->flags, __ATOMIC_RELAXED) & kAvailNoInterrupt) == 0;
}

// The entries from `before` on, and the index.
void SplitQueue::mark_published(uint16_t before) {
  const size_t first = before & (size_ - 1);
  const size_t count = static_cast<uint16_t>(used_index_ - before);
  const size_t in_line = std::min(count, size_ - first);
  mark(sizeof(SplitUsed) + first * sizeof(SplitUsedElem), in_line * sizeof(SplitUsedElem));
  mark(sizeof(SplitUsed), (count - in_line) * sizeof(SplitUsedElem));
  mark(offsetof(SplitUsed, idx), sizeof(SplitUsed::idx));
}

bool SplitQueue::enable_kicks() {
  if (event_idx_) {
    __atomic_store_n(avail_event_, last_avail_, __ATOMIC_RELAXED);
    mark(split_avail_event_offset(size_), sizeof(*avail_event_));
  } else {
    __atomic_store_n(&used_->flags, uint16_t{0}, __ATOMIC_RELAXED);
    mark(offsetof(SplitUsed, flags), sizeof(SplitUsed::flags));
  }
  // The wish must be visible before we look again: the driver makes chains available, then looks at the wish.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return has_work();
}

void SplitQueue::disable_kicks() {
  // With EVENT_IDX the event stays where it is, behind what comes: the driver kicks again only after 2^16 more chains.
  if (event_idx_) return;
  __atomic_store_n(&used_->flags, kUsedNoNotify, __ATOMIC_RELAXED);
  mark(offsetof(SplitUsed, flags), sizeof(SplitUsed::flags));
}

}  // namespace sluice::vhost
