// KillModel: what each sector of a disk may hold while the process that serves it is killed again and again.
//
// Each request that changes something has a version of its own, higher than all before it, and each sector that is
// written tells whose it is: disk, sector, version. A sector holds the version that is known of it, or a later one that
// was asked for since the disk was last read through: all of these that were not flushed may be lost, and those that
// have failed may have happened. What a flush covers is known, and so is what is found after a kill.
//
// Disks begin as clones of one volume, the base, part of which was written: version 0.
//
// Requests that change something have their sectors to themselves while they last.
//
// Thread: the test's own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace sluice::lvol {

inline constexpr uint64_t kSectorBytes = 512;

struct SectorRange {
  uint64_t first = 0;
  uint64_t count = 0;
  uint64_t end() const { return first + count; }
  bool meets(const SectorRange& other) const { return first < other.end() && other.first < end(); }
};

class KillModel {
 public:
  // `disk`: 1 or more.
  KillModel(uint32_t disk, uint64_t sectors);

  // What the base holds from this sector on.
  static void fill_base(std::span<std::byte> bytes, uint64_t first);

  // A request is about to be submitted: its version. `zeroes`: it writes zeroes.
  uint32_t begin(SectorRange range, bool zeroes);
  void fill(std::span<std::byte> bytes, uint64_t first, uint32_t version) const;
  // It has succeeded. Where it has not, nothing is said.
  void done(SectorRange range, uint32_t version);
  // What has been done when a flush is submitted, to be given back when it has succeeded.
  const std::vector<uint32_t>& completed() const { return last_; }
  void flushed(std::span<const uint32_t> completed);

  // What is wrong with the content of these sectors, empty: nothing; where everything that was begun is done.
  std::string check(std::span<const std::byte> bytes, uint64_t first) const;
  // The same after a kill, or of a snapshot. Then they hold what was found.
  std::string settle(std::span<const std::byte> bytes, uint64_t first);
  // All sectors have been settled: nothing else comes back.
  void settled() { barrier_ = issued_; }

  // Of a snapshot that is made between now and end_window().
  KillModel begin_window() const;
  // `now`: of the disk that the snapshot is of.
  void end_window(const KillModel& now);

 private:
  std::optional<uint32_t> version_of(std::span<const std::byte> sector, uint64_t index) const;
  bool may_hold(uint64_t index, uint32_t version) const;
  std::string complain(std::span<const std::byte> sector, uint64_t index, const std::string& expected) const;

  uint32_t disk_;
  uint32_t issued_ = 0;
  uint32_t barrier_ = 0;          // of what was issued up to here, only what is known
  std::vector<uint32_t> known_;   // version that cannot be lost
  std::vector<uint32_t> last_;    // version of the last request that has succeeded
  std::vector<uint32_t> zeroed_;  // version of the last request that writes zeroes; 0: none that could be there
};

}  // namespace sluice::lvol
