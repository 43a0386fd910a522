// Store: logical volumes on one base bdev: loads them, changes them, keeps journal and checkpoints going.
//
// Every operation is one record of the journal (a thick volume's clusters, and a removed cluster range, are some more),
// carried out in memory when it is appended, and durable when the task completes. After an error of writing metadata a
// store goes on reading, and refuses every change: what is on disk is what was durable.
//
// Thread:    its own lightweight thread, but for what is marked.
// Ownership: borrows thread and channel. Close it before its end.
// Source:    docs/format-lvol.md, docs/lvol.md
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "lib/lvol/checkpoint.h"
#include "lib/lvol/cluster_table.h"
#include "lib/lvol/epochs.h"
#include "lib/lvol/journal.h"
#include "lib/lvol/loader.h"
#include "lib/lvol/map_request.h"
#include "lib/lvol/maps.h"
#include "lib/lvol/meta_io.h"
#include "lib/lvol/page_places.h"
#include "lib/lvol/usage_watch.h"
#include "lib/lvol/volume_table.h"
#include "lib/lvol/write_arbiter.h"
#include "lib/thread/gate.h"
#include "lib/thread/timer.h"

namespace sluice::lvol {

// What happens in a store that somebody may want to know. Called on its thread.
class StoreEvents {
 public:
  virtual ~StoreEvents() = default;
  // A write found no free cluster; it waits for one, or fails.
  virtual void on_no_space(bool waits) = 0;
  // A threshold has been crossed: see Store::set_usage_thresholds().
  virtual void on_usage(uint32_t percent, bool above) = 0;
  // Metadata cannot be written any more.
  virtual void on_failed(const Error& error) = 0;
};

struct StoreUsage {
  uint32_t total_clusters = 0;  // for data and metadata: all but superblocks and journal
  uint32_t free_clusters = 0;   // with those that are on their way back
  uint32_t metadata_clusters = 0;
  uint64_t map_pages = 0;       // in memory
  uint32_t waiting_writes = 0;  // for a free cluster
  // How often writes of a volume were held for a snapshot, and for how long.
  uint64_t holds = 0;
  uint64_t holds_p99_ns = 0;
  uint64_t holds_max_ns = 0;
};

// Clusters of one volume.
struct VolumeUsage {
  uint64_t allocated = 0;  // that it refers to
  uint64_t exclusive = 0;  // of these, that nobody else does
  uint64_t shared() const { return allocated - exclusive; }
};

class Store {
 public:
  struct FormatOptions {
    std::string name;
    uint64_t cluster_bytes = kDefaultClusterBytes;
    Uuid uuid;  // nil: a random one
  };

  // Makes an empty store of the device: writes a superblock, nothing else. What was on the device is lost.
  // Errors: EINVAL (name, cluster size); ENOSPC (the device is too small); EIO.
  static Task<Result<>> format(BdevChannel& channel, FormatOptions options);
  // Overwrites the superblocks. Errors: EIO.
  static Task<Result<>> erase(BdevChannel& channel);

  // On a device that is read-only so is the store. Errors: ENODATA: there is none on this device; EILSEQ: there is one,
  // damaged; ENOTSUP; EIO.
  static Task<Result<std::unique_ptr<Store>>> load(LwThread& thread, BdevChannel& channel, StoreEvents& events);
  // Requires: close() has completed (checked).
  ~Store();

  // Everything durable, and a checkpoint, so that the next load has nothing to replay. No channel may be open, no
  // operation run. After an error of the device it just ends.
  Task<> close();

  // --- Any thread ---
  const Uuid& uuid() const { return superblock_.uuid; }
  const Geometry& geometry() const { return geometry_; }
  LwThread& thread() const { return thread_; }
  Maps& maps() { return maps_; }
  Epochs& epochs() { return epochs_; }
  // Whether something has changed that a flush must make durable.
  bool dirty() const { return dirty_.load(std::memory_order_acquire); }
  // A channel's request: comes back by itself.
  void ask(MapRequest& request);

  // --- The rest: its thread ---
  const std::string& name() const { return name_; }
  const VolumeTable& volumes() const { return volumes_; }
  const ClusterTable& clusters() const { return clusters_; }
  const PagePlaces& places() const { return places_; }
  // Where the volume table is on disk.
  const std::vector<PageNumber>& table_places() const { return checkpoint_.table_places(); }
  StoreUsage usage() const;
  // Why it must not be written to; empty if it may.
  const std::string& damage() const { return damage_; }

