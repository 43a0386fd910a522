#include "lib/bdev/virtio/split_ring.h"

#include <bit>
#include <cstring>

#include "lib/base/check.h"

namespace sluice::virtio {

void SplitRing::reset(std::span<std::byte> memory, uint16_t size, bool event_idx) {
  const Layout layout(size);
  CHECK(std::has_single_bit(size));
  CHECK(memory.size() >= layout.bytes);
  std::memset(memory.data(), 0, layout.bytes);
  std::byte* const avail = memory.data() + layout.avail;
  std::byte* const used = memory.data() + layout.used;
  desc_ = reinterpret_cast<vhost::SplitDesc*>(memory.data());
  avail_ = reinterpret_cast<vhost::SplitAvail*>(avail);
  avail_ring_ = reinterpret_cast<uint16_t*>(avail + sizeof(vhost::SplitAvail));
  used_event_ = reinterpret_cast<uint16_t*>(avail + vhost::split_used_event_offset(size));
  used_ = reinterpret_cast<vhost::SplitUsed*>(used);
  used_ring_ = reinterpret_cast<vhost::SplitUsedElem*>(used + sizeof(vhost::SplitUsed));
  avail_event_ = reinterpret_cast<uint16_t*>(used + vhost::split_avail_event_offset(size));

  mask_ = static_cast<uint16_t>(size - 1);
  event_idx_ = event_idx;
  avail_index_ = published_index_ = used_index_ = 0;
  if (links_ == nullptr) links_ = std::make_unique<uint16_t[]>(size);
  for (uint16_t i = 0; i < size; ++i) links_[i] = static_cast<uint16_t>(i + 1);
  free_head_ = 0;
  free_count_ = size;
}

}  // namespace sluice::virtio
