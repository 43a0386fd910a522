// Maps: the maps of all volumes of a store: persistent radix trees that share pages. A snapshot or a clone is one more
// reference to a root, whatever the volume's size; a page that more than one holds is copied before it is changed. A
// read looks at one entry, however many snapshots there are.
//
//        root of volume            root of its snapshot
//             |                          |
//        interior'                   interior          after one write to the volume
//         |    \________________      |    |
//       leaf'                   \____leaf  leaf
//
// A checkpoint freezes all maps: from begin_checkpoint() to end_checkpoint() a page that existed at its beginning is
// not changed but replaced by a copy (which takes its place in the tree and in the counts of clusters: clusters do not
// become shared by a checkpoint), and lives on until the end, for the checkpoint to write.
//
// Thread:     the store's owner; find() any.
// Ownership:  owns all pages. Borrows clusters, places and epochs.
// Invariants: (1) a page with more than one reference, or below one, does not change. (2) a cluster's references are
//             the entries in distinct leaves that name it as own or base. (3) a page without a place has no page above
//             it with one.
// Source:     path copying: Driscoll, Sarnak, Sleator, Tarjan, "Making data structures persistent" (1989).
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "lib/lvol/cluster_table.h"
#include "lib/lvol/map_page.h"
#include "lib/lvol/page_places.h"

namespace sluice::lvol {

// The map of one volume.
class MapRoot {
 public:
  MapRoot() = default;
  MapRoot(const MapRoot&) = delete;
  MapRoot& operator=(const MapRoot&) = delete;
  // Requires: it is empty: Maps::release() gave up what it held (checked).
  ~MapRoot();
  bool empty() const { return page_.load(std::memory_order_relaxed) == nullptr; }
  // Owner.
  MapPage* page() const { return page_.load(std::memory_order_relaxed); }

 private:
  friend class Maps;
  std::atomic<MapPage*> page_ = nullptr;  // nullptr: nothing is mapped
};

// What a reader finds.
struct Found {
  Entry entry;
  bool in_place = false;  // nobody else refers to the leaf or to the entry's own cluster: that may be written in place
  bool damaged = false;   // the page that has the entry could not be read when the store was loaded
};

class Maps {
 public:
  Maps(ClusterTable& clusters, PagePlaces& places, Epochs& epochs);
  // Requires: every root has been released, or abandon() has been called (checked).
  ~Maps();

  // Any thread, inside an epoch: the entry of a volume's cluster; an empty one beyond the map. Never blocks.
  Found find(const MapRoot& root, uint64_t index) const;

  // --- Changes: the owner. `by`: the number of the record of this change, from which on it can become durable. ---

  // Makes `entry` the entry of cluster `index`; adds and drops references to clusters accordingly. Copies or replaces
  // pages as needed; adds levels as needed. No memory is not an error here: it ends the process.
  void set(MapRoot& root, uint32_t index, const Entry& entry, RecordNumber by);
  // The first index at or after `from`, and before `end`, whose entry is not empty (that is, not Entry{}); `end` if
  // there is none. Skips what is not mapped without visiting it.
  uint64_t next_mapped(const MapRoot& root, uint64_t from, uint64_t end) const;
  // Makes `to` the same map as `from`. Requires: `to` is empty (checked).
  void share(const MapRoot& from, MapRoot& to);
  // Gives up what the root holds, which counts from when record `by` is durable: the work begins with settle(). The
  // root is empty at once.
  void release(MapRoot& root, RecordNumber by);
  // Works off released maps whose record is durable, and frees pages that nobody can be looking at any more, in steps:
  // about `budget` entries. True: there is more to do now.
  bool settle(RecordNumber durable, uint32_t budget);
  // Whether anything waits for settle() still.
  bool settled() const;

  // Calls fn(index, entry_of_a, entry_of_b) for each cluster from `from` on whose entries differ, without looking at
  // pages that both share; at most `budget` leaf entries. Returns where to go on; `end` when done.
  uint64_t compare(const MapRoot& a, const MapRoot& b, uint64_t from, uint64_t end, uint32_t budget,
                   const std::function<void(uint64_t, const Entry&, const Entry&)>& fn) const;

  // --- Checkpoint ---

  // Freezes all maps as they are.
  void begin_checkpoint();
  bool checkpointing() const { return checkpointing_; }
  // Everything frozen is on disk and named by the superblock: what was kept for it goes.
  void end_checkpoint();
  uint32_t generation() const { return generation_; }
  // Pages that have no place, which the next checkpoint must write. An upper bound while there is a checkpoint.
  uint64_t unplaced_pages() const { return unplaced_; }
  // The checkpoint has found a place for a page.
  void placed(MapPage& page, PageRef place);

  // --- Load, and tests ---

  // A new page, for the loader to fill; `place`: where it was read.
  LeafPage& new_leaf();
  InteriorPage& new_interior(uint32_t level);
  // Stands for a page that cannot be read: its entries are damaged. Not counted, not owned, never freed.
  MapPage& damaged_page() { return damaged_; }
  // Puts a loaded page into an empty root, which takes over one reference.
  void put_root(MapRoot& root, MapPage& page);
  // The leaf's references to clusters count from now on (the loader has filled it).
  void count_leaf(const LeafPage& leaf);

  // Closing: frees all pages at once without touching counts. All roots become empty when their volumes go.
  void abandon(const std::vector<MapRoot*>& roots);

  uint64_t pages() const { return pages_; }

 private:
  // As whoever implements it needs.
  ClusterTable& clusters_;
  PagePlaces& places_;
  Epochs& epochs_;
  bool checkpointing_ = false;
  uint32_t generation_ = 1;
  uint64_t unplaced_ = 0;
  uint64_t pages_ = 0;
  MapPage damaged_{0};
};

}  // namespace sluice::lvol
