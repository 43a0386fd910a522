// What an input of vhost_inflight_fuzz says: a byte of InflightMode flags, the ring's size (its logarithm), and the
// buffer's description: all of it (an InflightDescription) if the mode says so, otherwise a byte each: how many queues
// less one, by how many entries (up to 32) it is for longer rings, offset in units of 64 bytes. Then come steps, each
// an InflightStep and its arguments, which are bytes unless said otherwise.
#pragma once

#include <cstdint>

namespace sluice::vhost {

enum InflightMode : uint8_t {
  kInflightPacked = 1,
  kInflightRawDescription = 2,
  kInflightSecondQueue = 4,  // its part of the buffer is the ring's, not the first one
  kInflightOldRing = 8,      // its indices are about to go round
};
inline constexpr uint8_t kMaxLogInflightRing = 5;

enum class InflightStep : uint8_t {
  // The driver and the block device.
  kOffer,     // layout: a request, made available
  kTurn,      // so many turns of the target, up to 4
  kComplete,  // which: the block device ends one of its requests
  // The front end.
  kStart,    // a back end begins; one that runs has been killed
  kRestart,  // the ring is stopped and started; bit 0: and its base is set
  kFresh,    // a new buffer, and rings that are as new
  kHeader,   // index of a 16-bit word in the part's header, value (16 bits)
  kEntry,    // entry, index of a word in it, value (16 bits)
  kForge,    // packed: entry, request, which of its buffers: the entry is a copy of its descriptor
  kBytes,    // offset in the part (16 bits), count, as many bytes
  kPoke,     // offset in the part (16 bits), value: another thread changes it from now on, over and over
  kRings,    // offset (16 bits), value (16 bits): something in the rings
  kCut,      // the buffer's file is cut off
};
inline constexpr uint8_t kInflightSteps = 13;

// Of kOffer.
enum InflightLayout : uint8_t {
  kInflightIndirect = 1,
  kInflightShort = 2,  // data and status in one descriptor
};

inline constexpr uint8_t kInflightRequests = 48;  // places for them in the guest's memory

}  // namespace sluice::vhost
