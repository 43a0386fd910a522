// What an input of vhost_control_fuzz says: steps of a front end, one after the other. Each is
//   request (1 byte), how (1), descriptors (1), length of the payload (1), payload
// where the request is a vhost-user one or a ControlStep, `how` has ControlHow flags, the low three bits of
// `descriptors` say how many there are (7: more than a message may have) and the others of which kind the first is;
// the next ones are of the next kinds.
#pragma once

#include <cstdint>

namespace sluice::vhost {

// Not messages: `how` is their argument.
enum class ControlStep : uint8_t {
  kKick = 0xf0,         // the eventfd is written to
  kTruncate = 0xf1,     // the guest's memory is cut off at `how` pages
  kPass = 0xf2,         // time passes: 2^(how % 36) ns
  kRawBytes = 0xf3,     // the payload is sent as it is
  kFillEvent = 0xf4,    // the eventfd is made blocking and full
  kResize = 0xf5,       // the bdev has `how` % 2 + 1 times its size: the front end is told
  kReadNothing = 0xf6,  // from now on replies are left unread
};

enum ControlHow : uint8_t {
  kHowNeedReply = 1,
  kHowOtherVersion = 2,
  kHowReply = 4,
  kHowLonger = 8,       // the header says one byte more than there is
  kHowShorter = 16,     // and one byte less
  kHowHalf = 32,        // only half of it is sent
  kHowBeforeTurn = 64,  // the next step comes before the target's turn
};

enum class ControlFd : uint8_t {
  kMemory,  // 64 KiB, with rings and requests in it: see vhost_control_memory.h
  kEvent,
  kPipe,
  kSocket,
  kNull,
  kSmallMemory,
  kEmptyMemory,
  kSealedMemory,
  kDirectory,
  kEpoll,
  kFile,  // on no tmpfs, if there is such a folder
  kReadOnlyMemory,
  kOwnSocket,  // the front end's own end of the connection
};
inline constexpr uint8_t kControlFds = 13;
inline constexpr uint8_t kTooManyFds = 7;

// The guest's memory, of both kinds of rings. `kRingUser` is where seeds say it is in the front end's address space.
inline constexpr uint64_t kControlMemoryBytes = 64 << 10;
inline constexpr uint64_t kControlUser = 0x7f00'0000'0000;
inline constexpr uint16_t kControlRingSize = 8;
inline constexpr uint64_t kControlDescs = 0x0000;
inline constexpr uint64_t kControlAvail = 0x1000;
inline constexpr uint64_t kControlUsed = 0x2000;
inline constexpr uint64_t kControlPacked = 0x3000;
inline constexpr uint64_t kControlDriverEvent = 0x4000;
inline constexpr uint64_t kControlDeviceEvent = 0x4010;
inline constexpr uint64_t kControlHeaders = 0x5000;
inline constexpr uint64_t kControlData = 0x6000;

}  // namespace sluice::vhost
