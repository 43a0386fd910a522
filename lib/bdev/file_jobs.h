// FileJobs: the requests of one host to files that have no asynchronous form: discard, write zeroes, and flush where
// the kernel cannot do it asynchronously. They run on a BlockingPool, large ones in slices.
//
// Thread:    the host's OS thread.
// Ownership: borrows the pool, and the requests, which are those of FileChannels. Requires: none is left when it is
//            destroyed (checked).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "lib/base/intrusive_list.h"
#include "lib/bdev/block_io.h"
#include "lib/bdev/blocking_pool.h"
#include "lib/thread/thread_host.h"

namespace sluice {

class FileBackend;

class FileJobs {
 public:
  // Calls that the pool holds at a time for this host; the others wait here.
  static constexpr size_t kJobs = 4;

  FileJobs(ThreadHost& host, BlockingPool& pool);
  FileJobs(const FileJobs&) = delete;
  FileJobs& operator=(const FileJobs&) = delete;
  ~FileJobs();

  // Takes a discard, write zeroes or flush; completes it.
  void submit(BlockIo& io);

 private:
  struct Job : BlockingJob {
    FileJobs* owner = nullptr;
    BlockIo* io = nullptr;
    FileBackend* file = nullptr;
    uint64_t done_bytes = 0;
    int error = 0;
  };

  void start(Job& job, BlockIo& io);
  static bool execute(BlockingJob& base);
  void on_done(Job& job);

  BlockingPool& pool_;
  std::array<Job, kJobs> jobs_;
  Fifo<Work> free_;
  Fifo<Work> waiting_;
};

}  // namespace sluice
