// FileQueue: the requests of one host to the files of one module, whatever interface of the kernel carries them: all
// those of a turn of the reactor, of whatever lightweight threads, are handed over with one system call.
//
// Thread:     the host's OS thread.
// Ownership:  the host owns it (HostLocal). Borrows the requests, which are those of FileChannels, and their files.
// Invariants: (1) requests start in the order they were submitted. (2) the poller is hot only while something is in
//             flight, in any mode: an idle queue costs nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lib/base/intrusive_list.h"
#include "lib/base/log.h"
#include "lib/base/result.h"
#include "lib/bdev/block_io.h"
#include "lib/bdev/file_jobs.h"
#include "lib/thread/poller.h"
#include "lib/thread/thread_host.h"
#include "lib/thread/timer.h"

namespace sluice {

class FileQueue : public HostLocal, protected Poller {
 public:
  // Requests that the kernel holds at a time; others wait here.
  static constexpr uint32_t kSlots = 512;
  // Completions that are taken at a time.
  static constexpr size_t kBatch = 64;

  FileQueue(const FileQueue&) = delete;
  FileQueue& operator=(const FileQueue&) = delete;
  ~FileQueue() override;

  // Takes a read, write, flush, discard or write zeroes; completes it.
  void submit(BlockIo& io);
  // Takes out what the channel has here that waits for the kernel, in order.
  void withdraw(const BdevChannel& channel, Fifo<Work>& withdrawn);

 protected:
  // `name` is static text.
  FileQueue(const char* name, ThreadHost& host, BlockingPool& pool);

  ThreadHost& host() const { return host_; }
  bool has_pending() const { return !pending_.empty(); }
  // What a system call may carry out at once, as buffered requests are: so much, and no more holds up the reactor.
  class Budget {
   public:
    bool spent() const { return bytes_ >= kMaxBytes; }

   private:
    friend class FileQueue;
    static constexpr uint64_t kMaxBytes = 1U << 20;
    uint64_t bytes_ = 0;
  };
  // The first of the requests that wait, taken out; nullptr if there is none, or none that the budget allows.
  BlockIo* take_pending(Budget& budget);
  // Puts it in front of all others.
  void put_back(BlockIo& io) { pending_.push_front(io); }
  // Calls start_pending() again when the kernel may have what it was short of.
  void retry_later();
  bool retrying() const { return retry_.armed(); }
  // Ends a request that the kernel has carried out; `result` is a number of bytes or a negative errno.
  static void finish(BlockIo& io, int64_t result);

  // Held by the kernel.
  uint32_t in_flight_ = 0;
  FileJobs jobs_;

 private:
  // Opened with the first request, again with the next one if that failed. The descriptor that notifies while cold.
  virtual bool is_open() const = 0;
  virtual Result<int> open() = 0;
  // Hands requests over to the kernel, which has been opened.
  virtual void start_pending() = 0;
  // Takes completions, kBatch at most, and returns how many.
  virtual size_t take_completions() = 0;

  bool poll() final;
  void start();

  ThreadHost& host_;
  LogLimiter open_failures_;
  Fifo<Work> pending_;
  struct StartWork : Work {
    FileQueue* queue = nullptr;
  } start_work_;
  bool start_queued_ = false;
  Timer retry_;
};

}  // namespace sluice
