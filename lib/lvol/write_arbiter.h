// WriteArbiter: decides who writes where when a write needs its volume's map to change: takes a cluster for what is not
// mapped or shared, lets several write to one cluster at the same time but not to the same sub-cluster, and makes what
// is written visible once it is.
//
//   channel: kWrite ----> granted: cluster, and what to fill or copy ----> writes ----> kPublish ----> done
//
// A cluster becomes part of the map only after its data were written: a reader never finds what it held before.
//
// Thread:     the store's owner.
// Ownership:  borrows everything. Requests come back to their senders, each exactly once.
// Invariants: (1) between grant and publication nobody else changes the entry, but for other publications to it.
//             (2) each publication is one record of the journal.
#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>

#include "lib/base/histogram.h"
#include "lib/lvol/cluster_table.h"
#include "lib/lvol/journal.h"
#include "lib/lvol/map_request.h"
#include "lib/lvol/maps.h"
#include "lib/lvol/volume.h"
#include "lib/thread/await.h"
#include "lib/thread/task.h"

namespace sluice::lvol {

class WriteArbiter {
 public:
  struct Parts {
    const Geometry& geometry;
    ClusterTable& clusters;
    Maps& maps;
    Journal& journal;
    Epochs& epochs;
  };
  // What the store is told.
  struct Events {
    std::function<void()> on_change;        // a record was appended
    std::function<void()> on_starved;       // a request waits for room in the journal, or for clusters in quarantine
    std::function<void(bool)> on_no_space;  // no cluster is left for a write: it waits (true) or fails
  };

  WriteArbiter(const Parts& parts, Events events) : parts_(parts), events_(std::move(events)) {}
  // Requires: nothing is granted and nothing waits (checked).
  ~WriteArbiter();

  // A request of a channel, but for kFlush.
  void take(MapRequest& request);

  // Whether a write to this volume that finds no cluster waits for one instead of failing.
  void set_hold_when_full(bool hold);
  bool hold_when_full() const { return hold_when_full_; }
  // Clusters that must be left for metadata, if besides so many pages there shall be room for these.
  void set_reserve(std::function<uint64_t(uint64_t pages)> clusters) { reserve_ = std::move(clusters); }
  // There may be clusters again, or room in the journal: goes on with what waits for them.
  void resume();
  uint32_t waiting_for_space() const { return waiting_for_space_; }

  // From now on all changes fail with this: nothing can be made durable any more.
  void fail_all(IoStatus status);

  // Returns when no write is under way to the volume's clusters, granted or in place; those that come wait until
  // release(). Requires: not held (checked).
  Task<> hold(Volume& volume);
  void release(Volume& volume);
  // How long volumes were held, in ns.
  const Histogram& holds() const { return holds_; }

  // The first cluster of a volume from `index` on, and before `end`, that somebody is writing to with leave; or `end`.
  // The store must not give it a cluster meanwhile: the one granted would hide it.
  uint32_t next_granted(const Volume& volume, uint32_t index, uint32_t end) const;
  // For the store's own changes (inflate, ...): a free cluster, keeping the reserve.
  bool may_take() const;
  // Whether there is room for the pages that a change needs, without any cluster.
  bool may_change() const;

 private:
  struct Pending {
    ClusterIndex cluster = kNoCluster;  // that is written to
    bool fresh = false;                 // it is not in the map yet
    // The entry's own one before, which keeps one more reference until all is published: when others let go of it, it
    // must not become one to write to in place, beside those who copy from it.
    ClusterIndex copied = kNoCluster;
    uint32_t users = 0;  // granted
    uint64_t busy = 0;   // sub-clusters being written
    Fifo<Work> waiting;
  };
  static uint64_t key_of(const Volume& volume, uint32_t index);

  bool may_begin(MapRequest& request);
  void write(MapRequest& request);
  void publish(MapRequest& request);
  void written(MapRequest& request);
  void set_entry(MapRequest& request, const Entry& before, const Entry& after);
  void drop(MapRequest& request);
  void grant(MapRequest& request, Pending& pending, const Entry& source, uint64_t fill);
  void answer(MapRequest& request, MapRequest::Answer answer, IoStatus result = IoStatus::kOk);
  bool wait_for_space(MapRequest& request);
  void retake(Fifo<Work>& waiting);
  bool leaves_room(uint64_t pages) const;
  // That the entries of clusters which are being written to may need, at most.
  uint64_t granted_pages() const { return pending_.size() * (kMaxLevel + 1); }

  const Parts parts_;
  const Events events_;
  std::function<uint64_t(uint64_t)> reserve_;
  std::unordered_map<uint64_t, Pending> pending_;
  Fifo<Work> space_waiters_;    // for a free cluster
  Fifo<Work> journal_waiters_;  // for room in the journal
  uint32_t waiting_for_space_ = 0;
  bool hold_when_full_ = false;
  IoStatus failed_ = IoStatus::kOk;
  Histogram holds_;
};

}  // namespace sluice::lvol
