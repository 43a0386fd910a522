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
// Zeroes that are written at a time, where a bdev knows no write zeroes.
inline constexpr uint64_t kZeroesBytes = uint64_t{1} << 20;
// A chain's buffers, once translated: a buffer may lie in several regions, but not in very many.
inline constexpr uint32_t kMaxSegments = 2 * kMaxChainLength;
// Guest memory that one front end may have mapped, and all together: address space is the process's, and finite.
inline constexpr uint64_t kMaxGuestBytes = uint64_t{16} << 40;
inline constexpr uint64_t kMaxMappedBytes = uint64_t{64} << 40;
// A log of written pages: a bit for each page of as much.
inline constexpr uint64_t kMaxDirtyLogBytes = kMaxMappedBytes / kLogPageSize / 8;
// How long the end of a device state may be waited for: when it is asked for, it should have come.
inline constexpr uint64_t kStateTimeoutNs = 1'000'000'000;
// What all share must not be used up by those who take much of it. Beyond these a front end gets more only while there
// is plenty: of the descriptors and the address space less than three quarters in use, of the mappings half.
inline constexpr uint32_t kFewQueues = 8;
inline constexpr uint32_t kFewRegions = kMaxRegions;
inline constexpr uint64_t kSmallGuestBytes = uint64_t{64} << 30;
inline constexpr uint64_t kMaxMappedBytesOfLarge = kMaxMappedBytes / 4 * 3;
// Memory maps of the past that a queue keeps for requests in flight; one more, and the oldest has to end first.
inline constexpr uint32_t kMaxMapsInUse = 4;
// Requests one poll of a queue takes, so that the other queues of the thread get their turn.
inline constexpr uint32_t kQueueBudget = 64;
// And bytes: a block device may copy them there and then.
inline constexpr uint64_t kQueueBudgetBytes = 4 << 20;
// Fewer than this are not worth an update of the used index of their own.
inline constexpr uint32_t kQueueBatch = 16;
// Messages one session handles before others get their turn; one that changes the memory counts as many as this.
inline constexpr uint32_t kMessageBudget = 16;
// After a failure to accept a front end (no descriptor is free, say).
inline constexpr uint64_t kAcceptRetryNs = 100'000'000;
// A call is held back only while so many requests are in flight: with fewer, the driver may be waiting for it.
inline constexpr uint32_t kCoalescingDepth = 4;
// How often a queue's rate is looked at, for that.
inline constexpr uint64_t kCoalescingEpochNs = 10'000'000;
inline constexpr uint64_t kMaxCoalescingNs = 10'000'000;
// A ring that was given no kick descriptor is looked at so soon when it is not polled, and half as often after each
// look in vain.
inline constexpr uint64_t kKicklessPeriodNs = 200'000;
inline constexpr uint64_t kMaxKicklessPeriodNs = 64 * kKicklessPeriodNs;

static_assert(kMaxQueues <= kVringIndexMask + 1);
static_assert(kQueueBatch <= kQueueBudget);
static_assert(kMaxQueueSize <= kMaxSplitQueueSize && kMaxQueueSize <= kMaxPackedQueueSize);
static_assert(kSegMax + 2 <= kMaxChainLength);
static_assert(kMaxGuestBytes <= kMaxMappedBytesOfLarge);
static_assert(kFewQueues <= kMaxQueues && kFewRegions <= kMaxMemSlots);

}  // namespace sluice::vhost
