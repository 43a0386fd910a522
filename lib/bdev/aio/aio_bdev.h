// The aio bdev: a file or a block device of the host, through the kernel's asynchronous I/O (libaio).
//
// Requests go past the page cache (O_DIRECT) where the file system can do that, and through it elsewhere, on tmpfs for
// example. Flush is asynchronous too; discard and write zeroes run on the threads of a BlockingPool. All aio bdevs of a
// reactor share one kernel context, one completion queue and one notification.
#pragma once

#include <memory>

#include "lib/base/result.h"
#include "lib/bdev/blocking_pool.h"
#include "lib/bdev/file_bdev.h"

namespace sluice {

class Bdev;
struct AioSystem;

inline constexpr const char* kAioProductName = "AIO disk";

// Makes aio bdevs.
// Thread:    the application's lightweight thread, or before it runs.
// Ownership: outlives its bdevs and, as it is the key of their queues, the hosts' use of them.
class AioModule {
 public:
  // `system`: the system calls to use instead of the kernel's, for tests; outlives the hosts.
  explicit AioModule(const AioSystem* system = nullptr);
  AioModule(const AioModule&) = delete;
  AioModule& operator=(const AioModule&) = delete;

  // The bdev holds the file. Errors: those of FileBackend::open().
  Result<std::unique_ptr<Bdev>> create(const FileBdevOptions& options);

 private:
  friend class AioBdev;

  const AioSystem& system_;
  BlockingPool pool_;
};

}  // namespace sluice
