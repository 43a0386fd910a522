// The uring bdev: a file or a block device of the host, through the kernel's io_uring.
//
// Requests go past the page cache (O_DIRECT) where the file system can do that, and through it elsewhere. Discard and
// write zeroes run on the threads of a BlockingPool. All uring bdevs of a reactor share one io_uring.
// Needs: Linux 6.1, with io_uring not disabled; the aio bdev does the same without.
#pragma once

#include <memory>

#include "lib/base/result.h"
#include "lib/bdev/blocking_pool.h"
#include "lib/bdev/file_bdev.h"

namespace sluice {

class Bdev;
struct UringSystem;

inline constexpr const char* kUringProductName = "URING bdev";

// Makes uring bdevs.
// Thread:    the application's lightweight thread, or before it runs.
// Ownership: outlives its bdevs and, as it is the key of their rings, the hosts' use of them.
class UringModule {
 public:
  // `system`: the system calls to use instead of the kernel's, for tests; outlives the hosts.
  explicit UringModule(const UringSystem* system = nullptr);
  UringModule(const UringModule&) = delete;
  UringModule& operator=(const UringModule&) = delete;

  // The bdev holds the file. Errors: ENOSYS, EPERM, EINVAL, ENOMEM (no io_uring can be made, and why), found before the
  // file is touched; those of FileBackend::open().
  Result<std::unique_ptr<Bdev>> create(const FileBdevOptions& options);

 private:
  friend class UringBdev;

  const UringSystem& system_;
  BlockingPool pool_;
};

}  // namespace sluice
