#include "test/lvol/crash_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "lib/base/check.h"

namespace sluice::lvol {
namespace {

// Each word depends on all of block, version and place: no part of another block, or of another time, passes. Versions
// are never used twice in a simulation, so that another volume's content does not pass either.
uint64_t word(uint64_t block, uint32_t version, uint64_t i) {
  const uint64_t first = (block << 32 | version) + 1;
  return i == 0 ? first : (first + i) * 0x9e3779b97f4a7c15U;
}

}  // namespace

CrashModel CrashModel::copy() const {
  CrashModel copied = *this;
  for (auto at = copied.unsure_.begin(); at != copied.unsure_.end();) {
    at->second.old.clear();
    at = at->second.also.empty() ? copied.unsure_.erase(at) : std::next(at);
  }
  return copied;
}

uint32_t CrashModel::version_of(uint64_t block) const {
  const auto found = versions_.find(block / cluster_blocks_);
  return found == versions_.end() ? kZeroes : found->second[block % cluster_blocks_];
}

void CrashModel::set_version(uint64_t block, uint32_t version) {
  auto found = versions_.find(block / cluster_blocks_);
  if (found == versions_.end()) {
    if (version == kZeroes) return;
    found = versions_.emplace(block / cluster_blocks_, std::vector<uint32_t>(cluster_blocks_)).first;
  }
  found->second[block % cluster_blocks_] = version;
}

template <typename Fn>
void CrashModel::for_each(BlockRange range, bool with_zeroes, Fn fn) {
  for (uint64_t block = range.first; block < range.end();) {
    if (!with_zeroes) {
      const auto next = versions_.lower_bound(block / cluster_blocks_);
      if (next == versions_.end()) return;
      block = std::max(block, next->first * cluster_blocks_);
    }
    const uint64_t end = std::min(range.end(), (block / cluster_blocks_ + 1) * cluster_blocks_);
    for (; block < end; ++block) fn(block);
  }
}

void CrashModel::set(BlockRange range, uint32_t version, uint64_t now) {
  for_each(range, version != kZeroes, [&](uint64_t block) {
    const uint32_t before = version_of(block);
    const auto found = unsure_.find(block);
    if (found == unsure_.end() && before == version) return;
    Unsure& unsure = found == unsure_.end() ? unsure_[block] : found->second;
    unsure.old.push_back({before, now});
    for (const uint32_t also : unsure.also) unsure.old.push_back({also, now});
    unsure.also.clear();
    set_version(block, version);
  });
}

void CrashModel::maybe_set(BlockRange range, uint32_t version) {
  for_each(range, version != kZeroes, [&](uint64_t block) {
    if (version_of(block) == version) return;
    std::vector<uint32_t>& also = unsure_[block].also;
    if (std::ranges::count(also, version) == 0) also.push_back(version);
    // So that for_each() finds it.
    versions_.try_emplace(block / cluster_blocks_, cluster_blocks_);
  });
}

void CrashModel::flushed(uint64_t submitted) {
  for (auto at = unsure_.begin(); at != unsure_.end();) {
    std::erase_if(at->second.old, [submitted](const Old& old) { return old.replaced <= submitted; });
    at = at->second.also.empty() && at->second.old.empty() ? unsure_.erase(at) : std::next(at);
  }
}

void CrashModel::truncate(uint64_t blocks) {
  CHECK(blocks % cluster_blocks_ == 0);
  versions_.erase(versions_.lower_bound(blocks / cluster_blocks_), versions_.end());
  unsure_.erase(unsure_.lower_bound(blocks), unsure_.end());
}

void CrashModel::fill(std::span<std::byte> bytes, uint64_t first, uint32_t version) const {
  for (uint64_t at = 0; at < bytes.size(); at += sizeof(uint64_t)) {
    const uint64_t value = word(first + at / block_bytes_, version, at % block_bytes_ / sizeof(uint64_t));
    std::memcpy(bytes.data() + at, &value, sizeof(value));
  }
}

bool CrashModel::holds(std::span<const std::byte> bytes, uint64_t block, uint32_t version) const {
  for (uint64_t i = 0; i < block_bytes_ / sizeof(uint64_t); ++i) {
    uint64_t found;
    std::memcpy(&found, bytes.data() + i * sizeof(found), sizeof(found));
    if (found != (version == kZeroes ? 0 : word(block, version, i))) return false;
  }
  return true;
}

std::string CrashModel::check(std::span<const std::byte> bytes, uint64_t first, When when, uint64_t now) {
  CHECK(bytes.size() % block_bytes_ == 0);
  for (uint64_t i = 0; i < bytes.size() / block_bytes_; ++i) {
    const uint64_t block = first + i;
    const std::span<const std::byte> content = bytes.subspan(i * block_bytes_, block_bytes_);
    const uint32_t version = version_of(block);
    const auto found = unsure_.find(block);
    if (found == unsure_.end()) {
      if (holds(content, block, version)) continue;
    } else {
      std::vector<uint32_t> may{version};
      may.insert(may.end(), found->second.also.begin(), found->second.also.end());
      if (when == When::kAfterCrash) {
        for (const Old& old : found->second.old) may.push_back(old.version);
      }
      const auto held = std::ranges::find_if(may, [&](uint32_t one) { return holds(content, block, one); });
      if (held != may.end()) {
        if (when == When::kAfterCrash) {
          unsure_.erase(found);
        } else if (!found->second.also.empty()) {
          // What it might have held it may still have been, for a crash to bring back.
          for (const uint32_t other : may) {
            if (other != *held) found->second.old.push_back({other, now});
          }
          found->second.also.clear();
        }
        set_version(block, *held);
        continue;
      }
    }
    uint64_t words[2];
    std::memcpy(words, content.data(), sizeof(words));
    std::vector<uint32_t> may{version};
    std::vector<uint32_t> old;
    if (found != unsure_.end()) {
      may.insert(may.end(), found->second.also.begin(), found->second.also.end());
      for (const Old& one : found->second.old) old.push_back(one.version);
    }
    return fmt::format("block {} holds version {} of block {} ({:016x} {:016x}) instead of one of {}{}", block,
                       static_cast<uint32_t>(words[0] - 1), (words[0] - 1) >> 32, words[0], words[1], may,
                       when == When::kAfterCrash ? fmt::format(" or {}", old) : "");
  }
  return {};
}

std::vector<uint64_t> CrashModel::clusters() const {
  std::vector<uint64_t> clusters;
  for (const auto& [cluster, versions] : versions_) clusters.push_back(cluster);
  return clusters;
}

}  // namespace sluice::lvol
