#include "test/sim/content_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "lib/base/check.h"

namespace sluice::sim {
namespace {

constexpr size_t kWords = ContentModel::kSectorBytes / sizeof(uint64_t);
using Words = std::array<uint64_t, kWords>;

// Each word depends on all of sector, generation and place: no part of another sector, or of another time, passes.
Words content(uint64_t sector, uint32_t generation) {
  Words words{};
  if (generation == ContentModel::kZeroes) return words;
  words[0] = sector << 32U | generation;
  for (size_t i = 1; i < kWords; ++i) words[i] = (words[0] + i) * 0x9e3779b97f4a7c15U;
  return words;
}

}  // namespace

bool ContentModel::reserve(SectorRange range, bool exclusive) {
  const auto begin = sectors_.begin() + static_cast<std::ptrdiff_t>(range.first);
  const std::span sectors(begin, range.count);
  const auto blocks = [exclusive](const Sector& sector) {
    return sector.exclusive || (exclusive && sector.shared > 0);
  };
  if (std::ranges::any_of(sectors, blocks)) return false;
  for (Sector& sector : sectors) {
    if (exclusive) {
      sector.exclusive = true;
    } else {
      ++sector.shared;
    }
  }
  return true;
}

void ContentModel::release(SectorRange range, bool exclusive) {
  for (uint64_t i = range.first; i < range.end(); ++i) {
    if (exclusive) {
      sectors_[i].exclusive = false;
    } else {
      --sectors_[i].shared;
    }
  }
}

void ContentModel::set(SectorRange range, uint32_t generation) {
  for (uint64_t i = range.first; i < range.end(); ++i) sectors_[i].may_hold.assign(1, generation);
}

void ContentModel::maybe_set(SectorRange range, uint32_t generation) {
  for (uint64_t i = range.first; i < range.end(); ++i) {
    std::vector<uint32_t>& may_hold = sectors_[i].may_hold;
    if (std::ranges::count(may_hold, generation) == 0) may_hold.push_back(generation);
  }
}

void ContentModel::fill(std::span<std::byte> bytes, uint64_t first, uint32_t generation) {
  for (size_t at = 0; at < bytes.size(); at += kSectorBytes) {
    const Words words = content(first + at / kSectorBytes, generation);
    std::memcpy(bytes.data() + at, words.data(), kSectorBytes);
  }
}

std::string ContentModel::check(std::span<const std::byte> bytes, uint64_t first) const {
  CHECK(bytes.size() % kSectorBytes == 0);
  for (size_t at = 0; at < bytes.size(); at += kSectorBytes) {
    const uint64_t sector = first + at / kSectorBytes;
    Words words{};
    std::memcpy(words.data(), bytes.data() + at, kSectorBytes);
    const auto generation = static_cast<uint32_t>(words[0]);
    const std::vector<uint32_t>& may_hold = sectors_[sector].may_hold;
    if (words != content(sector, generation)) {
      return fmt::format("sector {} holds what was never written there: {:016x} {:016x}", sector, words[0], words[1]);
    }
    if (std::ranges::count(may_hold, generation) == 0) {
      return fmt::format("sector {} holds generation {}, but should hold one of {}", sector, generation, may_hold);
    }
  }
  return {};
}

}  // namespace sluice::sim
