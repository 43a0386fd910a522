// ContentModel: what each sector of a disk may hold, after all that has been done to it: one generation of content, or
// one of several where a request has failed.
//
// Requests that change something have their sectors to themselves, others share them: so the order in which a disk
// carries out what is in flight does not matter.
//
// Thread: the simulation's only one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace sluice::sim {

struct SectorRange {
  uint64_t first = 0;
  uint64_t count = 0;
  uint64_t end() const { return first + count; }
};

class ContentModel {
 public:
  static constexpr size_t kSectorBytes = 512;
  // The content of a sector that reads as zeroes.
  static constexpr uint32_t kZeroes = 0;

  // Of a disk of zeroes.
  explicit ContentModel(uint64_t sectors) : sectors_(sectors) {}

  // False, with nothing reserved, if what is in flight does not bear it.
  [[nodiscard]] bool reserve(SectorRange range, bool exclusive);
  void release(SectorRange range, bool exclusive);

  // A generation that was never used.
  uint32_t new_generation() { return ++generations_; }
  // The sectors hold this.
  void set(SectorRange range, uint32_t generation);
  // They hold this, or what they held before.
  void maybe_set(SectorRange range, uint32_t generation);

  // Content of a generation, for the sectors from `first` on.
  static void fill(std::span<std::byte> bytes, uint64_t first, uint32_t generation);
  // What is wrong with the content of these sectors; empty: nothing.
  std::string check(std::span<const std::byte> bytes, uint64_t first) const;

 private:
  struct Sector {
    std::vector<uint32_t> may_hold{kZeroes};
    uint16_t shared = 0;
    bool exclusive = false;
  };

  std::vector<Sector> sectors_;
  uint32_t generations_ = kZeroes;
};

}  // namespace sluice::sim
