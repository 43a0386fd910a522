// The aio bdev: a file or a block device of the host, through the kernel's asynchronous I/O (libaio).
//
// Requests go past the page cache (O_DIRECT) where the file system can do that, and through it elsewhere, on tmpfs for
// example. Flush is asynchronous too; discard and write zeroes run on the threads of a BlockingPool. All aio bdevs of a
// reactor share one kernel context, one completion queue and one notification.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "lib/base/result.h"
#include "lib/base/uuid.h"
#include "lib/bdev/blocking_pool.h"

namespace sluice {

class Bdev;
class BdevManager;
struct AioSystem;

inline constexpr const char* kAioProductName = "AIO disk";

struct AioBdevOptions {
  std::string name;
  std::string filename;
  Uuid uuid;  // nil: a random one
  uint32_t block_size_bytes =
      0;  // a power of two, 512 to 65,536; 0: the device's own, and for a file the least it takes
  bool readonly = false;
  bool fallocate = false;  // has no effect: discard and write zeroes are offered wherever they work
};

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
  Result<std::unique_ptr<Bdev>> create(const AioBdevOptions& options);

  // FileBdev::rescan(). Errors: ENODEV (not an aio bdev), and those of it.
  Result<> rescan(BdevManager& bdevs, Bdev& bdev);

 private:
  friend class AioBdev;

  const AioSystem& system_;
  BlockingPool pool_;
};

// What an aio bdev was made from; nullptr for any other bdev.
const AioBdevOptions* aio_options(const Bdev& bdev);

}  // namespace sluice
