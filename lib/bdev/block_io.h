// BlockIo: one request to a block device. It carries itself: embedded in its submitter's own request, linked into every
// queue it passes, never copied.
//
// Thread:    submitted on a lightweight thread; completes there exactly once: work of that thread calls `run`, never
//            submit().
// Ownership: the submitter's. Between submit and completion the request, its iovec array and its buffers belong to the
//            device.
#pragma once

#include <sys/uio.h>

#include <cstdint>

#include "lib/thread/work.h"

namespace sluice {

class BdevChannel;

enum class IoType : uint8_t { kRead, kWrite, kFlush, kDiscard, kWriteZeroes, kReset };
inline constexpr size_t kIoTypes = 6;
const char* to_string(IoType type);

enum class IoStatus : uint8_t {
  kOk,
  kFailed,       // the device reported an error
  kNoSpace,      // the backing store is full
  kUnsupported,  // the device cannot do this kind of I/O
  kInvalid,      // not a multiple of the block size, or beyond the end
  kReadOnly,     // would change a read-only device
  kRemoved,      // the device is gone
  kNoMemory,     // out of memory on the host
};
inline constexpr size_t kIoStatuses = 8;
const char* to_string(IoStatus status);
// From an errno of the operating system.
IoStatus io_status_from_errno(int code);

struct BlockIo : Message {
  // Set by the submitter, with `run` as what to call at completion.
  IoType type = IoType::kRead;
  bool may_unmap = false;      // write zeroes: the device may deallocate
  uint32_t iov_count = 0;      // read, write: the buffers, which add up to length_bytes
  const iovec* iov = nullptr;  //
  uint64_t offset_bytes = 0;   // a multiple of the block size
  uint64_t length_bytes = 0;   // a multiple of the block size; flush and reset: ignored

  // The result.
  IoStatus status = IoStatus::kOk;

  // The device's, between submit and completion.
  BdevChannel* channel = nullptr;
  uint64_t submit_ns = 0;
};

}  // namespace sluice
