// What an input of vhost_ring_fuzz says: a byte of RingMode flags, one of the ring's size (its logarithm), and then
// steps, each a RingStep and its arguments, which are bytes unless said otherwise.
#pragma once

#include <cstdint>

namespace sluice::vhost {

enum RingMode : uint8_t {
  kModePacked = 1,
  kModeEventIdx = 2,
  kModeIndirect = 4,
  // Another thread changes what kPoke steps have named, over and over, while the target looks.
  kModeConcurrent = 8,
};
inline constexpr uint8_t kMaxLogRingSize = 6;

enum class RingStep : uint8_t {
  kRequest,     // type, sector, length in units of 256 bytes, layout: a whole request, made available
  kDescriptor,  // index, place, units of 32 bytes into the place, length (16 bits), flags, next or id
  kEntry,       // table, then as kDescriptor: of an indirect table
  kHeader,      // index, type, sector
  kAvailable,   // split: a head, made available; packed: as many descriptors as it says
  kIndex,       // 16 bits: what the available index is to be; packed: of which descriptor the flags are poked, and how
  kEvent,       // 32 bits: the driver's wishes for notifications
  kTurn,        // so many turns of the target, up to 4
  kPoke,        // offset (16 bits) into what the driver writes, value
  kRestart,     // the ring is started anew; bit 0: with a base of 0
};
inline constexpr uint8_t kRingSteps = 10;

// Of kRequest.
enum RingLayout : uint8_t {
  kLayoutIndirect = 1,
  kLayoutHeaderSplit = 2,     // two descriptors
  kLayoutStatusWithData = 4,  // one descriptor
  kLayoutAcrossRegions = 8,
  kLayoutTurnAtOnce = 16,
};

}  // namespace sluice::vhost