  // Errors of all that follow: EEXIST (a volume of this name); ENOENT; EROFS (the store is damaged, or failed); EIO
  // (the operation has been carried out in memory, and may or may not be durable); EINVAL (name, size); ENOSPC; EBUSY
  // (another operation on the same volume).
  struct CreateOptions {
    std::string name;
    uint64_t size_bytes = 0;  // rounded up to clusters
    bool thin = true;
    Uuid uuid{};                    // nil: a random one
    std::string external_origin{};  // the bdev it stands on
    std::map<std::string, std::string> xattrs{};
  };
  Task<Result<VolumeId>> create(CreateOptions options);
  // A read-only volume that stays what `id` is now. Writes to that volume wait meanwhile, others do not.
  Task<Result<VolumeId>> snapshot(VolumeId id, std::string name, std::map<std::string, std::string> xattrs);
  // A volume of its own that begins as what a snapshot, or another read-only volume, is. Errors: EPERM: it is not one.
  Task<Result<VolumeId>> clone(VolumeId id, std::string name, std::map<std::string, std::string> xattrs);
  // No channel to it may be open any more. Its space comes back in the background.
  Task<Result<>> remove(VolumeId id);
  Task<Result<>> rename(VolumeId id, std::string name);
  // What is cut off is lost. No I/O beyond the new end may come any more.
  Task<Result<>> resize(VolumeId id, uint64_t size_bytes);
  Task<Result<>> set_readonly(VolumeId id);
  // The volume shares nothing with a parent any more, because of what own_clusters() has done: it has none.
  // `thick`: and all of it is allocated. Requires: reserve_volume() (checked).
  Task<Result<>> detach(VolumeId id, bool thick);
  // What the volume does not own itself it has from another snapshot of the store, or another external origin, from now
  // on. Its writes wait meanwhile. Errors: EPERM: that is no read-only volume, or smaller.
  Task<Result<>> set_parent(VolumeId id, VolumeId parent, std::string external_origin);
  Task<Result<>> rename_store(std::string name);
  // The device has become larger.
  Task<Result<>> grow();

  // Makes all that has changed durable.
  Task<Result<>> commit();
  // Shortens what a load must replay.
  Task<Result<>> checkpoint();
  // Looks at the whole map.
  Task<Result<VolumeUsage>> usage_of(VolumeId id);
  // How many clusters are the volume's own: see Maps. Known, as a rule; a walk over what the volume does not share with
  // its parent the first time after a load, and after its parent has been deleted or become another one.
  Task<Result<uint64_t>> own_clusters_of(VolumeId id);
  // The clusters of `to` that differ from those of `from` (kNoVolume: from an empty volume), in order: those from
  // cluster `first` on, `limit` at most, and where to go on. Shared pages are skipped without looking; what is told may
  // be the same all the same, if somebody wrote the same again. Errors: ENOENT; EROFS (the store is damaged).
  struct Changed {
    std::vector<uint64_t> clusters;
    uint64_t next = 0;  // the volume's number of clusters: that was all
  };
  Task<Result<Changed>> changed_clusters(VolumeId from, VolumeId to, uint64_t first, uint64_t limit);
  // While it is reserved nobody else changes the volume as a whole, or removes it.
  Result<> reserve_volume(VolumeId id);
  void let_go_of(VolumeId id);
  void set_hold_when_full(bool hold) { arbiter_->set_hold_when_full(hold); }
  bool hold_when_full() const { return arbiter_->hold_when_full(); }
  // StoreEvents::on_usage() tells from now on when so many percent of the clusters, 1 to 100, come into use, or are
  // free again: see UsageWatch. What is on its way back counts as used, until it is there.
  void set_usage_thresholds(std::vector<uint32_t> percents);
  std::vector<uint32_t> usage_thresholds() const { return usage_watch_.thresholds(); }
  // Nothing is on its way back any more: for tests. The counts are those of a walk then.
  Task<> settle();

  // For own_clusters(): gives clusters to some that are not mapped, from `index` on and before `end`, as many as can be
  // had at once. Returns how many. Requires: reserve_volume(), or a volume that nobody else knows yet.
  Task<Result<uint32_t>> allocate_some(Volume& volume, uint32_t index, uint32_t end);

 private:
  Store(LwThread& thread, BdevChannel& channel, StoreEvents& events, Superblock superblock);

  Result<Volume*> writable(VolumeId id);
  // 1 to 255 bytes without a slash.
  static Result<> valid_name(std::string_view name);
  Result<> check_name(std::string_view name, const Volume* but) const;
  RecordNumber change(const Record& record);
  Task<Result<VolumeId>> copy(VolumeId id, std::string name, bool as_snapshot,
                              std::map<std::string, std::string> xattrs);
  Task<Result<>> alter(VolumeId id, std::function<void(VolumeRecord&)> how);
  Task<Result<>> allocate_all(Volume& volume);
  Task<Result<>> change_size(Volume& volume, uint64_t clusters);
  Task<Result<>> change_parent(Volume& volume, const Volume* parent, bool only_check);
  Task<Result<Entry>> put_on(const Entry& own, const Entry& parent);
  Task<Result<>> make_room();
  Result<> check_space() const;
  uint64_t reserve(uint64_t more_pages) const;

  void on_request(MapRequest& request);
  Task<> flush(MapRequest& request);
  void changed();
  void look_at_usage();
  void wake();
  Task<> keep();
  bool settle_step();
  void fail(const Error& error);

  LwThread& thread_;
  BdevChannel& channel_;
  StoreEvents& events_;
  Superblock superblock_;
  Geometry geometry_;
  std::string name_;
  std::string damage_;
  std::atomic<bool> dirty_ = false;

  MetaIo io_;
  Epochs epochs_;
  ClusterTable clusters_;
  PagePlaces places_;
  Maps maps_;
  VolumeTable volumes_;
  std::unique_ptr<Journal> journal_;
  std::unique_ptr<WriteArbiter> arbiter_;
  Checkpoint checkpoint_;
  UsageWatch usage_watch_;

  // The keeper: commits, checkpoints and cleans up in the background, and sleeps while there is nothing of that.
  Gate gate_;
  Event wake_;
  Timer commit_timer_;
  Timer settle_timer_;
  bool commit_due_ = false;
  bool starved_ = false;
  bool resuming_ = false;
  bool closing_ = false;
  bool checkpoint_runs_ = false;
  Signal checkpoint_done_;
};

}  // namespace sluice::lvol
