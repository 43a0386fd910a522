// AioGroup: the queue of all aio bdevs on one host: one kernel context, one completion poller. So thousands of channels
// cost one context.
//
// Thread:     as FileQueue.
// Invariants: the kernel notifies of each request to a file with direct I/O that was submitted in a mode that may
//             sleep; while another one is in flight, the group does not sleep.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "lib/bdev/aio/aio_context.h"
#include "lib/bdev/file_queue.h"

namespace sluice {

// 128 such groups fit into the usual fs.aio-max-nr.
class AioGroup final : public FileQueue {
 public:
  AioGroup(ThreadHost& host, const AioSystem& system, BlockingPool& pool);
  ~AioGroup() override;

 private:
  struct Slot;
  struct Batch;

  bool pure_poll() override { return context_.has_completions(); }
  bool try_sleep() override { return silent_in_flight_ == 0 && !pure_poll(); }
  void wake_up() override {}

  bool is_open() const override { return context_.is_open(); }
  Result<int> open() override;
  void start_pending() override;
  size_t take_completions() override;

  void fill(Batch& batch);
  void take_back(Slot& slot);
  void refuse_first(int error);
  void prepare(Slot& slot, BlockIo& io) const;
  void on_completion(const AioCompletion& completion);

  AioContext context_;
  std::unique_ptr<Slot[]> slots_;
  Slot* free_slots_ = nullptr;
  uint32_t silent_in_flight_ = 0;
};

}  // namespace sluice
