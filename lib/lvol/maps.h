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
// The copy of a shared page holds what the page held, so that its children, and the clusters that its entries name,
// gain a reference each. Who is left with the page may change it at once, but finds each cluster in it shared still: a
// cluster's references go one by one, when the record that dropped them is durable and what was in flight has completed
// (ClusterTable).
//
// A checkpoint freezes all maps: from begin_checkpoint() to end_checkpoint() a page that existed at its beginning is
// not changed but replaced by a copy. The copy of a frozen page that nobody shares takes over all that the page counts
// for: its place in the tree, the references to its children and to clusters, which do not become shared by a
// checkpoint. What is left is kept until the end, for the checkpoint to write, and so are frozen pages that die. Kept
// pages go on pointing to their children, which are frozen as well and thus exist until the end, one way or the other;
// but these pointers count for nothing, and nothing is dropped when a kept page goes.
// To write a frozen tree, begin at MapRoot::page() as it was at begin_checkpoint(), and leave out what has a place.
//
// A cluster is a map's own if the map names it, and the map of the volume's parent does not, in the same place. How
// many there are is counted once, by a walk over what the two maps do not share, and kept from then on; a new volume, a
// snapshot and a clone need no walk. When the parent is another one, or has changed, the walk is due again. It goes
// from the beginning to the end, in steps: what changes behind it is counted then, what changes before it will be.
//
// Thread:     the store's owner; find() any.
// Ownership:  owns all pages. Borrows clusters, places and epochs.
// Invariants: (1) a page with more than one reference, or below one, does not change. (2) a cluster's references are
//             the entries in distinct leaves that name it as own or base, and those not dropped for good. (3) a page
//             without a place has no page above it with one. (4) a page that set() has taken out of one map while
//             others hold it may be changed by them at once, in the face of a reader who came from the first: so
//             readers look twice at the root's version.
// Source:     path copying: Driscoll, Sarnak, Sleator, Tarjan, "Making data structures persistent" (1989).
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
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
  const MapRoot* parent() const { return parent_; }
  // Of the entries before counted(), how many clusters are its own; of no use if its parent has changed since.
  uint64_t own() const { return own_; }
  uint64_t counted() const { return counted_; }

 private:
  friend class Maps;
  std::atomic<MapPage*> page_ = nullptr;  // nullptr: nothing is mapped
  // Grows whenever a page leaves this map that others go on to use, before they can change it.
  std::atomic<uint64_t> version_ = 0;
  // Owner.
  const MapRoot* parent_ = nullptr;  // of the volume's parent; nullptr: it has none
  uint64_t own_ = 0;
  uint64_t counted_ = 0;
  uint64_t changes_ = 0;         // of this map
  uint64_t parent_changes_ = 0;  // of the parent's, when the count began
};

// What a reader finds.
struct Found {
  Entry entry;
  // There is an own cluster, and nobody else refers to it or to the leaf: it may be written in place.
  bool in_place = false;
  bool damaged = false;  // the page that has the entry could not be read when the store was loaded
};

class Maps {
 public:
  Maps(ClusterTable& clusters, PagePlaces& places, Epochs& epochs);
  // Requires: every root has been released, or abandon() has been called (checked); no reader is left.
  ~Maps();
  Maps(const Maps&) = delete;
  Maps& operator=(const Maps&) = delete;

  // Any thread, inside an epoch: the entry of a volume's cluster; an empty one beyond the map. Takes no lock.
  Found find(const MapRoot& root, uint64_t index) const;

  // --- Changes: the owner. `by`: the number of the record of this change, from which on it can become durable. ---

  // Makes `entry` the entry of cluster `index`; adds and drops references to clusters accordingly. Copies or replaces
  // pages as needed; adds levels as needed. A page whose last entry becomes Entry{} leaves the map; a map without
  // pages is empty again. No memory is not an error here: it ends the process.
  // Requires: no damaged page on the way (checked): a store that has such pages must not be changed.
  void set(MapRoot& root, uint32_t index, const Entry& entry, RecordNumber by);
  // The same for who has just looked: `before` is what find() tells, and another one.
  void replace(MapRoot& root, uint32_t index, const Entry& before, const Entry& entry, RecordNumber by);
  // The first index at or after `from`, and before `end`, whose entry is not empty (that is, not Entry{}) or damaged;
  // `end` if there is none. Skips what is not mapped without visiting it.
  uint64_t next_mapped(const MapRoot& root, uint64_t from, uint64_t end) const;
  // Makes `to` the same map as `from`. Requires: `to` is empty (checked). Writes in place through `from`, begun before,
  // must have completed, and no new ones have begun: they would show in both.
  void share(const MapRoot& from, MapRoot& to);
  // Gives up what the root holds. The root is empty at once; what it held is dropped by settle(), when record `by` is
  // durable and what was in flight at this call has completed.
  void release(MapRoot& root, RecordNumber by);
  // Works off released maps, and frees pages that nobody can be looking at any more, in steps: about `budget` entries,
  // of 20 ns or so. True: there is more to do now. Also settles PagePlaces; ClusterTable has its own settle().
  bool settle(RecordNumber durable, uint32_t budget);
  // Whether nothing waits for settle() any more.
  bool settled() const;

