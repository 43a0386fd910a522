#include "lib/vhost/split_inflight.h"

#include <algorithm>

namespace sluice::vhost {

SplitInflight::SplitInflight(std::byte* area, uint16_t entries, uint16_t ring_size)
    : header_(reinterpret_cast<SplitInflightHeader*>(area)),
      entries_(reinterpret_cast<SplitInflightEntry*>(area + sizeof(SplitInflightHeader))),
      count_(entries),
      ring_size_(ring_size) {
  batch_.reserve(ring_size);
}

void SplitInflight::begin(const SplitQueue& ring) {
  used_index_ = ring.used_index();
  note(header_->version, uint16_t{0});
  note(header_->features, uint64_t{0});
  note(header_->desc_num, count_);
  note(header_->last_batch_head, uint16_t{0});
  note(header_->used_idx, used_index_);
  for (uint32_t i = 0; i < count_; ++i) note(entries_[i].inflight, uint8_t{0});
  note(header_->version, kInflightVersion);
}

RingFault SplitInflight::recover(SplitQueue& ring, std::vector<UnfinishedChain>& unfinished) {
  used_index_ = ring.used_index();
  ring.set_last_avail(used_index_);
  const SplitInflightHeader header = read_shared(header_, 1).front();
  std::vector<SplitInflightEntry> entries = read_shared(entries_, count_);
  if (header.version != kInflightVersion || header.features != 0 || header.desc_num != count_)
    return RingFault::kBadInflight;
  bool any = false;
  for (uint32_t i = 0; i < count_; ++i) {
    if (entries[i].inflight > 1 || (entries[i].inflight == 1 && i >= ring_size_)) return RingFault::kBadInflight;
    any |= entries[i].inflight == 1;
  }
  // Shown to the driver, but not struck off, or not all of it: as many as the used index is ahead of the notes. With
  // nothing in flight there is nothing to strike off, whatever else the notes say.
  std::vector<uint16_t> shown;
  if (any) {
    const auto batch = static_cast<uint16_t>(used_index_ - header.used_idx);
    if (batch > ring_size_) return RingFault::kBadInflight;
    std::vector<bool> seen(ring_size_);
    for (uint16_t head = header.last_batch_head; shown.size() < batch; head = entries[head].next) {
      if (head >= ring_size_ || seen[head]) return RingFault::kBadInflight;
      seen[head] = true;
      shown.push_back(head);
    }
  }
  for (const uint16_t head : shown) entries[head].inflight = 0;
  for (uint16_t i = 0; i < ring_size_; ++i) {
    if (entries[i].inflight == 1) unfinished.push_back({.counter = entries[i].counter, .head = i, .descs = {}});
  }
  if (!sort_by_counter(unfinished, counter_)) return RingFault::kBadInflight;
  const std::optional<uint16_t> available = ring.available();
  if (!available || unfinished.size() > *available) return RingFault::kBadInflight;

  ring.set_last_avail(static_cast<uint16_t>(used_index_ + unfinished.size()));
  for (const uint16_t head : shown) note(entries_[head].inflight, uint8_t{0});
  note(header_->used_idx, used_index_);
  last_batch_head_ = header.last_batch_head;
  return RingFault::kNone;
}

void SplitInflight::take(uint16_t head) {
  note(entries_[head].counter, counter_++);
  note(entries_[head].inflight, uint8_t{1});
}

void SplitInflight::before_publish() {
  for (const uint16_t head : batch_) {
    note(entries_[head].next, last_batch_head_);
    note(header_->last_batch_head, head);
    last_batch_head_ = head;
  }
}

void SplitInflight::after_publish() {
  for (const uint16_t head : batch_) note(entries_[head].inflight, uint8_t{0});
  used_index_ = static_cast<uint16_t>(used_index_ + batch_.size());
  note(header_->used_idx, used_index_);
  batch_.clear();
}

}  // namespace sluice::vhost
