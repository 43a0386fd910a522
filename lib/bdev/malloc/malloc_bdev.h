// The malloc bdev: a disk in the memory of the process, lost with it. For tests, and for scratch disks.
//
// Memory is taken as it is written and given back by discard; nothing is reserved in advance, and no huge pages are
// needed, though transparent ones are asked for. Large requests are worked off in slices, so that the copying and
// zeroing of one never holds up the others of its reactor.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "lib/base/result.h"
#include "lib/base/uuid.h"

namespace sluice {

class Bdev;

inline constexpr const char* kMallocProductName = "Malloc disk";

struct MallocBdevOptions {
  std::string name;
  Uuid uuid;  // nil: a random one
  uint64_t num_blocks = 0;
  uint32_t block_size_bytes = 512;          // a power of two, 512 to 65,536
  uint32_t physical_block_size_bytes = 0;   // a power of two, the block size at least; 0: the block size
  uint32_t optimal_io_boundary_blocks = 0;  // reads and writes are split at its multiples; 0: none
};

// Errors: EINVAL (parameters, or a size beyond 2^63 bytes); ENOMEM.
Result<std::unique_ptr<Bdev>> create_malloc_bdev(const MallocBdevOptions& options);

}  // namespace sluice
