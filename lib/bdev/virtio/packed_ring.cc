#include "lib/bdev/virtio/packed_ring.h"

#include <cstring>

#include "lib/base/check.h"
#include "lib/bdev/virtio/split_ring.h"

namespace sluice::virtio {

void PackedRing::reset(std::span<std::byte> memory, uint16_t size, bool event_idx) {
  const SplitRing::Layout layout(size);
  CHECK(std::has_single_bit(size));
  CHECK(memory.size() >= layout.bytes);
  static_assert(sizeof(vhost::PackedDesc) == sizeof(vhost::SplitDesc));
  std::memset(memory.data(), 0, layout.bytes);
  ring_ = reinterpret_cast<vhost::PackedDesc*>(memory.data());
  driver_event_ = reinterpret_cast<uint32_t*>(memory.data() + layout.avail);
  device_event_ = reinterpret_cast<const uint32_t*>(memory.data() + layout.used);

  mask_ = static_cast<uint16_t>(size - 1);
  event_idx_ = event_idx;
  avail_ = published_ = used_ = 0;
  if (entries_ == nullptr) entries_ = std::make_unique<Entry[]>(size);
  for (uint16_t i = 0; i < size; ++i) entries_[i].link = static_cast<uint16_t>(i + 1);
  free_head_ = 0;
  free_count_ = size;
}

}  // namespace sluice::virtio
