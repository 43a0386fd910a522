// Epochs: tells when everybody who may have seen something has let go of it. Lock-free readers (channels) look at maps
// and then read or write the clusters they found; what the owner takes out of a map may be used again when all I/O that
// was in flight at that moment has completed.
//
// Source: epoch-based reclamation (K. Fraser, "Practical lock-freedom", 2004), with an epoch per request.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "lib/base/intrusive_list.h"

namespace sluice::lvol {

class Epochs;
struct EpochTag;

// One piece of I/O in flight, as long as it may use what it found.
class EpochUse : public ListHook<EpochTag> {
 private:
  friend class EpochReader;
  uint64_t epoch_ = 0;
};

// One reader: a channel. Thread: its own, but for oldest(), which the owner reads.
class EpochReader {
 public:
  // `group`: of which it is one, for Epochs::oldest(group).
  explicit EpochReader(Epochs& epochs, const void* group = nullptr);
  // Requires: nothing is in use (checked).
  ~EpochReader();

  // Before looking at a map, and after the last use of what was found there.
  void enter(EpochUse& use);
  void leave(EpochUse& use);

 private:
  friend class Epochs;
  static constexpr uint64_t kNone = UINT64_MAX;

  Epochs& epochs_;
  List<EpochUse, EpochTag> uses_;           // the oldest first
  std::atomic<uint64_t> oldest_ = kNone;    // the epoch of the first
};

// Thread: the owner's, but for readers coming and going.
class Epochs {
 public:
  // Ends the present epoch; what is taken out of maps from here on belongs to the next one. Returns the one ended.
  uint64_t advance();
  uint64_t current() const { return current_.load(std::memory_order_relaxed); }
  // The oldest epoch that anybody may still be in; current() when nobody is in an older one. All before it are over.
  uint64_t oldest() const;
  // The same for the readers of a group.
  uint64_t oldest(const void* group) const;

 private:
  friend class EpochReader;
  std::atomic<uint64_t> current_ = 1;
  mutable std::mutex mutex_;  // of readers_: they come and go on their own threads
  std::vector<EpochReader*> readers_;
};

}  // namespace sluice::lvol
