#include "lib/base/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <climits>

namespace sluice {

// isa-l leaves it to its caller to invert the register before and after.
uint32_t crc32c(std::span<const std::byte> bytes) {
  auto* next = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(bytes.data()));
  uint32_t crc = ~0U;
  for (size_t left = bytes.size(); left > 0;) {
    const size_t part = std::min<size_t>(left, INT_MAX);
    crc = crc32_iscsi(next, static_cast<int>(part), crc);
    next += part;
    left -= part;
  }
  return ~crc;
}

}  // namespace sluice
