#include "lib/bdev/blocking_pool.h"

#include <pthread.h>  // check-layers: allow os-thread (blocking calls need threads that may block)
#include <sched.h>

#include <algorithm>
#include <csignal>
#include <system_error>

#include "lib/base/check.h"
#include "lib/thread/lw_thread.h"

namespace sluice {
namespace {

// The calling thread's signals, blocked: what it starts meanwhile never runs the process's handlers.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    CHECK(::pthread_sigmask(SIG_SETMASK, &all, &before_) == 0);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked() { CHECK(::pthread_sigmask(SIG_SETMASK, &before_, nullptr) == 0); }

 private:
  sigset_t before_{};
};

// A thread inherits its maker's affinity: the one core of a reactor, which it would take turns with.
void run_anywhere(const CpuMask& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (uint32_t cpu = 0; cpu < CPU_SETSIZE && cpu < CpuMask::kMaxCpus; ++cpu) {
    if (cpus.test(cpu)) CPU_SET(cpu, &set);
  }
  // Only costs speed when it fails.
  ::sched_setaffinity(0, sizeof(set), &set);
}

}  // namespace

BlockingPool::BlockingPool(std::chrono::nanoseconds idle) : idle_limit_(idle), cpus_(CpuMask::available()) {}

BlockingPool::~BlockingPool() {
  {
    const std::lock_guard lock(mutex_);
    CHECK(queue_.empty());
    stopping_ = true;
  }
  changed_.notify_all();
  for (Worker& worker : workers_) {
    if (worker.thread.joinable()) worker.thread.join();
  }
  CHECK(queue_.empty());
}

void BlockingPool::submit(BlockingJob& job) {
  const std::lock_guard lock(mutex_);
  job.pool_error = 0;
  enqueue(job);
  if (idle_count_ >= queued_) {
    changed_.notify_one();
    return;
  }
  const auto stopped = std::ranges::find(workers_, false, &Worker::running);
  if (stopped == workers_.end()) return;
  const int error = start_worker(*stopped);
  if (error == 0 || thread_count_ > 0) return;
  // Nobody will take it, and nothing else is queued.
  queue_.pop_front();
  --queued_;
  job.pool_error = error;
  job.target->send(job);
}

size_t BlockingPool::thread_count() const {
  const std::lock_guard lock(mutex_);
  return thread_count_;
}

void BlockingPool::enqueue(BlockingJob& job) {
  queue_.push_back(job);
  ++queued_;
}

int BlockingPool::start_worker(Worker& worker) {
  // One that has ended by itself has left the mutex, so this does not wait.
  if (worker.thread.joinable()) worker.thread.join();
  const SignalsBlocked blocked;
  try {
    worker.thread = std::thread([this, &worker] { work(worker); });
  } catch (const std::system_error& error) {
    return error.code().value();
  }
  worker.running = true;
  ++thread_count_;
  return 0;
}

void BlockingPool::hand_back(BlockingJob& job, std::unique_lock<std::mutex>& lock) {
  ++sending_;
  // Without the lock: the target's host may be waiting for it, with a full message ring.
  lock.unlock();
  job.target->send(job);  // from here on the job may be gone
  lock.lock();
  if (--sending_ == 0) sent_.notify_all();
}

void BlockingPool::settle() {
  std::unique_lock lock(mutex_);
  sent_.wait(lock, [this] { return sending_ == 0; });
}

void BlockingPool::work(Worker& self) {
  ::pthread_setname_np(::pthread_self(), "blocking");
  run_anywhere(cpus_);
  std::unique_lock lock(mutex_);
  for (;;) {
    if (Work* next = queue_.pop_front()) {
      --queued_;
      lock.unlock();
      auto& job = static_cast<BlockingJob&>(*next);
      const bool finished = job.execute(job);
      lock.lock();
      if (finished) {
        hand_back(job, lock);
      } else {
        enqueue(job);
      }
      continue;
    }
    if (stopping_) break;
    ++idle_count_;
    const bool expired = changed_.wait_for(lock, idle_limit_) == std::cv_status::timeout;
    --idle_count_;
    if (expired && queue_.empty()) break;
  }
  self.running = false;
  --thread_count_;
}

}  // namespace sluice
