// PagePlaces: where pages of metadata are on disk: 4 KiB places in clusters that were taken for that. Never on disk:
// counted anew at load.
//
// A place that the newest superblock on disk refers to must not be written. So a place that a page has left is kept
// until a checkpoint without it is complete.
//
// Thread: the store's owner.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "lib/lvol/cluster_table.h"

namespace sluice::lvol {

class PagePlaces {
 public:
  PagePlaces(const Geometry& geometry, ClusterTable& clusters);

  // A free place, in a cluster of metadata or in one that is free; nullopt when there is neither.
  // Consecutive calls return consecutive places where they can.
  std::optional<PageNumber> take();
  // At load: this place is in use. False if it cannot be: outside of the store, or reserved, or of a cluster that holds
  // data. A place may be taken twice there (a page that is shared).
  bool take(PageNumber page);
  // The page at this place has changed or gone: the place is free when a checkpoint that begins later is complete.
  void leave(PageNumber page);
  // At once: nothing on disk refers to it (a checkpoint that failed).
  void give_back(PageNumber page);

  void begin_checkpoint();
  // Frees what was left before begin_checkpoint(). Clusters without a page in use are given back.
  void end_checkpoint();
  // What was left stays left, for the next one.
  void abandon_checkpoint();

  // Free places in clusters that are taken already.
  uint64_t spare() const { return spare_; }
  uint32_t clusters() const;

 private:
  // As whoever implements it needs.
  ClusterTable& clusters_;
  uint64_t spare_ = 0;
};

}  // namespace sluice::lvol
