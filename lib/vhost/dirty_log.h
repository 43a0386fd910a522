// DirtyLog: the bitmap in which the front end, while it migrates its guest, is told which guest pages were written.
//
// Thread:     any; also several at once.
// Ownership:  shared by the session and its queues. Owns the mapping.
// Invariants: nothing beyond the size that the front end has given is touched; if it cuts off the file, the process
//             lives on, and lost() tells.
// Source:     Vhost-user Protocol, "Migration", "Log description".
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"
#include "lib/vhost/memory_guard.h"
#include "lib/virtio/wire.h"

namespace sluice::vhost {

class DirtyLog {
  struct Passkey {};

 public:
  // Maps what SET_LOG_BASE describes. Errors: EINVAL (empty, larger than its file, or no file in memory or on disk),
  // EFBIG, those of fstat and mmap.
  static Result<std::shared_ptr<DirtyLog>> map(const UniqueFd& fd, const LogDescription& description);

  DirtyLog(Passkey, void* address, size_t mapped_bytes, size_t lead_bytes, const LogDescription& description,
           UniqueFd file);
  DirtyLog(const DirtyLog&) = delete;
  DirtyLog& operator=(const DirtyLog&) = delete;
  ~DirtyLog();

  // Marks the pages of guest physical [address, address + length), which have been written already: once a page is
  // marked, the front end may copy it at any time. Pages that the log has no room for are left out, and overrun()
  // tells.
  void mark(uint64_t guest_address, uint64_t length_bytes);

  uint64_t size_bytes() const { return description_.size; }
  // What it was made from, for another process.
  const LogDescription& description() const { return description_; }
  const UniqueFd& file() const { return file_; }
  bool overrun() const { return overrun_.load(std::memory_order_relaxed); }
  bool lost() const { return guard_->lost(); }

 private:
  void* const address_;
  const size_t mapped_bytes_;
  uint8_t* const bits_;
  const LogDescription description_;
  const UniqueFd file_;
  std::unique_ptr<MemoryGuard> guard_;
  std::atomic<bool> overrun_ = false;
};

}  // namespace sluice::vhost
