#include "app/bdevperf/content.h"

#include <bit>

#include "lib/base/check.h"

namespace sluice::bdevperf {
namespace {

// Each word of 8 bytes is the former plus this: all of them differ, so that bytes at the wrong place are noticed.
constexpr uint64_t kStep = 0x9e3779b97f4a7c15;
// Compared at once, without a branch, so that the compiler can use vectors.
constexpr size_t kGroupWords = 64;

// The finaliser of MurmurHash3: each bit of the input changes half of the output's.
uint64_t mix(uint64_t x) {
  x = (x ^ x >> 33) * 0xff51afd7ed558ccd;
  x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53;
  return x ^ x >> 33;
}

}  // namespace

uint64_t content_key(uint64_t seed, uint64_t offset_bytes, uint64_t generation) {
  return mix(mix(mix(seed) + offset_bytes) + generation);
}

void fill_content(std::span<std::byte> bytes, uint64_t key) {
  CHECK(bytes.size() % sizeof(uint64_t) == 0);
  auto* words = reinterpret_cast<uint64_t*>(bytes.data());
  for (size_t i = 0; i < bytes.size() / sizeof(uint64_t); ++i) words[i] = key + i * kStep;
}

std::optional<size_t> find_difference(std::span<const std::byte> bytes, uint64_t key) {
  CHECK(bytes.size() % sizeof(uint64_t) == 0);
  const auto* words = reinterpret_cast<const uint64_t*>(bytes.data());
  const size_t count = bytes.size() / sizeof(uint64_t);
  for (size_t begin = 0; begin < count; begin += kGroupWords) {
    const size_t end = begin + kGroupWords < count ? begin + kGroupWords : count;
    uint64_t different = 0;
    for (size_t i = begin; i < end; ++i) different |= words[i] ^ (key + i * kStep);
    if (different == 0) continue;
    for (size_t i = begin; i < end; ++i) {
      const uint64_t wrong = words[i] ^ (key + i * kStep);
      if (wrong != 0) return i * sizeof(uint64_t) + static_cast<size_t>(std::countr_zero(wrong)) / 8;
    }
  }
  return std::nullopt;
}

}  // namespace sluice::bdevperf
