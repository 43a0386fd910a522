#include "test/lvol/kill_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "lib/base/check.h"

namespace sluice::lvol {
namespace {

constexpr size_t kWords = kSectorBytes / sizeof(uint64_t);
using Words = std::array<uint64_t, kWords>;

constexpr uint32_t kBase = 0xba5e;
constexpr uint32_t kBaseVersion = 1;
// The base is written in runs of so many sectors, two of three.
constexpr uint64_t kBaseRun = 96;

bool in_base(uint64_t sector) { return sector / kBaseRun % 3 != 2; }

Words stamp(uint32_t disk, uint64_t sector, uint32_t version) {
  Words words;
  words[0] = uint64_t{disk} << 40 | sector;
  words[1] = version;
  // All of them depend on both: no part of another sector, or of another time, passes.
  const uint64_t key = (words[0] ^ words[1] * 0xff51afd7ed558ccd) * 0xc4ceb9fe1a85ec53;
  for (size_t i = 2; i < kWords; ++i) words[i] = key + i * 0x9e3779b97f4a7c15;
  return words;
}

Words load(std::span<const std::byte> sector) {
  Words words;
  std::memcpy(words.data(), sector.data(), sizeof(words));
  return words;
}

void store(std::span<std::byte> bytes, const Words& words) { std::memcpy(bytes.data(), words.data(), sizeof(words)); }

}  // namespace

KillModel::KillModel(uint32_t disk, uint64_t sectors) : disk_(disk), known_(sectors), last_(sectors), zeroed_(sectors) {
  CHECK(disk > 0 && disk < kBase);
}

void KillModel::fill_base(std::span<std::byte> bytes, uint64_t first) {
  for (uint64_t i = 0; i < bytes.size() / kSectorBytes; ++i) {
    const uint64_t sector = first + i;
    store(bytes.subspan(i * kSectorBytes), in_base(sector) ? stamp(kBase, sector, kBaseVersion) : Words{});
  }
}

uint32_t KillModel::begin(SectorRange range, bool zeroes) {
  const uint32_t version = ++issued_;
  if (zeroes) std::fill_n(&zeroed_[range.first], range.count, version);
  return version;
}

void KillModel::fill(std::span<std::byte> bytes, uint64_t first, uint32_t version) const {
  for (uint64_t i = 0; i < bytes.size() / kSectorBytes; ++i) {
    store(bytes.subspan(i * kSectorBytes), stamp(disk_, first + i, version));
  }
}

void KillModel::done(SectorRange range, uint32_t version) { std::fill_n(&last_[range.first], range.count, version); }

void KillModel::flushed(std::span<const uint32_t> completed) {
  CHECK(completed.size() == known_.size());
  for (size_t i = 0; i < known_.size(); ++i) known_[i] = std::max(known_[i], completed[i]);
}

std::string KillModel::check(std::span<const std::byte> bytes, uint64_t first) const {
  for (uint64_t i = 0; i < bytes.size() / kSectorBytes; ++i) {
    const auto sector = bytes.subspan(i * kSectorBytes, kSectorBytes);
    if (version_of(sector, first + i) == last_[first + i]) continue;
    return complain(sector, first + i, fmt::format("version {}", last_[first + i]));
  }
  return {};
}

std::string KillModel::settle(std::span<const std::byte> bytes, uint64_t first) {
  for (uint64_t i = 0; i < bytes.size() / kSectorBytes; ++i) {
    const uint64_t index = first + i;
    const auto sector = bytes.subspan(i * kSectorBytes, kSectorBytes);
    const auto version = version_of(sector, index);
    if (!version || !may_hold(index, *version)) {
      return complain(sector, index,
                      fmt::format("version {}, or one from {} to {}", known_[index],
                                  std::max(known_[index], barrier_) + 1, issued_));
    }
    known_[index] = last_[index] = *version;
    if (zeroed_[index] != *version) zeroed_[index] = 0;
  }
  return {};
}

KillModel KillModel::begin_window() const {
  KillModel window = *this;
  window.known_ = window.last_;
  return window;
}

void KillModel::end_window(const KillModel& now) {
  issued_ = now.issued_;
  zeroed_ = now.zeroed_;
}

// Zeroes may be of several versions: of the last one. When it is known that they are not there, there are none.
std::optional<uint32_t> KillModel::version_of(std::span<const std::byte> sector, uint64_t index) const {
  const Words words = load(sector);
  if (words == Words{}) {
    if (zeroed_[index] == 0 && in_base(index)) return std::nullopt;
    return zeroed_[index];
  }
  if (words == stamp(kBase, index, kBaseVersion) && in_base(index)) return 0;
  const auto version = static_cast<uint32_t>(words[1]);
  if (version == 0 || words != stamp(disk_, index, version)) return std::nullopt;
  return version;
}

bool KillModel::may_hold(uint64_t index, uint32_t version) const {
  return version == known_[index] || (version > std::max(known_[index], barrier_) && version <= issued_);
}

std::string KillModel::complain(std::span<const std::byte> sector, uint64_t index, const std::string& expected) const {
  const Words words = load(sector);
  const auto disk = static_cast<uint32_t>(words[0] >> 40);
  const uint64_t of = words[0] & ((uint64_t{1} << 40) - 1);
  const auto version = static_cast<uint32_t>(words[1]);
  std::string found;
  if (words == Words{}) {
    found = "zeroes";
  } else if (words == stamp(disk, of, version)) {
    found = disk == kBase ? fmt::format("sector {} of the base", of)
                          : fmt::format("sector {} of disk {} in version {}", of, disk, version);
  } else {
    found = fmt::format("what nobody wrote ({:016x} {:016x} {:016x} ... {:016x})", words[0], words[1], words[2],
                        words[kWords - 1]);
  }
  return fmt::format("disk {}: sector {} holds {} instead of {}; last done {}, last zeroed {}", disk_, index, found,
                     expected, last_[index], zeroed_[index]);
}

}  // namespace sluice::lvol
