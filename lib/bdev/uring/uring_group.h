// UringGroup: the queue of all uring bdevs on one host: one io_uring, one completion poller.
//
// Thread:     as FileQueue.
// Invariants: the kernel notifies only while the poller is cold and something is in flight.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lib/bdev/file_queue.h"
#include "lib/bdev/uring/uring_ring.h"

namespace sluice {

class FileBackend;

class UringGroup final : public FileQueue {
 public:
  UringGroup(ThreadHost& host, const UringSystem& system, BlockingPool& pool);
  ~UringGroup() override;

  // For channels: what the ring calls their file, from their first request to their end.
  UringFile add_file(const FileBackend& file);
  void release_file(const UringFile& file) { ring_.remove_file(file); }

 private:
  bool pure_poll() override { return ring_.has_completions(); }
  bool try_sleep() override;
  void wake_up() override { ring_.set_notifications(false); }

  bool is_open() const override { return ring_.is_open(); }
  Result<int> open() override;
  void start_pending() override;
  size_t take_completions() override;

  UringRing ring_;
  uint32_t prepared_ = 0;  // in the ring, not yet taken by the kernel
};

}  // namespace sluice
