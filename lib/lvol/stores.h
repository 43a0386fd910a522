// Stores: all logical volume stores of a process, by name and uuid. Looks at every bdev that appears, and serves the
// store that it finds there; see ServedStore for what that means.
//
// Operations on one store run one after the other, those on different ones do not wait for each other.
//
// Thread:    the application's lightweight thread.
// Ownership: owns the stores; borrows directory, manager and events.
// Source:    docs/lvol.md
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "lib/bdev/bdev_manager.h"
#include "lib/lvol/copy_jobs.h"
#include "lib/lvol/served_store.h"
#include "lib/thread/gate.h"

namespace sluice::lvol {

// What an operator may want to be told.
class StoresEvents {
 public:
  virtual ~StoresEvents() = default;
  // A write found no free cluster; not told more often than every ten seconds.
  virtual void on_no_space(const std::string& store) = 0;
  // So many percent of the store's clusters are in use now, or not any more.
  virtual void on_usage(const std::string& store, uint32_t percent, bool above) = 0;
  // The store can only be read from here on.
  virtual void on_failed(const std::string& store) = 0;
};

class Stores final : public BdevWatcher, private ServedStoreEvents {
 public:
  // Looks at devices that are added from here on.
  Stores(ThreadDirectory& threads, BdevManager& bdevs, StoresEvents& events);
  // Requires: close_all() has completed (checked).
  ~Stores() override;

  // Until all devices that have been added so far have been looked at.
  Task<> wait_for_examine();
  // From here on no write waits for space: before the users of volumes are ended, who wait for their writes.
  Task<> stop_holding();
  // Closes all; volumes vanish for those who use them. Call it once.
  Task<> close_all();

  // A store is named by its name or uuid; a volume by "store/volume" or its uuid, which is the name of its bdev.
  // Errors of all that follow: ENODEV: there is none of this name; those of ServedStore's operations.

  // Errors: EEXIST (a store of this name; there is a store on the bdev); EINVAL (name, cluster size; the bdev is a
  // logical volume); ENODEV; ENOSPC (it is too small); EBUSY (somebody else writes to it); EROFS; EIO.
  Task<Result<Uuid>> create_store(std::string bdev_name, Store::FormatOptions options);
  // And all its volumes. Errors: EBUSY: one of them is in use.
  Task<Result<>> delete_store(std::string store);
  // Errors: EEXIST: there is a store of the new name.
  Task<Result<>> rename_store(std::string store, std::string name);
  Task<Result<>> grow_store(std::string store);
  Task<Result<>> set_hold_when_full(std::string store, bool hold);
  // StoresEvents::on_usage() tells from now on when these are crossed. Errors: EINVAL: one is not 1 to 100.
  Task<Result<>> set_usage_thresholds(std::string store, std::vector<uint32_t> percents);
  Task<Result<StoreInfo>> store(std::string store);
  Task<std::vector<StoreInfo>> stores();

  Task<Result<Uuid>> create(std::string store, Store::CreateOptions options);
  Task<Result<Uuid>> snapshot(std::string volume, std::string name);
  Task<Result<Uuid>> clone(std::string volume, std::string name);
  // A volume that begins as what the bdev holds. While it exists nobody else may write to the bdev. Errors: EINVAL (the
  // bdev is a logical volume; its blocks are larger than the store's); EBUSY (somebody writes to it).
  Task<Result<Uuid>> clone_bdev(std::string bdev_name, std::string store, std::string name);
  Task<Result<>> rename(std::string volume, std::string name);
  Task<Result<>> resize(std::string volume, uint64_t size_bytes);
  Task<Result<>> set_readonly(std::string volume);
  // What the volume does not own itself it has from another snapshot of its store, or from another bdev, from now on.
  // Errors: EBUSY: it is in use; EINVAL (the two are of different stores, or it is the wrong kind of bdev); EPERM: that
  // is no read-only volume, or larger.
  Task<Result<>> set_parent(std::string volume, std::string parent);
  Task<Result<>> set_parent_bdev(std::string volume, std::string bdev_name);
  // Operations that take long, and need no lock.
  CopyJobs& copies() { return copies_; }
  // Errors: EBUSY: it is in use.
  Task<Result<>> remove(std::string volume);
  Task<Result<VolumeInfo>> volume(std::string volume);
  // Looks at the whole map of the volume.
  Task<Result<VolumeUsage>> usage(std::string volume);
  // All volumes of one store, or of all.
  Task<Result<std::vector<VolumeInfo>>> volumes(std::optional<std::string> store);

  // The bdevs of a store's volumes, or of one volume: to tell who uses them.
  std::vector<Bdev*> bdevs_of_store(std::string_view store) const;
  Bdev* bdev_of_volume(std::string_view volume) const;

 private:
  using StorePointer = std::shared_ptr<ServedStore>;
  struct Place {
    StorePointer store;
    VolumeId id = kNoVolume;
  };
  // The right to operate on a store, until its end.
  class Lock {
   public:
    explicit Lock(StorePointer store) : store_(std::move(store)) {}
    Lock(Lock&&) = default;
    Lock& operator=(Lock&&) = delete;
    ~Lock() {
      if (store_ != nullptr) store_->unlock();
    }
    ServedStore& operator*() const { return *store_; }
    ServedStore* operator->() const { return store_.get(); }
    const StorePointer& store() const { return store_; }

   private:
    StorePointer store_;
  };
  struct LockedVolume {
    Lock lock;
    VolumeId id;
  };
  // A name that a store is about to have.
  class NameTaken;

  void on_added(Bdev& bdev) override;
  void on_removing(Bdev&) override {}
  void on_base_removed(ServedStore& store) override;
  void on_origin_removed(ServedStore& store, VolumeId id) override;
  void on_no_space(ServedStore& store) override { events_.on_no_space(store.name()); }
  void on_usage(ServedStore& store, uint32_t percent, bool above) override {
    events_.on_usage(store.name(), percent, above);
  }
  void on_failed(ServedStore& store) override { events_.on_failed(store.name()); }

  StorePointer find_store(std::string_view name) const;
  Place find_volume(std::string_view name) const;
  bool name_is_free(const std::string& name) const;
  ServedStore::Parts parts() { return {.threads = threads_, .bdevs = bdevs_, .events = *this}; }
  void forget(const ServedStore& store);

  Task<Result<Lock>> lock_store(std::string name);
  Task<Result<LockedVolume>> lock_volume(std::string name);
  // nullopt: it is closing.
  static Task<std::optional<Lock>> lock(StorePointer store);

  Task<Result<Superblock>> probe(std::string bdev_name);
  Task<> examine(std::string bdev_name);
  Task<> serve(std::string bdev_name, Superblock superblock);
  Task<> drop(StorePointer store);
  Task<> drop_origin(StorePointer store, VolumeId id);
  // Opens and lists it. Errors: those of ServedStore::open(); EEXIST; ENODEV: the bdev went meanwhile.
  Task<Result<StorePointer>> open(std::string bdev_name, std::string name, std::optional<Store::FormatOptions> format);

  ThreadDirectory& threads_;
  BdevManager& bdevs_;
  StoresEvents& events_;
  CopyJobs copies_{bdevs_};
  std::vector<StorePointer> stores_;
  std::set<std::string> names_taken_;
  Gate gate_;
  uint32_t examining_ = 0;
  Signal examined_;
};

}  // namespace sluice::lvol
