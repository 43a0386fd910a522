// AioGroup: the queue of all aio bdevs on one host: one kernel context, one completion poller. So thousands of channels
// cost one context, and requests of many lightweight threads reach the kernel in one system call.
//
// Thread:     the host's OS thread.
// Ownership:  the host owns it (HostLocal). Borrows the requests, and through their channels the files.
// Invariants: (1) requests start in the order they were submitted. (2) The poller is hot only while something is in
//             flight, in any mode: an idle group costs nothing. (3) The kernel notifies of each request that was
//             submitted in a mode that may sleep; while one that was submitted in poll mode is in flight, the group
//             does not sleep.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "lib/base/intrusive_list.h"
#include "lib/base/log.h"
#include "lib/bdev/aio/aio_context.h"
#include "lib/bdev/block_io.h"
#include "lib/bdev/file_jobs.h"
#include "lib/thread/poller.h"
#include "lib/thread/thread_host.h"
#include "lib/thread/timer.h"

namespace sluice {

class AioGroup final : public HostLocal, private Poller {
 public:
  // Requests that the kernel holds at a time; others wait here. 128 such groups fit into the usual fs.aio-max-nr.
  static constexpr size_t kSlots = 512;

  AioGroup(ThreadHost& host, const AioSystem& system, BlockingPool& pool);
  ~AioGroup() override;

  // Takes a request of an AioChannel: read, write, flush, discard, write zeroes.
  void submit(BlockIo& io);

 private:
  struct Slot;
  struct Batch;
  struct SubmitWork : Work {
    AioGroup* group = nullptr;
  };

  bool poll() override;
  bool pure_poll() override { return context_.has_completions(); }
  bool try_sleep() override { return silent_in_flight_ == 0 && !pure_poll(); }
  void wake_up() override {}

  bool open_context();
  void submit_pending();
  void fill(Batch& batch);
  void take_back(Slot& slot);
  void refuse_first(int error);
  void prepare(Slot& slot, BlockIo& io) const;
  void on_completion(const AioCompletion& completion);

  ThreadHost& host_;
  FileJobs jobs_;
  AioContext context_;
  LogLimiter open_failures_;

  Fifo<Work> pending_;
  SubmitWork submit_work_;
  bool submit_queued_ = false;
  Timer retry_;
  std::unique_ptr<Slot[]> slots_;
  Slot* free_slots_ = nullptr;
  uint32_t in_flight_ = 0;
  uint32_t silent_in_flight_ = 0;
};

}  // namespace sluice
