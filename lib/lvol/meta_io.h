// MetaIo: how the owner of a store reads and writes pages of its base bdev.
// Thread: the store's owner, whose channel it is. Buffers live until the task is over.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "lib/base/result.h"
#include "lib/bdev/bdev_channel.h"
#include "lib/lvol/layout.h"
#include "lib/thread/task.h"

namespace sluice::lvol {

class MetaIo {
 public:
  // Borrows the channel.
  explicit MetaIo(BdevChannel& channel) : channel_(channel) {}

  // Whole pages from `first` on. `bytes` is a multiple of kPageBytes, aligned to a page.
  // Errors: those of the device: EIO, ENODEV (it has gone).
  Task<Result<>> read(PageNumber first, std::span<std::byte> bytes);
  Task<Result<>> write(PageNumber first, std::span<const std::byte> bytes);
  // What was written before is durable. On a device that cannot flush, that is so anyway.
  Task<Result<>> flush();

  BdevChannel& channel() const { return channel_; }

 private:
  Task<Result<>> run(IoType type, uint64_t offset_bytes, std::span<std::byte> bytes);

  BdevChannel& channel_;
};

}  // namespace sluice::lvol
