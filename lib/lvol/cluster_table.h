// ClusterTable: which clusters of a store are free, and how many leaf entries refer to each of the others. Never on
// disk: counted anew at load.
//
// A reference that a change of a map drops goes on counting until
// (1) the record of the change is durable: otherwise a crash would bring the reference back, to a cluster that others
//     have written to;
// (2) all I/O has completed that was in flight at the change (Epochs): a read that found the cluster before would see
//     what others write there. That goes for the last reference, after which the cluster is free for all, and as much
//     for the last but one, after which the one who is left writes to it in place.
//
// Thread:     the store's owner; shared() from any.
// Invariants: a cluster is free, reserved, referred to (perhaps only by references that were dropped and still count),
//             or taken without a reference: for metadata, or for an entry that is not set yet.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "lib/lvol/epochs.h"
#include "lib/lvol/layout.h"

namespace sluice::lvol {

class ClusterTable {
 public:
  // Borrows `epochs`.
  ClusterTable(const Geometry& geometry, Epochs& epochs);

  // Any thread: whether more than one leaf entry refers to the cluster. For one that the caller has found in a map.
  bool shared(ClusterIndex cluster) const { return count(cluster).load(std::memory_order_acquire) > 1; }
  uint32_t references(ClusterIndex cluster) const;
  // Requires: cluster < total().
  bool is_free(ClusterIndex cluster) const { return (free_bits_[cluster / 64] >> (cluster % 64) & 1) != 0; }

  // Clusters that can be taken now.
  uint32_t free() const { return free_; }
  // References that were dropped and still count. So many clusters, or less, will be free without any further change of
  // a map: those that others refer to will not.
  uint64_t in_quarantine() const { return drops_.size() + retired_.size(); }
  uint32_t total() const { return total_; }

  // A free cluster, without a reference yet; nullopt when there is none. Looks for the lowest after the last one taken,
  // so that what is written one after the other lies one after the other.
  std::optional<ClusterIndex> take();
  // At load, and for metadata: this cluster. Requires: it is free (checked).
  void take(ClusterIndex cluster);
  // A taken cluster to which no entry has ever referred: free at once.
  void give_back(ClusterIndex cluster);

  // One more entry refers to the cluster. References to kBaseOrigin and kBaseZeros are not counted.
  // At load, a free cluster is taken by its first reference. Requires: not reserved, within the store (checked).
  void add_reference(ClusterIndex cluster);
  // One less, by the change with this record's number; 0: it is durable already.
  void drop_reference(ClusterIndex cluster, RecordNumber by);

  // All records up to `durable` are. Moves on what waits for that, in steps of at most `budget`; true: there is more to
  // do now.
  bool settle(RecordNumber durable, uint32_t budget);

  // More clusters at the end.
  void grow(uint32_t total_clusters);

 private:
  struct Drop {
    ClusterIndex cluster;
    RecordNumber by;
  };
  struct Retired {
    ClusterIndex cluster;
    uint64_t epoch;
  };

  // 16 bits each, as most have one reference; kMany: the number is in many_.
  using Count = std::atomic<uint16_t>;
  static constexpr uint16_t kMany = UINT16_MAX;
  // Counts lie in chunks of this many, and the table of chunks is as large as it can get from the beginning (128 KiB):
  // other threads read it while the store grows.
  static constexpr uint32_t kChunk = 1U << 18;
  static constexpr uint32_t kChunks = 1U << 14;

  const Count& count(ClusterIndex cluster) const { return chunks_[cluster / kChunk][cluster % kChunk]; }
  Count& count(ClusterIndex cluster) { return chunks_[cluster / kChunk][cluster % kChunk]; }
  void set_references(ClusterIndex cluster, uint32_t references);
  void set_free(ClusterIndex cluster, bool is_free);
  // The first free one in [from, to); `to` if there is none. `from` may be any, `to` is a multiple of 64 or total_.
  ClusterIndex first_free(ClusterIndex from, ClusterIndex to) const;

  Epochs& epochs_;
  const uint32_t reserved_;
  uint32_t total_ = 0;
  uint32_t free_ = 0;
  std::vector<std::unique_ptr<Count[]>> chunks_;
  std::unordered_map<ClusterIndex, uint32_t> many_;
  std::vector<uint64_t> free_bits_;    // one per cluster
  std::vector<uint64_t> free_blocks_;  // one per word of free_bits_: it is not 0
  ClusterIndex next_ = 0;              // where take() looks first
  RecordNumber durable_ = 0;
  std::deque<Drop> drops_;       // those not durable, in the order of the changes
  std::deque<Retired> retired_;  // the others, by epoch
};

}  // namespace sluice::lvol
