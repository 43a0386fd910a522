// transfer(): one read or write, or a flush, as a task.
#pragma once

#include <cstdint>
#include <span>

#include "lib/bdev/bdev_channel.h"
#include "lib/thread/task.h"

namespace sluice::lvol {

// Thread: the channel's. `bytes` lives until the task is over; of a write it is only read.
Task<IoStatus> transfer(BdevChannel& channel, IoType type, uint64_t offset_bytes, std::span<std::byte> bytes);

}  // namespace sluice::lvol
