// Epochs: tells when everybody who may have seen something has let go of it. Lock-free readers (channels) look at maps
// and then read or write the clusters they found; what the owner takes out of a map may be used again when all I/O that
// was in flight at that moment has completed.
//
// What was taken out while current() was e is nobody's any more when oldest() > e; somebody must have called advance()
// since.
//
// A reader counts its uses by epoch, so that entering and leaving touch nothing but the count, and tell the owner only
// when the oldest epoch changes.
//
// Source: epoch-based reclamation (K. Fraser, "Practical lock-freedom", 2004), with an epoch per request.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "lib/base/check.h"

namespace sluice::lvol {

class Epochs;

// One piece of I/O in flight, as long as it may use what it found.
class EpochUse {
 public:
  bool entered() const { return epoch_ != 0; }

 private:
  friend class EpochReader;
  uint64_t epoch_ = 0;
};

// One reader: a channel. Thread: its own, but for oldest_, which the owner reads.
class EpochReader {
 public:
  // Borrows `epochs`. `group`: of which it is one, for Epochs::oldest(group).
  explicit EpochReader(Epochs& epochs, const void* group = nullptr);
  // Requires: nothing is in use (checked).
  ~EpochReader();
  EpochReader(const EpochReader&) = delete;
  EpochReader& operator=(const EpochReader&) = delete;

  // Before looking at a map, and after the last use of what was found there.
  void enter(EpochUse& use);
  void leave(EpochUse& use);

 private:
  friend class Epochs;
  static constexpr uint64_t kNone = UINT64_MAX;

  // How many uses are in an epoch.
  struct Uses {
    uint64_t epoch;
    uint64_t count;
  };

  void begin(uint64_t epoch);
  void end(uint64_t epoch);

  Epochs& epochs_;
  const void* const group_;
  std::vector<Uses> uses_;                // by epoch, the oldest first: one or two, as epochs end rarely
  std::atomic<uint64_t> oldest_ = kNone;  // the epoch of the first of them
};

// Thread: the owner's, but for readers coming and going.
class Epochs {
 public:
  Epochs() = default;
  // Requires: no readers are left (checked).
  ~Epochs();
  Epochs(const Epochs&) = delete;
  Epochs& operator=(const Epochs&) = delete;

  // Ends the present epoch; what is taken out of maps from here on belongs to the next one. Returns the one ended.
  uint64_t advance();
  uint64_t current() const { return current_.load(std::memory_order_relaxed); }
  // The oldest epoch that anybody may still be in; current() when nobody is in an older one. All before it are over.
  // Visits every reader: for once per commit or so, not for each turn of a poll loop.
  uint64_t oldest() const { return oldest_of(nullptr); }
  // The same for the readers of one group.
  uint64_t oldest(const void* group) const { return oldest_of(group); }

 private:
  friend class EpochReader;
  // nullptr: of all.
  uint64_t oldest_of(const void* group) const;

  std::atomic<uint64_t> current_ = 1;
  mutable std::mutex mutex_;  // of readers_: they come and go on their own threads
  std::vector<EpochReader*> readers_;
};

inline void EpochReader::enter(EpochUse& use) {
  CHECK(!use.entered());
  // An old number is harmless: it only holds things back for longer. Acquire: who sees a new number also sees the maps
  // as they were when the epoch before it ended, without what was taken out of them.
  use.epoch_ = epochs_.current_.load(std::memory_order_acquire);
  if (!uses_.empty() && uses_.back().epoch == use.epoch_) [[likely]] {
    ++uses_.back().count;
  } else {
    begin(use.epoch_);
  }
}

inline void EpochReader::leave(EpochUse& use) {
  CHECK(use.entered());
  const uint64_t epoch = std::exchange(use.epoch_, 0);
  if (uses_.back().epoch == epoch && uses_.back().count > 1) [[likely]] {
    --uses_.back().count;
  } else {
    end(epoch);
  }
}

}  // namespace sluice::lvol
