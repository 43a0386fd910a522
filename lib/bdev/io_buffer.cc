#include "lib/bdev/io_buffer.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>

namespace sluice {

Result<IoBuffer> IoBuffer::allocate(size_t size_bytes) {
  const size_t rounded = std::max(kAlignment, (size_bytes + kAlignment - 1) / kAlignment * kAlignment);
  void* memory = rounded < size_bytes ? nullptr : std::aligned_alloc(kAlignment, rounded);
  if (memory == nullptr) return fail(ENOMEM, "there is no memory for an I/O buffer");
  return IoBuffer({static_cast<std::byte*>(memory), size_bytes}, std::shared_ptr<void>(memory, std::free));
}

}  // namespace sluice
