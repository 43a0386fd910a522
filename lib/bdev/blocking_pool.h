// BlockingPool: a few OS threads for system calls that have no asynchronous form (fallocate, BLKDISCARD), so that these
// never hold up a reactor. Threads are started when there is work and end after a while without.
//
// Thread:    submit() on any; BlockingJob::execute on one of the pool's; BlockingJob::run on the job's target.
// Ownership: borrows the jobs. Requires: no job is left when it is destroyed (checked).
// Cost:      a lock and a wake-up per job, and two more to come back: only for calls that are slower than that.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>  // check-layers: allow os-thread (blocking calls need threads that may block)
#include <cstddef>
#include <mutex>
#include <thread>  // check-layers: allow os-thread (blocking calls need threads that may block)

#include "lib/base/cpu_mask.h"
#include "lib/base/intrusive_list.h"
#include "lib/thread/work.h"

namespace sluice {

// One blocking call, or a series of them. `target` and `run` say who is told of its end.
struct BlockingJob : Message {
  // Does a part of the work. False: there is more; called again after the jobs that wait.
  bool (*execute)(BlockingJob&) = nullptr;
  // Set by the pool: 0, or the errno for which it could not execute the job.
  int pool_error = 0;
};

class BlockingPool {
 public:
  static constexpr size_t kMaxThreads = 2;

  // Its threads run on the cores that the calling thread may use: to be made before that is pinned to one.
  explicit BlockingPool(std::chrono::nanoseconds idle = std::chrono::seconds(5));
  BlockingPool(const BlockingPool&) = delete;
  BlockingPool& operator=(const BlockingPool&) = delete;
  ~BlockingPool();

  void submit(BlockingJob& job);
  // Returns once the pool's threads have let go of all jobs that have come back: a host calls it before it ends, as one
  // of them may still be waking it.
  void settle();
  // How many threads there are now.
  size_t thread_count() const;

 private:
  struct Worker {
    std::thread thread;
    bool running = false;
  };

  int start_worker(Worker& worker);
  void work(Worker& self);
  void enqueue(BlockingJob& job);
  void hand_back(BlockingJob& job, std::unique_lock<std::mutex>& lock);

  // Constant after construction.
  const std::chrono::nanoseconds idle_limit_;
  const CpuMask cpus_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::condition_variable sent_;
  Fifo<Work> queue_;
  size_t queued_ = 0;
  size_t idle_count_ = 0;
  size_t thread_count_ = 0;
  size_t sending_ = 0;  // threads that are handing a job back
  bool stopping_ = false;
  std::array<Worker, kMaxThreads> workers_;
};

}  // namespace sluice
