// FileBackend: an open file or block device: what it can do, and the operations on it that block.
// Thread: any, also at the same time.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"
#include "lib/bdev/bdev.h"

namespace sluice {

class FileBackend {
 public:
  // Opens the file and holds it, against any second opener, until this is destroyed.
  // Errors: those of open(2); EINVAL (neither a block device nor a regular file; block size; size not a positive
  // multiple of it); EBUSY (in use: by another bdev, another daemon, or a mounted file system).
  static Result<std::unique_ptr<FileBackend>> open(const std::string& filename, uint32_t block_size_bytes,
                                                   bool readonly);
  ~FileBackend();

  // Constant after construction.
  int fd() const { return fd_.get(); }
  // Requests go past the page cache; otherwise they are carried out while they are submitted.
  bool direct() const { return direct_; }
  bool can_discard() const { return can_discard_; }
  bool is_block_device() const { return block_device_; }
  const BdevLimits& limits() const { return limits_; }
  uint64_t opened_size_bytes() const { return opened_size_bytes_; }

  // The size now. Errors: EINVAL (not a positive multiple of the block size).
  Result<uint64_t> size_bytes() const;

  // Whether the kernel can flush it asynchronously, as far as is known.
  bool has_async_flush() const { return has_async_flush_.load(std::memory_order_relaxed); }
  void set_no_async_flush() { has_async_flush_.store(false, std::memory_order_relaxed); }

  // These block, and return 0 or an errno.
  int flush() const;
  int discard(uint64_t offset_bytes, uint64_t length_bytes) const;
  // May deallocate when `may_unmap`; otherwise the space stays allocated where the file system can do that.
  int write_zeroes(uint64_t offset_bytes, uint64_t length_bytes, bool may_unmap);
  // How much one call of discard() and write_zeroes() should cover, so that none keeps others waiting for long.
  static constexpr uint64_t kDiscardSliceBytes = 1U << 30;
  static constexpr uint64_t kZeroSliceBytes = 64U << 20;

 private:
  FileBackend() = default;

  Result<> open_fd(const std::string& filename, bool readonly);
  Result<> lock(const std::string& filename, bool readonly) const;
  Result<> find_limits(uint32_t block_size_bytes);
  bool is_in_memory() const;
  void find_discard(bool readonly);
  uint64_t queue_limit(const char* name) const;
  int zero_by_fallocate(int mode, uint64_t offset_bytes, uint64_t length_bytes) const;
  int zero_by_writing(uint64_t offset_bytes, uint64_t length_bytes) const;

  UniqueFd fd_;
  bool direct_ = false;
  bool block_device_ = false;
  uint64_t device_number_ = 0;
  uint32_t preferred_bytes_ = 0;
  bool can_discard_ = false;
  BdevLimits limits_;
  uint64_t opened_size_bytes_ = 0;
  std::atomic<bool> has_async_flush_ = true;
  std::atomic<bool> has_zero_range_ = true;
};

}  // namespace sluice
