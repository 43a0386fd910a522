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
  // Borrows `clusters`.
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
  // Frees what was left before begin_checkpoint(): settle() does the work. Clusters without a page in use are given
  // back.
  void end_checkpoint();
  // What was left stays left, for the next one.
  void abandon_checkpoint();
  // Goes on with freeing, at most `budget` places. True: there is more to do. Maps::settle() calls it.
  bool settle(uint32_t budget);

  // Whether this cluster holds metadata.
  bool has(ClusterIndex cluster) const { return used_.contains(cluster); }
  // Free places in clusters that are taken already.
  uint64_t spare() const { return spare_; }
  uint32_t clusters() const { return static_cast<uint32_t>(used_.size()); }
  // Places in use, and how many of these were left and wait for a checkpoint.
  uint64_t used() const { return used_.size() * places_per_cluster_ - spare_; }
  uint64_t left() const { return left_.size() + left_before_.size() + freeing_.size(); }
  bool in_use(PageNumber page) const;

 private:
  // Which places of a cluster are in use.
  struct Used {
    uint32_t count = 0;
    std::vector<uint64_t> bits;
  };
  using Clusters = std::map<ClusterIndex, Used>;

  Clusters::iterator add_cluster(ClusterIndex cluster);
  void use(Clusters::iterator it, uint32_t place);
  // The first free place of the cluster from `first` on; places_per_cluster_ if there is none.
  uint32_t first_free(const Used& used, uint32_t first) const;

  ClusterTable& clusters_;
  const uint32_t reserved_;
  const uint32_t places_per_cluster_;
  Clusters used_;
  std::set<ClusterIndex> with_room_;  // those of used_ that have a free place
  PageNumber next_ = 0;               // where take() looks first
  uint64_t spare_ = 0;
  bool checkpointing_ = false;
  std::vector<PageNumber> left_;         // since the checkpoint began, or the last one did
  std::vector<PageNumber> left_before_;  // the checkpoint frees these
  std::vector<PageNumber> freeing_;      // a checkpoint has freed these
};

}  // namespace sluice::lvol
