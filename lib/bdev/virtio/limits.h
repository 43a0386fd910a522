// What one controller may have of everything.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lib/base/clock.h"
#include "lib/virtio/virtio.h"
#include "lib/virtio/wire.h"

namespace sluice::virtio {

inline constexpr uint32_t kMaxQueues = 64;
inline constexpr uint32_t kMinQueueSize = 8;
inline constexpr uint32_t kMaxQueueSize = 1024;
// Data segments of a request, whatever the back end would take: they and two more have an indirect table of a page.
inline constexpr uint32_t kMaxSegments = 254;
inline constexpr uint64_t kMaxTransferBytes = 1U << 20;

// Buffers that are not shared memory are copied through chunks of this size, of which each queue has as many as
// descriptors: 16 MiB with the usual 256, of which only what is used becomes memory.
inline constexpr uint32_t kBounceChunkBytes = 64 * 1024;
// For the buffers of submitters: they take memory only where they are used.
inline constexpr uint64_t kBufferBytes = 256U << 20;

// How long the back end may take for an answer.
inline constexpr uint64_t kAnswerNs = 5 * kNsPerSec;
// Between attempts to connect again: doubled from the first to the last.
inline constexpr uint64_t kFirstRetryNs = 100 * kNsPerMs;
inline constexpr uint64_t kLastRetryNs = kNsPerSec;
// How long requests in flight may take when the device is detached, before the back end is given up.
inline constexpr uint64_t kDetachNs = 5 * kNsPerSec;

static_assert(kMaxQueues <= vhost::kVringIndexMask + 1);
static_assert(kMaxQueueSize <= vhost::kMaxSplitQueueSize && kMaxQueueSize <= vhost::kMaxPackedQueueSize);
static_assert((kMaxSegments + 2) * sizeof(vhost::SplitDesc) == 4096);
static_assert(kMaxTransferBytes % kBounceChunkBytes == 0);
// Header, status and one segment at least.
static_assert(kMinQueueSize > 2);

}  // namespace sluice::virtio
