// ServedStore: a store in use: its base bdev, which nobody else writes to, a lightweight thread of its own, and a bdev
// for every volume.
//
// A volume that stands on an external bdev is offered only while that one is there.
//
// Thread:    the application's, but for what Store calls.
// Ownership: owns all of it; borrows the directory, the manager and the events.
// Invariants: the operations run one at a time: their callers hold the lock. Those that only look need none.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/log.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/lvol/store.h"
#include "lib/lvol/stores_info.h"
#include "lib/thread/thread_directory.h"

namespace sluice::lvol {

class ServedStore;

// On the application's thread.
class ServedStoreEvents {
 public:
  virtual ~ServedStoreEvents() = default;
  // It is going: close() the store soon. Called inside BdevManager::remove().
  virtual void on_base_removed(ServedStore& store) = 0;
  // lose_origin() soon. Called inside BdevManager::remove().
  virtual void on_origin_removed(ServedStore& store, VolumeId id) = 0;
  // A write found no free cluster; not told more often than every ten seconds.
  virtual void on_no_space(ServedStore& store) = 0;
  // A threshold of Store::set_usage_thresholds() has been crossed.
  virtual void on_usage(ServedStore& store, uint32_t percent, bool above) = 0;
  // Metadata cannot be written any more.
  virtual void on_failed(ServedStore& store) = 0;
};

class ServedStore final : public BdevEvents, public StoreEvents {
 public:
  struct Parts {
    ThreadDirectory& threads;
    BdevManager& bdevs;
    ServedStoreEvents& events;
  };
  // Loads the store of the bdev; makes it first where `format` says so. Offers nothing yet.
  // Errors, nothing left: those of BdevManager::open(), Store::format() and Store::load().
  static Task<Result<std::shared_ptr<ServedStore>>> open(Parts parts, std::string base_name, std::string name,
                                                         std::optional<Store::FormatOptions> format);
  explicit ServedStore(Parts parts);
  // Requires: close() has completed (checked).
  ~ServedStore() override;

  const Uuid& uuid() const { return uuid_; }
  const std::string& name() const { return name_; }
  const Bdev& base() const { return base_->bdev(); }
  // The base bdev is going.
  bool base_removed() const { return base_removed_; }
  bool closing() const { return closing_; }
  // kNoVolume if there is none.
  VolumeId find(const Uuid& uuid) const;
  VolumeId find(std::string_view name) const;
  // The bdev of a volume; nullptr if it is not offered.
  Bdev* bdev_of(VolumeId id) const;
  std::vector<Bdev*> bdevs() const;

  // The lock of the operations. True: it is the caller's now. Else wait for `changed`, and look again at all.
  bool try_lock();
  void unlock();
  Signal changed;

  // --- Operations, with the lock ---

  // Makes bdevs of all volumes; logs what it cannot offer. Does not wait.
  void offer_all();
  // Lets all go, with the users of the volumes told as if they had been pulled out. `erase`: leaves no store behind.
  // Errors: EIO, of erasing; the store is closed then as well.
  Task<Result<>> close(bool erase);
  // Withdraws all volumes. Errors: EBUSY: one is in use; all are offered as before.
  Task<Result<>> withdraw_all();

  // Errors: those of the store's operations; EEXIST (there is a bdev of that name or uuid). Nothing is left of a failed
  // one, but for EIO: the store can only be read then, and a load will tell.
  Task<Result<Uuid>> create(Store::CreateOptions options);
  Task<Result<Uuid>> copy(VolumeId id, std::string name, bool as_snapshot);
  // Also: EBUSY: its bdev is in use.
  Task<Result<>> remove(VolumeId id);
  Task<Result<>> rename(VolumeId id, std::string name);
  Task<Result<>> resize(VolumeId id, uint64_t size_bytes);
  Task<Result<>> set_readonly(VolumeId id);
  // `parent`: kNoVolume for `external_origin`, a bdev. Also: EBUSY: its bdev is in use; those of opening the origin.
  Task<Result<>> set_parent(VolumeId id, VolumeId parent, std::string external_origin);
  Task<Result<>> rename_store(std::string name);
  Task<Result<>> grow();
  // Of an external bdev that has appeared: whether it was waited for.
  bool waits_for_origin(const Bdev& bdev) const;
  void gain_origin(const Bdev& bdev);
  Task<> lose_origin(VolumeId id);

  // --- Looking; any number, at any time. Errors: ENODEV: it is closing ---

  Task<Result<StoreInfo>> info();
  Task<Result<std::vector<VolumeInfo>>> volumes();
  // Also: ENODEV: the volume is gone.
  Task<Result<VolumeInfo>> volume(VolumeId id);
  Task<Result<VolumeUsage>> usage(VolumeId id);
  Task<Result<>> set_hold_when_full(bool hold);
  Task<Result<>> set_usage_thresholds(std::vector<uint32_t> percents);

 private:
  // A volume and its bdev, and the one it stands on.
  struct Offered final : BdevEvents {
    Offered(ServedStore& of_store, VolumeId of_id) : store(of_store), id(of_id) {}
    void on_resize() override {}
    void on_remove() override { store.parts_.events.on_origin_removed(store, id); }

    ServedStore& store;
    const VolumeId id;
    Volume* volume = nullptr;
    std::shared_ptr<const VolumeRecord> record;
    Bdev* bdev = nullptr;
    std::unique_ptr<BdevHandle> origin;
  };
  // A volume as the store's thread has seen it.
  struct Seen {
    Volume* volume = nullptr;  // it is gone: nullptr
    std::shared_ptr<const VolumeRecord> record;
  };
  // What an operation came to, and its volume after it.
  struct Changed {
    Result<> result;
    Seen seen;
  };
  // While it exists, the store is not closed.
  class Looking;

  // On the store's thread.
  Task<Result<>> load(std::optional<Store::FormatOptions> format);
  void let_go();
  static Seen look(const Store& store, VolumeId id);
  static Task<Result<Seen>> make(Store& store, Store::CreateOptions options);
  static Task<Result<Seen>> make_copy(Store& store, VolumeId id, std::string name, bool as_snapshot);
  static Task<Changed> change(Store& store, VolumeId id, Task<Result<>> operation);
  static VolumeInfo describe(const Store& store, const Volume& volume, uint64_t own_clusters);
  static Task<VolumeInfo> describe_one(Store& store, VolumeId id);
  static Task<std::vector<VolumeInfo>> describe_all(Store& store);

  void on_resize() override;
  void on_remove() override;
  void on_no_space(bool waits) override;
  void on_usage(uint32_t percent, bool above) override;
  void on_failed(const Error& error) override;

  std::string alias_of(std::string_view volume_name) const { return name_ + "/" + std::string(volume_name); }
  Offered& adopt(Seen seen);
  Result<> offer(Offered& offered);
  void offer_again(Offered& offered);
  Task<Result<Uuid>> adopt_new(Result<Seen> made);
  Task<Result<>> withdraw(Offered& offered, RemoveMode mode);
  void complete(VolumeInfo& info) const;

  const Parts parts_;
  LwThread& app_;
  Uuid uuid_;
  std::string name_;
  std::unique_ptr<BdevHandle> base_;
  LwThread* thread_ = nullptr;
  ChannelRef channel_;            // the store's thread's
  std::unique_ptr<Store> store_;  //
  std::map<VolumeId, std::unique_ptr<Offered>> volumes_;
  bool base_removed_ = false;
  bool locked_ = false;
  bool closing_ = false;
  uint32_t lookers_ = 0;
  LogLimiter no_space_limiter_{1};
};

}  // namespace sluice::lvol
