// What one front end may have of everything.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lib/virtio/virtio.h"
#include "lib/virtio/wire.h"

namespace sluice::vhost {

inline constexpr uint32_t kMaxQueues = 64;
inline constexpr uint32_t kMaxQueueSize = 1024;
// Descriptors of one request, through an indirect table or not.
inline constexpr uint32_t kMaxChainLength = 1024;
// Data bytes of one request.
inline constexpr uint64_t kMaxRequestBytes = uint64_t{1} << 30;
// SEG_MAX: with header and status it fits the smallest usual ring (128) without indirect descriptors.
inline constexpr uint32_t kSegMax = 126;
// Segments of one discard or write zeroes request, and sectors of one of them.
inline constexpr uint32_t kMaxDiscardSegments = 16;
inline constexpr uint32_t kMaxDiscardSectors = 1U << 22;
// Requests one poll of a queue takes, so that the other queues of the thread get their turn.
inline constexpr uint32_t kQueueBudget = 64;
// Messages one session handles before others get their turn.
inline constexpr uint32_t kMessageBudget = 16;
// A ring that was given no kick descriptor is looked at this often when it is not polled.
inline constexpr uint64_t kKicklessPeriodNs = 200'000;

static_assert(kMaxQueues <= kVringIndexMask + 1);
static_assert(kMaxQueueSize <= kMaxSplitQueueSize);
static_assert(kSegMax + 2 <= kMaxChainLength);

}  // namespace sluice::vhost
