// ClusterTable: which clusters of a store are free, and how many leaf entries refer to each of the others. Never on
// disk: counted anew at load.
//
// A reference that a change of a map drops does not count less before the record of that change is durable: otherwise a
// crash would bring the reference back, to a cluster that others have written to. A cluster without references is free
// when, besides, all I/O has completed that was in flight when the last one went (Epochs).
//
// Thread:     the store's owner; shared() from any.
// Invariants: free() + those referred to + those in quarantine + those taken for metadata + reserved = total.
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
  bool shared(ClusterIndex cluster) const;
  uint32_t references(ClusterIndex cluster) const;

  // Clusters that can be taken now.
  uint32_t free() const { return free_; }
  // Clusters that will be free without any further change of a map: drops not yet durable or with I/O in flight.
  uint32_t in_quarantine() const { return in_quarantine_; }
  uint32_t total() const { return total_; }

  // A free cluster, without a reference yet; nullopt when there is none. Looks for the lowest after the last one taken,
  // so that what is written one after the other lies one after the other.
  std::optional<ClusterIndex> take();
  // At load, and for metadata: this cluster. Requires: it is free (checked).
  void take(ClusterIndex cluster);
  // A taken cluster to which no entry has ever referred: free at once.
  void give_back(ClusterIndex cluster);

  // One more entry refers to the cluster. References to kBaseOrigin and kBaseZeros are not counted.
  // At load, a free cluster is taken by its first reference.
  void add_reference(ClusterIndex cluster);
  // One less, by the change with this record's number.
  void drop_reference(ClusterIndex cluster, RecordNumber by);

  // All records up to `durable` are. Moves on what waits for that, in steps of at most `budget`; true: there is more.
  bool settle(RecordNumber durable, uint32_t budget);

  // More clusters at the end.
  void grow(uint32_t total_clusters);

 private:
  // As documented by whoever implements it.
  struct Drop {
    ClusterIndex cluster;
    RecordNumber by;
  };
  struct Retired {
    ClusterIndex cluster;
    uint64_t epoch;
  };

  void set_free(ClusterIndex cluster, bool is_free);

  Epochs& epochs_;
  uint32_t total_;
  uint32_t free_ = 0;
  uint32_t in_quarantine_ = 0;
  // 16 bits each, as most have one reference; kMany: the number is in many_.
  static constexpr uint16_t kMany = UINT16_MAX;
  std::vector<std::unique_ptr<std::atomic<uint16_t>[]>> counts_;  // in chunks that stay where they are when it grows
  std::unordered_map<ClusterIndex, uint32_t> many_;
  std::vector<uint64_t> free_bits_;
  ClusterIndex next_ = 0;       // where take() looks first
  std::deque<Drop> drops_;      // by record number
  std::deque<Retired> retired_; // by epoch
};

}  // namespace sluice::lvol
