// crc32c: the checksum of what is kept on disks. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace sluice {

uint32_t crc32c(std::span<const std::byte> bytes);

}  // namespace sluice
