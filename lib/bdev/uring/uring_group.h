// UringGroup: the queue of all uring bdevs on one host: one io_uring, one completion poller. Requests of many
// lightweight threads reach the kernel in one system call.
//
// Thread:     the host's OS thread.
// Ownership:  the host owns it (HostLocal). Borrows the requests, and through their channels the files.
// Invariants: (1) requests start in the order they were submitted. (2) The poller is hot only while something is in
//             flight, in any mode: an idle group costs nothing. (3) The kernel notifies only while the poller is cold
//             and something is in flight.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lib/base/intrusive_list.h"
#include "lib/base/log.h"
#include "lib/bdev/block_io.h"
#include "lib/bdev/file_jobs.h"
#include "lib/bdev/uring/uring_ring.h"
#include "lib/thread/poller.h"
#include "lib/thread/thread_host.h"
#include "lib/thread/timer.h"

namespace sluice {

class FileBackend;

class UringGroup final : public HostLocal, private Poller {
 public:
  // Requests that the ring holds at a time; others wait here.
  static constexpr uint32_t kSlots = 512;

  UringGroup(ThreadHost& host, const UringSystem& system, BlockingPool& pool);
  ~UringGroup() override;

  // Takes a request of a UringChannel: read, write, flush, discard, write zeroes.
  void submit(BlockIo& io);

  // For channels: what the ring calls their file, from their first request to their end.
  UringFile add_file(const FileBackend& file);
  void release_file(const UringFile& file) { ring_.remove_file(file); }

 private:
  struct SubmitWork : Work {
    UringGroup* group = nullptr;
  };

  bool poll() override;
  bool pure_poll() override { return ring_.has_completions(); }
  bool try_sleep() override;
  void wake_up() override { ring_.set_notifications(false); }

  bool open_ring();
  void submit_pending();
  void fill();
  void retry_later();
  void on_completion(const UringCompletion& completion);

  ThreadHost& host_;
  FileJobs jobs_;
  UringRing ring_;
  LogLimiter open_failures_;

  Fifo<Work> pending_;
  SubmitWork submit_work_;
  bool submit_queued_ = false;
  Timer retry_;
  uint32_t prepared_ = 0;   // in the ring, not yet taken by the kernel
  uint32_t in_flight_ = 0;  // taken by the kernel
};

}  // namespace sluice
