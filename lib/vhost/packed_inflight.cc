#include "lib/vhost/packed_inflight.h"

#include <bit>

namespace sluice::vhost {

PackedInflight::PackedInflight(std::byte* area, uint16_t entries, uint16_t ring_size)
    : header_(reinterpret_cast<PackedInflightHeader*>(area)),
      entries_(reinterpret_cast<PackedInflightEntry*>(area + sizeof(PackedInflightHeader))),
      count_(entries),
      ring_size_(ring_size),
      next_(entries),
      by_id_(ring_size) {
  batch_.reserve(ring_size);
}

void PackedInflight::begin(const PackedQueue& ring) {
  note(header_->version, uint16_t{0});
  note(header_->features, uint64_t{0});
  note(header_->desc_num, count_);
  for (uint16_t i = 0; i < count_; ++i) {
    next_[i] = static_cast<uint16_t>(i + 1);
    note(entries_[i].inflight, uint8_t{0});
    note(entries_[i].next, next_[i]);
  }
  free_head_ = 0;
  free_count_ = count_;
  note(header_->free_head, free_head_);
  note(header_->old_free_head, free_head_);
  used_ = Place::decode(ring.used_position());
  note_places(used_, used_);
  note(header_->version, kInflightVersion);
}

RingFault PackedInflight::recover(PackedQueue& ring, std::vector<UnfinishedChain>& unfinished) {
  const PackedInflightHeader header = read_shared(header_, 1).front();
  const std::vector<PackedInflightEntry> entries = read_shared(entries_, count_);
  const PackedInflightPlaces& places = header.places;
  if (header.version != kInflightVersion || header.features != 0 || header.desc_num != count_ ||
      places.used_idx >= ring_size_ || places.old_used_idx >= ring_size_ || places.used_wrap_counter > 1 ||
      places.old_used_wrap_counter > 1) {
    return RingFault::kBadInflight;
  }
  // Either all of the last batch has been shown to the driver, or nothing of it.
  const Place used{.offset = places.used_idx, .wrap = places.used_wrap_counter == 1};
  const Place old_used{.offset = places.old_used_idx, .wrap = places.old_used_wrap_counter == 1};
  const bool shown = used != old_used && !ring.still_available(old_used.encoded());
  const uint16_t free_head = shown ? header.free_head : header.old_free_head;
  if (!find_chains(entries, free_head, unfinished) || !sort_by_counter(unfinished, counter_))
    return RingFault::kBadInflight;
  uint32_t descriptors = 0;
  for (const UnfinishedChain& chain : unfinished) descriptors += static_cast<uint32_t>(chain.descs.size());
  if (descriptors > ring_size_) return RingFault::kBadInflight;

  free_head_ = free_head;
  free_count_ = count_ - descriptors;
  used_ = shown ? used : old_used;
  if (shown) note(header_->old_free_head, free_head);
  note(header_->free_head, free_head);
  note_places(used_, used_);
  for (uint16_t at = free_head; at != count_; at = next_[at]) note(entries_[at].inflight, uint8_t{0});
  ring.resume(used_.encoded(), descriptors);
  return RingFault::kNone;
}

// Each entry must be either free, or in one chain that is in flight. Fills next_ and by_id_.
bool PackedInflight::find_chains(const std::vector<PackedInflightEntry>& entries, uint16_t free_head,
                                 std::vector<UnfinishedChain>& unfinished) {
  std::vector<bool> seen(count_);
  uint32_t seen_count = 0;
  const auto see = [&](uint16_t at) {
    if (at >= count_ || seen[at]) return false;
    next_[at] = entries[at].next;
    seen[at] = true;
    ++seen_count;
    return true;
  };
  for (uint16_t at = free_head; at != count_; at = entries[at].next) {
    if (!see(at)) return false;
  }
  std::vector<bool> ids(ring_size_);
  for (uint16_t head = 0; head < count_; ++head) {
    const PackedInflightEntry& first = entries[head];
    if (first.inflight == 0 || seen[head]) continue;
    if (first.inflight != 1 || first.num == 0) return false;
    UnfinishedChain chain{.counter = first.counter, .head = 0, .descs = {}};
    uint16_t at = head;
    for (uint16_t i = 0; i < first.num; ++i) {
      if (i > 0) at = entries[at].next;
      if (!see(at)) return false;
      const PackedInflightEntry& entry = entries[at];
      if (((entry.flags & kDescNext) != 0) != (i + 1 < first.num)) return false;
      chain.descs.push_back({.addr = entry.addr, .len = entry.len, .id = entry.id, .flags = entry.flags});
    }
    const uint16_t id = chain.descs.back().id;
    if (at != first.last || id >= ring_size_ || ids[id]) return false;
    ids[id] = true;
    by_id_[id] = {.entry = head, .last = at, .num = first.num};
    unfinished.push_back(std::move(chain));
  }
  return seen_count == count_;
}

bool PackedInflight::take(std::span<const PackedDesc> descs) {
  if (descs.size() > free_count_) return false;
  PackedInflightEntry& first = entries_[free_head_];
  Taken taken{.entry = free_head_, .last = 0, .num = static_cast<uint16_t>(descs.size())};
  note(first.num, taken.num);
  note(first.counter, counter_++);
  note(first.inflight, uint8_t{1});
  for (const PackedDesc& desc : descs) {
    PackedInflightEntry& entry = entries_[free_head_];
    note(entry.addr, desc.addr);
    note(entry.len, desc.len);
    note(entry.flags, desc.flags);
    note(entry.id, desc.id);
    taken.last = free_head_;
    free_head_ = next_[free_head_];
  }
  note(first.last, taken.last);
  note(header_->free_head, free_head_);
  note(header_->old_free_head, free_head_);
  free_count_ -= taken.num;
  by_id_[descs.back().id] = taken;
  return true;
}

void PackedInflight::before_publish() {
  const Place old_used = used_;
  for (const Taken& taken : batch_) {
    note(entries_[taken.last].next, free_head_);
    next_[taken.last] = free_head_;
    free_head_ = taken.entry;
    note(header_->free_head, free_head_);
    free_count_ += taken.num;
    const uint32_t offset = uint32_t{used_.offset} + taken.num;
    used_ = {.offset = static_cast<uint16_t>(offset % ring_size_), .wrap = used_.wrap != (offset >= ring_size_)};
  }
  note_places(used_, old_used);
}

void PackedInflight::after_publish() {
  for (const Taken& taken : batch_) note(entries_[taken.entry].inflight, uint8_t{0});
  note(header_->old_free_head, free_head_);
  note_places(used_, used_);
  batch_.clear();
}

// At once: places of which one half is new would tell of a batch that there never was.
void PackedInflight::note_places(Place used, Place old_used) {
  const PackedInflightPlaces places{.used_idx = used.offset,
                                    .old_used_idx = old_used.offset,
                                    .used_wrap_counter = used.wrap,
                                    .old_used_wrap_counter = old_used.wrap};
  __atomic_store_n(reinterpret_cast<uint64_t*>(&header_->places), std::bit_cast<uint64_t>(places), __ATOMIC_RELEASE);
}

}  // namespace sluice::vhost
