#include "lib/vhost/packed_queue.h"

#include <atomic>
#include <bit>

namespace sluice::vhost {
namespace {

uint32_t as_word(PackedEvent event) { return std::bit_cast<uint32_t>(event); }

}  // namespace

bool PackedQueue::attach(const MemoryMap& map, const VringAddr& addresses, uint16_t size, uint64_t features,
                         std::optional<uint32_t> base) {
  // The driver's event structure is where a split ring has its available ring, the device's where the used ring is.
  std::byte* ring = map.translate_user(addresses.desc, size_t{size} * sizeof(PackedDesc));
  std::byte* driver = map.translate_user(addresses.avail, sizeof(PackedEvent));
  std::byte* device = map.translate_user(addresses.used, sizeof(PackedEvent));
  if (ring == nullptr || driver == nullptr || device == nullptr) return false;
  // Our own addresses: a region may begin anywhere in its file.
  const auto misaligned = [](const std::byte* start, size_t alignment) {
    return reinterpret_cast<uintptr_t>(start) % alignment != 0;
  };
  if (misaligned(ring, kPackedDescAlignment) || misaligned(driver, kPackedEventAlignment) ||
      misaligned(device, kPackedEventAlignment)) {
    return false;
  }
  Position avail = avail_;
  Position used = used_;
  if (base) {
    avail = Position::decode(static_cast<uint16_t>(*base));
    // Some front ends (DPDK's) tell the lower half only: without requests in flight the other one is the same.
    used = *base <= UINT16_MAX ? avail : Position::decode(static_cast<uint16_t>(*base >> 16));
  }
  if (avail.offset >= size || used.offset >= size) return false;
  avail_ = avail;
  used_ = published_ = used;
  reader_.attach(map);
  ring_ = reinterpret_cast<PackedDesc*>(ring);
  driver_event_ = reinterpret_cast<const uint32_t*>(driver);
  device_event_ = reinterpret_cast<uint32_t*>(device);
  // The address to log at is that of what the device alone writes. Descriptors have no other address than their own.
  logged_ = (addresses.flags & kVringLogFlag) != 0;
  log_ring_ = map.guest_address_of(addresses.desc);
  log_device_event_ = addresses.log;
  size_ = size;
  event_idx_ = (features & kFeatureEventIdx) != 0;
  indirect_ = (features & kFeatureIndirectDesc) != 0;
  return true;
}

void PackedQueue::resume(uint16_t used, uint32_t descriptors) {
  used_ = published_ = avail_ = Position::decode(used);
  unpublished_ = 0;
  // What was given back after the last update, which the driver has not been shown, looks used, but is not any more.
  for (uint32_t i = 0; i < descriptors; ++i) {
    const uint16_t flags = avail_.wrap ? kPackedDescAvail : kPackedDescUsed;
    __atomic_store_n(&ring_[avail_.offset].flags, flags, __ATOMIC_RELAXED);
    avail_.advance(1, size_);
  }
}

uint16_t PackedQueue::look() const {
  const MemoryMap::Window& window = reader_.window();
  uint16_t chains = 0;
  bool head = true;  // of a chain, which is available with all of its descriptors
  Position at = avail_;
  for (uint32_t looked = 0; looked < size_; ++looked) {
    const PackedDesc& desc = ring_[at.offset];
    const uint16_t flags = __atomic_load_n(&desc.flags, __ATOMIC_ACQUIRE);
    if (!is_available(flags, at.wrap) || (head && chains == kQueueBatch)) break;
    if (head) {
      ++chains;
      // The header, or the indirect table. Only within the guest's own memory: what is fetched can be told by its time.
      const uint64_t offset = __atomic_load_n(&desc.addr, __ATOMIC_RELAXED) - window.guest_address;
      if (offset < window.size) __builtin_prefetch(window.host + offset);
    }
    head = (flags & kDescNext) == 0;
    at.advance(1, size_);
  }
  return chains;
}

RingFault PackedQueue::pop(Chain& chain) {
  chain.clear();
  chain.descriptors = 0;
  copies_.clear();
  Position at = avail_;
  RingFault fault = read_chain(chain, at);
  if (fault == RingFault::kNone) fault = claim(chain);
  if (fault == RingFault::kNone) avail_ = at;
  return fault;
}

RingFault PackedQueue::pop_again(Chain& chain, std::span<const PackedDesc> descs) {
  chain.clear();
  chain.descriptors = 0;
  for (const PackedDesc& desc : descs) {
    ++chain.descriptors;
    if (const RingFault fault = add(chain, desc); fault != RingFault::kNone) return fault;
  }
  return claim(chain);
}

RingFault PackedQueue::claim(const Chain& chain) {
  if (chain.head >= size_) return RingFault::kBadId;
  if (in_flight_.test(chain.head)) return RingFault::kIdInFlight;
  in_flight_.set(chain.head);
  return RingFault::kNone;
}

RingFault PackedQueue::read_chain(Chain& chain, Position& at) {
  for (;;) {
    if (chain.descriptors == size_) return RingFault::kChainTooLong;
    const auto desc = read_descriptor<PackedDesc>(reinterpret_cast<const std::byte*>(&ring_[at.offset]));
    if (!is_available(desc.flags, at.wrap)) return RingFault::kTakenBack;
    ++chain.descriptors;
    at.advance(1, size_);
    if (keeps_copies_) copies_.push_back(desc);
    const RingFault fault = add(chain, desc);
    if (fault != RingFault::kNone || (desc.flags & kDescNext) == 0) return fault;
  }
}

// The next descriptor of a chain, which counts it already.
RingFault PackedQueue::add(Chain& chain, const PackedDesc& desc) {
  // "The buffer ID is included in the last descriptor in the list."
  chain.head = desc.id;
  if ((desc.flags & kDescIndirect) != 0) {
    // "The driver MUST NOT write direct descriptors with INDIRECT set in a scatter-gather list linked by NEXT."
    const bool alone = chain.descriptors == 1 && (desc.flags & kDescNext) == 0;
    return alone && indirect_ ? read_table(chain, desc) : RingFault::kBadIndirect;
  }
  return reader_.add(chain, desc.addr, desc.len, (desc.flags & kDescWrite) != 0);
}

// All of a table is the chain, in its order: NEXT and the ids mean nothing in it.
RingFault PackedQueue::read_table(Chain& chain, const PackedDesc& desc) {
  if (desc.len == 0 || desc.len % sizeof(PackedDesc) != 0 || desc.len / sizeof(PackedDesc) > kMaxChainLength)
    return RingFault::kBadIndirect;
  std::vector<std::byte> gathered;
  const std::byte* table = reader_.table(chain, desc.addr, desc.len, gathered);
  if (table == nullptr) return RingFault::kNotMapped;
  for (uint32_t i = 0; i < desc.len / sizeof(PackedDesc); ++i) {
    const auto entry = read_descriptor<PackedDesc>(table + i * sizeof(PackedDesc));
    if ((entry.flags & kDescIndirect) != 0) return RingFault::kBadIndirect;
    const RingFault fault = reader_.add(chain, entry.addr, entry.len, (entry.flags & kDescWrite) != 0);
    if (fault != RingFault::kNone) return fault;
  }
  return RingFault::kNone;
}

void PackedQueue::push_used(const Chain& chain, uint32_t written) {
  in_flight_.reset(chain.head);
  PackedDesc& desc = ring_[used_.offset];
  __atomic_store_n(&desc.id, chain.head, __ATOMIC_RELAXED);
  __atomic_store_n(&desc.len, written, __ATOMIC_RELAXED);
  const auto flags = static_cast<uint16_t>(kDescWrite | (used_.wrap ? kPackedDescAvail | kPackedDescUsed : 0));
  // The driver looks at one after the other: it sees none of those to come before it sees the first.
  if (unpublished_ == 0) {
    first_flags_ = flags;
  } else {
    __atomic_store_n(&desc.flags, flags, __ATOMIC_RELAXED);
  }
  mark_desc(used_.offset);
  used_.advance(chain.descriptors, size_);
  unpublished_ += chain.descriptors;
}

bool PackedQueue::publish() {
  if (unpublished_ == 0) return false;
  __atomic_store_n(&ring_[published_.offset].flags, first_flags_, __ATOMIC_RELEASE);
  mark_desc(published_.offset);
  const uint32_t before = published_.linear(size_);
  const uint32_t count = unpublished_;
  published_ = used_;
  unpublished_ = 0;
  // The descriptors must be visible before we look whether the driver wants to know: it sets its wish, then looks at
  // them.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const auto event = std::bit_cast<PackedEvent>(__atomic_load_n(driver_event_, __ATOMIC_RELAXED));
  const unsigned wish = event.flags & kPackedEventFlagsMask;
  if (wish != kPackedEventDesc || !event_idx_) return wish != kPackedEventDisable;
  // Whether the descriptor it names is among those just shown. A driver that names none in the ring gets no sense.
  const uint32_t named = Position::decode(event.off_wrap).linear(size_);
  return (named + 2 * size_ - before) % (2 * size_) < count;
}

bool PackedQueue::enable_kicks() {
  const PackedEvent wish = event_idx_ ? PackedEvent{.off_wrap = avail_.encoded(), .flags = kPackedEventDesc}
                                      : PackedEvent{.off_wrap = 0, .flags = kPackedEventEnable};
  write_device_event(wish);
  // The wish must be visible before we look again: the driver makes chains available, then looks at the wish.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return has_work();
}

void PackedQueue::disable_kicks() { write_device_event({.off_wrap = 0, .flags = kPackedEventDisable}); }

void PackedQueue::write_device_event(PackedEvent wish) {
  __atomic_store_n(device_event_, as_word(wish), __ATOMIC_RELAXED);
  if (log_ != nullptr && logged_) [[unlikely]]
    log_->mark(log_device_event_, sizeof(wish));
}

}  // namespace sluice::vhost
