// IoBuffer: memory for an initiator's I/O, got from Bdev::allocate_buffer(): where a device has memory of its own that
// it can use without copying (shared with a vhost-user back end, say), it is that.
//
// Thread:    any. Allocating may take a lock and system calls: at the start of a job, not per request.
// Ownership: owns its bytes, which stay valid as long as any copy of the IoBuffer, also after the device has gone.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "lib/base/result.h"

namespace sluice {

class IoBuffer {
 public:
  static constexpr size_t kAlignment = 4096;

  IoBuffer() = default;
  // `owner` gives the bytes back when its last copy goes.
  IoBuffer(std::span<std::byte> bytes, std::shared_ptr<const void> owner) : bytes_(bytes), owner_(std::move(owner)) {}

  // Plain memory of the process. Errors: ENOMEM.
  static Result<IoBuffer> allocate(size_t size_bytes);

  // Aligned to kAlignment. The contents of a new one are not defined.
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
  std::shared_ptr<const void> owner_;
};

}  // namespace sluice
