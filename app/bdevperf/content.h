// What verify writes: bytes that tell one place, time and run from any other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace sluice::bdevperf {

// Stands for the content of one write of one job: `generation` counts its writes.
uint64_t content_key(uint64_t seed, uint64_t offset_bytes, uint64_t generation);

// `bytes`: aligned to 8, a multiple of 8 long.
void fill_content(std::span<std::byte> bytes, uint64_t key);

// The place of the first byte that is not what fill_content() wrote; nothing when all are.
std::optional<size_t> find_difference(std::span<const std::byte> bytes, uint64_t key);

}  // namespace sluice::bdevperf
