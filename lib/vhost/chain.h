// Chain: the buffers of one request, as a virtqueue of either kind has named them, translated into our own addresses.
//
// Thread:     the queue's.
// Ownership:  segments are borrowed; the reader borrows the map that attach() is given.
// Source:     virtio 1.3, "Virtqueues", "Message Framing".
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lib/vhost/limits.h"
#include "lib/vhost/memory_map.h"

namespace sluice::vhost {

// Why a ring cannot be served any further.
enum class RingFault : uint8_t {
  kNone,
  kAvailJump,      // the available index is further ahead than the ring is long
  kBadDescriptor,  // a descriptor index is not in the ring or table
  kChainTooLong,   // a chain is longer than the ring or the limit: it loops
  kNotMapped,      // a buffer lies outside the guest's memory, or in too many pieces of it
  kBadIndirect,    // an indirect table is empty, nested, not negotiated, not a multiple of 16 bytes, or continues
  kBadOrder,       // a device-readable descriptor follows a device-writable one
  kNoHeader,       // the request's header is incomplete
  kNoStatus,       // there is no byte for the status
  kTooLarge,       // more data than a request may have
  kTooMany,        // more requests in flight than the ring has descriptors
  kMemoryLost,     // the front end has cut off the guest's memory
  kCallBlocked,    // the front end has made its call descriptor block
  kBadId,          // packed: a buffer's id is not below the ring's size
  kIdInFlight,     // packed: a buffer has the id of another one that is in flight
  kTakenBack,      // packed: a descriptor of an available chain is not, or no more, available
  kLogLost,        // the front end has cut off the log of written pages
  kInflightSize,   // the buffer for requests in flight has no room for the ring
  kBadInflight,    // what it holds is not what a back end can have left there
  kInflightLost,   // the front end has cut it off
};
inline constexpr RingFault kLastRingFault = RingFault::kInflightLost;
const char* to_string(RingFault fault);

// First what the device reads, then what it writes.
struct Chain {
  uint16_t head = 0;         // what the driver knows it by: the first descriptor, or a packed ring's buffer id
  uint16_t descriptors = 0;  // packed: how many of the ring it takes
  uint32_t readable = 0;     // how many of the segments are device-readable
  uint64_t readable_bytes = 0;
  uint64_t writable_bytes = 0;
  std::vector<iovec>* segments = nullptr;

  void clear() {
    segments->clear();
    readable = 0;
    readable_bytes = writable_bytes = 0;
  }
};

// Adds descriptors to chains. What it is given has been read out of the guest's memory for good.
class ChainReader {
 public:
  void attach(const MemoryMap& map) {
    map_ = &map;
    window_ = {};
  }

  // Where the last address was found, and most likely the next one.
  const MemoryMap::Window& window() const { return window_; }

  RingFault add(Chain& chain, uint64_t guest_address, uint32_t length, bool writable) {
    if (!writable && chain.writable_bytes > 0) return RingFault::kBadOrder;
    if (!translate(guest_address, length, *chain.segments)) return RingFault::kNotMapped;
    if (writable) {
      chain.writable_bytes += length;
    } else {
      chain.readable_bytes += length;
      chain.readable = static_cast<uint32_t>(chain.segments->size());
    }
    return chain.readable_bytes + chain.writable_bytes > kMaxRequestBytes ? RingFault::kTooLarge : RingFault::kNone;
  }

  // Where an indirect table lies: in guest memory, or in `gathered` if it crosses regions and thus has no address of
  // its own. nullptr: it is not mapped. The chain's segments stay as they are.
  const std::byte* table(Chain& chain, uint64_t guest_address, uint32_t length, std::vector<std::byte>& gathered) {
    std::vector<iovec>& segments = *chain.segments;
    const size_t before = segments.size();
    if (!translate(guest_address, length, segments)) return nullptr;
    const auto* table = static_cast<const std::byte*>(segments.back().iov_base);
    if (segments.size() != before + 1) {
      for (size_t i = before; i < segments.size(); ++i) {
        const auto* piece = static_cast<const std::byte*>(segments[i].iov_base);
        gathered.insert(gathered.end(), piece, piece + segments[i].iov_len);
      }
      table = gathered.data();
    }
    segments.resize(before);
    return table;
  }

 private:
  bool translate(uint64_t guest_address, uint32_t length, std::vector<iovec>& out) {
    if (guest_address - window_.guest_address >= window_.size) window_ = map_->window_at(guest_address);
    const uint64_t offset = guest_address - window_.guest_address;
    if (offset < window_.size && length <= window_.size - offset && length > 0 && out.size() < kMaxSegments) {
      out.push_back({.iov_base = window_.host + offset, .iov_len = length});
      return true;
    }
    // It is empty, crosses into the next region, or is not mapped.
    return map_->translate(guest_address, length, out);
  }

  const MemoryMap* map_ = nullptr;
  MemoryMap::Window window_;
};

// Descriptors are 16-byte aligned in rings; indirect tables may lie anywhere. Reading each into private memory at once
// is what keeps a guest from changing it between check and use.
template <typename Desc>
Desc read_descriptor(const std::byte* from) {
  Desc copy;
  __builtin_memcpy(&copy, from, sizeof(copy));
  // Without this the compiler may read the guest's bytes again instead of keeping the copy.
  asm volatile("" : "+m"(copy) : : "memory");
  return copy;
}

}  // namespace sluice::vhost
