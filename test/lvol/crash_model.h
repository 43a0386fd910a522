// CrashModel: what each block of a volume may hold, now and after a power failure.
//
// A block has a version of content: that of the last request that completed; or, where requests have failed, of one of
// several. Until a flush that was submitted later than a request completed has completed itself, a power failure may
// bring back what the request replaced.
//
// Requests that change something have their blocks to themselves, others share them: so the order in which requests in
// flight take effect does not matter.
//
// Thread: the test's only one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace sluice::lvol {

struct BlockRange {
  uint64_t first = 0;
  uint64_t count = 0;
  uint64_t end() const { return first + count; }
  bool meets(const BlockRange& other) const { return first < other.end() && other.first < end(); }
};

class CrashModel {
 public:
  // The content of a block that reads as zeroes.
  static constexpr uint32_t kZeroes = 0;
  // For check(): what may be there in the moment of the power's return, too.
  enum class When : uint8_t { kRunning, kAfterCrash };

  // Of zeroes.
  CrashModel(uint32_t block_bytes, uint64_t cluster_bytes)
      : block_bytes_(block_bytes), cluster_blocks_(cluster_bytes / block_bytes) {}

  // What a snapshot of it may hold that is made now: there are no failures that bring anything back.
  CrashModel copy() const;

  // `now`: counts what happens in the simulation.
  // A request has completed: this is what the blocks hold.
  void set(BlockRange range, uint32_t version, uint64_t now);
  // They hold this, or what they held before.
  void maybe_set(BlockRange range, uint32_t version);
  // What had been replaced by `submitted` is gone for good.
  void flushed(uint64_t submitted);
  // Forgets blocks from this one on.
  void truncate(uint64_t blocks);

  // Content of a version, for the blocks from `first` on.
  void fill(std::span<std::byte> bytes, uint64_t first, uint32_t version) const;
  // What is wrong with the content of these blocks; empty: nothing. From then on they hold what was found there, and
  // nothing else if it was after a crash.
  std::string check(std::span<const std::byte> bytes, uint64_t first, When when, uint64_t now);

  // Clusters, by number, that may hold something else than zeroes.
  std::vector<uint64_t> clusters() const;

 private:
  struct Old {
    uint32_t version;
    uint64_t replaced;  // when
  };
  struct Unsure {
    std::vector<uint32_t> also;  // versions it may hold as well
    std::vector<Old> old;        // that a crash may bring back
  };

  uint32_t version_of(uint64_t block) const;
  void set_version(uint64_t block, uint32_t version);
  bool holds(std::span<const std::byte> bytes, uint64_t block, uint32_t version) const;
  // The range's blocks that are not plain zeroes, or all.
  template <typename Fn>
  void for_each(BlockRange range, bool with_zeroes, Fn fn);

  uint32_t block_bytes_;
  uint64_t cluster_blocks_;
  std::map<uint64_t, std::vector<uint32_t>> versions_;  // by cluster; one that is missing holds zeroes
  std::map<uint64_t, Unsure> unsure_;                   // by block
};

}  // namespace sluice::lvol
