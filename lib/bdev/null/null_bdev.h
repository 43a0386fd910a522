// The null bdev: completes everything at once. Writes are dropped, and reads leave the buffers as they are: for
// measuring what lies above.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "lib/base/result.h"
#include "lib/base/uuid.h"

namespace sluice {

class Bdev;
class BdevManager;

inline constexpr const char* kNullProductName = "Null disk";

struct NullBdevOptions {
  std::string name;
  Uuid uuid;  // nil: a random one
  uint64_t num_blocks = 0;
  uint32_t block_size_bytes = 512;         // a power of two, 512 at least
  uint32_t physical_block_size_bytes = 0;  // a power of two, the block size at least; 0: the block size
};

// Errors: EINVAL (parameters, or a size beyond 2^63 bytes).
Result<std::unique_ptr<Bdev>> create_null_bdev(const NullBdevOptions& options);

// Gives a device that is in `bdevs` a new size, and tells its users.
// Errors, device unchanged: ENODEV (not a null bdev); EINVAL (smaller than it is, or beyond 2^63 bytes).
Result<> resize_null_bdev(BdevManager& bdevs, Bdev& bdev, uint64_t new_size_mib);

}  // namespace sluice