  // Calls fn(index, entry_of_a, entry_of_b) for each cluster from `from` on whose entries differ, without looking at
  // pages that both share; at most `budget` leaf entries and pages skipped. Returns where to go on; `end` when done.
  // Of a damaged page nobody knows: it counts as empty.
  uint64_t compare(const MapRoot& a, const MapRoot& b, uint64_t from, uint64_t end, uint32_t budget,
                   const std::function<void(uint64_t, const Entry&, const Entry&)>& fn) const;

  // --- Own clusters (own_clusters.cc) ---

  // The volume's parent is the one of this map, or there is none: nullptr. Always right from the load on, and whenever
  // that changes, before the former parent's map goes. Needs no walk if the two are the same map.
  void stand_on(MapRoot& root, const MapRoot* parent);
  // `to`, which has just been shared from `from`, has the same parent, and so the same count.
  void stand_beside(const MapRoot& from, MapRoot& to);
  // The number; or, if it is not known, one step of the walk: of about `budget` entries.
  std::optional<uint64_t> count_own(MapRoot& root, uint32_t budget) const;

  // --- Checkpoint ---

  // Freezes all maps as they are.
  void begin_checkpoint();
  bool checkpointing() const { return checkpointing_; }
  // Everything frozen is on disk and named by the superblock: what was kept for it goes. Also when that has failed,
  // after misplaced() for every page placed.
  void end_checkpoint();
  uint32_t generation() const { return generation_; }
  // Pages that have no place, which the next checkpoint must write. An upper bound while there is a checkpoint, and
  // until all has settled after it.
  uint64_t unplaced_pages() const { return unplaced_; }
  // The checkpoint, or the loader, has found a place for a page, after those for all pages below it.
  void placed(MapPage& page, PageRef place);
  // The checkpoint has failed: a page that it has placed is nowhere again. Requires: all others are treated likewise
  // before anything else happens. The place itself is given back by the caller.
  void misplaced(MapPage& page);

  // --- Load, and tests ---

  // A new page, with one reference and no place, for the loader to fill. The loader calls placed() for it.
  LeafPage& new_leaf();
  InteriorPage& new_interior(uint32_t level);
  // One more root or interior page holds a page: the loader has met it again.
  void add_holder(MapPage& page);
  // Stands for a page that cannot be read: its entries are damaged. Not counted, not owned, never freed. May stand
  // wherever a page can.
  MapPage& damaged_page() { return damaged_; }
  // Puts a loaded page into an empty root, which takes over one reference.
  void put_root(MapRoot& root, MapPage& page);
  // The leaf's references to clusters count from now on (the loader has filled it).
  void count_leaf(const LeafPage& leaf);

  // Closing: frees all pages at once without touching counts. Requires: these are all roots that are not empty
  // (checked), and no reader is left.
  void abandon(const std::vector<MapRoot*>& roots);

  // In memory, with those that wait to be freed.
  uint64_t pages() const { return pages_; }

 private:
  struct Release {
    MapPage* page;
    RecordNumber by;
  };
  struct Retired {
    MapPage* page;
    uint64_t epoch;
  };
  // A page without references, of which the first `slot` slots have been dropped.
  struct Dropping {
    MapPage* page;
    uint32_t slot;
  };

  Found look_up(const MapPage* page, uint64_t index) const;
  MapPage& new_page(uint32_t level);
  // Makes the page that `edge` leads to one that may be changed. True: another one stays with others.
  bool make_writable(std::atomic<MapPage*>& edge);
  void count_change(const Entry& from, const Entry& to, RecordNumber by, bool add);
  bool drop_holder(MapPage& page);
  bool frozen(const MapPage& page) const { return checkpointing_ && page.generation != generation_; }
  // The page is in no map any more: it is kept for the checkpoint, or retired.
  void discard(MapPage& page);
  void retire(MapPage& page);
  void free_page(MapPage& page);
  void drop_some(uint32_t& budget);
  void adjust_own(MapRoot& root, uint64_t index, const Entry& from, const Entry& to) const;

  ClusterTable& clusters_;
  PagePlaces& places_;
  Epochs& epochs_;
  bool checkpointing_ = false;
  uint32_t generation_ = 1;
  uint64_t unplaced_ = 0;
  uint64_t pages_ = 0;
  uint64_t roots_ = 0;  // that are not empty
  List<MapPage, MapPageTag> all_;
  std::deque<Release> releases_;    // those not durable
  std::deque<Retired> leaving_;     // released for good, by epoch
  std::vector<Dropping> dropping_;  // from the root of what is being dropped down
  std::vector<MapPage*> kept_;      // for the checkpoint in progress
  std::vector<MapPage*> ended_;     // were kept for one that is over
  std::deque<Retired> retired_;     // pages to free, by epoch
  MapPage damaged_{0};
};

}  // namespace sluice::lvol
