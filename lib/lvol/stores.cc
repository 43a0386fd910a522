#include "lib/lvol/stores.h"

#include <algorithm>

#include "lib/lvol/loader.h"
#include "lib/lvol/volume_bdev.h"

namespace sluice::lvol {
namespace {

std::unexpected<Error> no_store() { return fail(ENODEV, "there is no logical volume store of this name"); }
std::unexpected<Error> no_volume() { return fail(ENODEV, "there is no logical volume of this name"); }

bool is_volume(const Bdev& bdev) { return bdev.product_name() == std::string_view(kVolumeProductName); }

// For a device that is open only as long as one task works with it, whose I/O fails when the device goes.
struct ShortUse final : BdevEvents {
  void on_resize() override {}
  void on_remove() override {}
};

}  // namespace

class Stores::NameTaken {
 public:
  NameTaken(Stores& stores, const std::string& name)
      : stores_(stores), place_(stores.names_taken_.insert(name).first) {}
  NameTaken(const NameTaken&) = delete;
  NameTaken& operator=(const NameTaken&) = delete;
  ~NameTaken() { stores_.names_taken_.erase(place_); }

 private:
  Stores& stores_;
  std::set<std::string>::iterator place_;
};

Stores::Stores(ThreadDirectory& threads, BdevManager& bdevs, StoresEvents& events)
    : threads_(threads), bdevs_(bdevs), events_(events) {
  bdevs_.add_watcher(*this);
}

Stores::~Stores() { CHECK(stores_.empty()); }

Task<> Stores::close_all() {
  co_await copies_.close();
  unlink();
  co_await gate_.close();
  while (!stores_.empty()) {
    const StorePointer store = stores_.front();
    if (std::optional<Lock> locked = co_await lock(store)) {
      std::ignore = co_await store->close(false);
      forget(*store);
    }
  }
}

Task<> Stores::stop_holding() {
  const std::vector<StorePointer> all = stores_;
  for (const StorePointer& store : all) std::ignore = co_await store->set_hold_when_full(false);
}

// --- Finding and locking ---

Stores::StorePointer Stores::find_store(std::string_view name) const {
  const std::optional<Uuid> uuid = Uuid::parse(name);
  for (const StorePointer& store : stores_) {
    if (store->name() == name || (uuid && store->uuid() == *uuid)) return store;
  }
  return nullptr;
}

Stores::Place Stores::find_volume(std::string_view name) const {
  if (const size_t slash = name.find('/'); slash != std::string_view::npos) {
    for (const StorePointer& store : stores_) {
      if (store->name() != name.substr(0, slash)) continue;
      const VolumeId id = store->find(name.substr(slash + 1));
      return id == kNoVolume ? Place{} : Place{.store = store, .id = id};
    }
  }
  const std::optional<Uuid> uuid = Uuid::parse(name);
  if (!uuid) return {};
  for (const StorePointer& store : stores_) {
    if (const VolumeId id = store->find(*uuid); id != kNoVolume) return {.store = store, .id = id};
  }
  return {};
}

bool Stores::name_is_free(const std::string& name) const {
  return !names_taken_.contains(name) &&
         std::ranges::none_of(stores_, [&name](const StorePointer& store) { return store->name() == name; });
}

void Stores::forget(const ServedStore& store) {
  std::erase_if(stores_, [&store](const StorePointer& listed) { return listed.get() == &store; });
}

Task<std::optional<Stores::Lock>> Stores::lock(StorePointer store) {
  while (!store->try_lock()) co_await store->changed.wait();
  Lock locked(store);
  if (store->closing()) co_return std::nullopt;
  co_return locked;
}

Task<Result<Stores::Lock>> Stores::lock_store(std::string name) {
  // Looked up again after each wait: it may have gone, or have another name.
  for (;;) {
    StorePointer store = find_store(name);
    if (store == nullptr || store->closing()) co_return no_store();
    if (store->try_lock()) co_return Lock(std::move(store));
    co_await store->changed.wait();
  }
}

Task<Result<Stores::LockedVolume>> Stores::lock_volume(std::string name) {
  for (;;) {
    Place place = find_volume(name);
    if (place.store == nullptr || place.store->closing()) co_return no_volume();
    if (place.store->try_lock()) co_return LockedVolume{.lock = Lock(std::move(place.store)), .id = place.id};
    co_await place.store->changed.wait();
  }
}

std::vector<Bdev*> Stores::bdevs_of_store(std::string_view store) const {
  const StorePointer found = find_store(store);
  return found == nullptr ? std::vector<Bdev*>() : found->bdevs();
}

Bdev* Stores::bdev_of_volume(std::string_view volume) const {
  const Place place = find_volume(volume);
  return place.store == nullptr ? nullptr : place.store->bdev_of(place.id);
}

// --- Devices that come and go ---

void Stores::on_added(Bdev& bdev) {
  // Our own; also those of a store that is on a volume would not be found again after a restart.
  if (!is_volume(bdev)) std::ignore = gate_.spawn(examine(bdev.name()));
}

Task<> Stores::wait_for_examine() {
  while (examining_ > 0) co_await examined_.wait();
}

Task<Result<Superblock>> Stores::probe(std::string bdev_name) {
  ShortUse use;
  auto handle = bdevs_.open(bdev_name, BdevAccess::kRead, use, "a search for logical volumes");
  if (!handle) co_return std::unexpected(handle.error());
  auto channel = LwThread::current()->get_channel((*handle)->bdev());
  if (!channel) co_return std::unexpected(channel.error());
  MetaIo io(static_cast<BdevChannel&>(*channel->get()));
  co_return co_await read_superblock(io, (*handle)->bdev().size_bytes());
}

Task<> Stores::examine(std::string bdev_name) {
  ++examining_;
  co_await next_turn();  // this begins inside BdevManager::add()
  const Result<Superblock> found = co_await probe(bdev_name);
  if (found) {
    co_await serve(bdev_name, *found);
  } else if (found.error().code != ENODATA && found.error().code != ENODEV) {
    log(LogLevel::kWarning, LogFlag::kLvol, "bdev {}: looking for a logical volume store: {}", bdev_name,
        found.error().what);
  }
  const std::vector<StorePointer> all = stores_;
  for (const StorePointer& store : all) {
    const Bdev* bdev = bdevs_.find(bdev_name);
    if (bdev == nullptr || store->closing() || !store->waits_for_origin(*bdev)) continue;
    const std::optional<Lock> locked = co_await lock(store);
    bdev = bdevs_.find(bdev_name);
    if (locked && bdev != nullptr) store->gain_origin(*bdev);
  }
  if (--examining_ == 0) examined_.notify_all();
}

Task<> Stores::serve(std::string bdev_name, Superblock superblock) {
  const auto refuse = [&](const char* why) {
    log(LogLevel::kError, LogFlag::kLvol, "lvol store {} on bdev {} is not loaded: {}", superblock.name, bdev_name,
        why);
  };
  if (find_store(superblock.uuid.to_string()) != nullptr) {
    refuse("one of the same uuid is: is this another way to the same disk, or a copy of it?");
    co_return;
  }
  const Result<StorePointer> opened = co_await open(bdev_name, superblock.name, std::nullopt);
  if (!opened) {
    refuse(opened.error().what);
    co_return;
  }
  ServedStore& store = **opened;
  store.offer_all();
  log(LogLevel::kNotice, LogFlag::kLvol, "lvol store {} on bdev {}: {} volumes", store.name(), bdev_name,
      store.bdevs().size());
}

Task<Result<Stores::StorePointer>> Stores::open(std::string bdev_name, std::string name,
                                                std::optional<Store::FormatOptions> format) {
  const bool fresh = format.has_value();
  auto opened = co_await ServedStore::open(parts(), bdev_name, std::move(name), std::move(format));
  if (!opened) co_return opened;
  const StorePointer store = std::move(*opened);
  const bool taken =
      find_store(store->uuid().to_string()) != nullptr ||
      std::ranges::any_of(stores_, [&](const StorePointer& other) { return other->name() == store->name(); }) ||
      (!fresh && names_taken_.contains(store->name()));
  if (!taken && !store->base_removed()) {
    stores_.push_back(store);
    co_return store;
  }
  CHECK(store->try_lock());
  std::ignore = co_await store->close(fresh);
  store->unlock();
  if (taken) co_return fail(EEXIST, "there is a store of this name or uuid");
  co_return fail(ENODEV, "the bdev has been removed");
}

void Stores::on_base_removed(ServedStore& store) {
  // One that is not listed yet is looked at when it is open. While all are being closed, so is this one.
  for (const StorePointer& listed : stores_) {
    if (listed.get() == &store) std::ignore = gate_.spawn(drop(listed));
  }
}

Task<> Stores::drop(StorePointer store) {
  co_await next_turn();  // this begins inside BdevManager::remove()
  const std::optional<Lock> locked = co_await lock(store);
  if (!locked) co_return;
  log(LogLevel::kWarning, LogFlag::kLvol, "lvol store {}: its bdev {} is gone, and so are its volumes", store->name(),
      store->base().name());
  std::ignore = co_await store->close(false);
  forget(*store);
}

void Stores::on_origin_removed(ServedStore& store, VolumeId id) {
  for (const StorePointer& listed : stores_) {
    if (listed.get() == &store) std::ignore = gate_.spawn(drop_origin(listed, id));
  }
}

Task<> Stores::drop_origin(StorePointer store, VolumeId id) {
  co_await next_turn();  // this begins inside BdevManager::remove()
  const std::optional<Lock> locked = co_await lock(store);
  if (locked) co_await store->lose_origin(id);
}

// --- Operations on stores ---

Task<Result<Uuid>> Stores::create_store(std::string bdev_name, Store::FormatOptions options) {
  const Bdev* bdev = bdevs_.find(bdev_name);
  if (bdev == nullptr) co_return fail(ENODEV, "there is no bdev of this name");
  if (is_volume(*bdev)) co_return fail(EINVAL, "the bdev is a logical volume, which cannot hold a store");
  if (!name_is_free(options.name)) co_return fail(EEXIST, "there is a logical volume store of this name");
  const NameTaken taken(*this, options.name);
  const Result<Superblock> found = co_await probe(bdev_name);
  if (found) co_return fail(EEXIST, "there is a logical volume store on the bdev: delete that one first");
  if (found.error().code == EILSEQ || found.error().code == ENOTSUP) {
    co_return fail(EEXIST,
                   "there is a logical volume store on the bdev, damaged or of a later version: to give it up, write "
                   "zeroes to the first 8 KiB");
  }
  if (found.error().code != ENODATA) co_return std::unexpected(found.error());
  const std::string name = options.name;
  const Result<StorePointer> opened = co_await open(std::move(bdev_name), name, std::move(options));
  if (!opened) co_return std::unexpected(opened.error());
  co_return (*opened)->uuid();
}

Task<Result<>> Stores::delete_store(std::string store) {
  const Result<Lock> locked = co_await lock_store(std::move(store));
  if (!locked) co_return std::unexpected(locked.error());
  ServedStore& served = **locked;
  if (auto withdrawn = co_await served.withdraw_all(); !withdrawn) co_return withdrawn;
  const Result<> erased = co_await served.close(true);
  forget(served);
  co_return erased;
}

Task<Result<>> Stores::rename_store(std::string store, std::string name) {
  const Result<Lock> locked = co_await lock_store(std::move(store));
  if (!locked) co_return std::unexpected(locked.error());
  if ((*locked)->name() == name) co_return Result<>{};
  if (!name_is_free(name)) co_return fail(EEXIST, "there is a logical volume store of this name");
  const NameTaken taken(*this, name);
  co_return co_await (*locked)->rename_store(name);
}

Task<Result<>> Stores::grow_store(std::string store) {
  const Result<Lock> locked = co_await lock_store(std::move(store));
  if (!locked) co_return std::unexpected(locked.error());
  co_return co_await (*locked)->grow();
}

Task<Result<>> Stores::set_hold_when_full(std::string store, bool hold) {
  const StorePointer found = find_store(store);
  if (found == nullptr) co_return no_store();
  co_return co_await found->set_hold_when_full(hold);
}

Task<Result<>> Stores::set_usage_thresholds(std::string store, std::vector<uint32_t> percents) {
  if (std::ranges::any_of(percents, [](uint32_t percent) { return percent < 1 || percent > 100; })) {
    co_return fail(EINVAL, "a threshold is 1 to 100 percent");
  }
  const StorePointer found = find_store(store);
  if (found == nullptr) co_return no_store();
  co_return co_await found->set_usage_thresholds(std::move(percents));
}

Task<Result<StoreInfo>> Stores::store(std::string store) {
  const StorePointer found = find_store(store);
  if (found == nullptr) co_return no_store();
  co_return co_await found->info();
}

Task<std::vector<StoreInfo>> Stores::stores() {
  const std::vector<StorePointer> all = stores_;
  std::vector<StoreInfo> infos;
  for (const StorePointer& store : all) {
    if (auto info = co_await store->info()) infos.push_back(std::move(*info));
  }
  co_return infos;
}

// --- Operations on volumes ---

Task<Result<Uuid>> Stores::create(std::string store, Store::CreateOptions options) {
  const Result<Lock> locked = co_await lock_store(std::move(store));
  if (!locked) co_return std::unexpected(locked.error());
  co_return co_await (*locked)->create(std::move(options));
}

Task<Result<Uuid>> Stores::snapshot(std::string volume, std::string name) {
  const Result<LockedVolume> locked = co_await lock_volume(std::move(volume));
  if (!locked) co_return std::unexpected(locked.error());
  co_return co_await locked->lock->copy(locked->id, std::move(name), true);
}

Task<Result<Uuid>> Stores::clone(std::string volume, std::string name) {
  const Result<LockedVolume> locked = co_await lock_volume(std::move(volume));
  if (!locked) co_return std::unexpected(locked.error());
  co_return co_await locked->lock->copy(locked->id, std::move(name), false);
}

Task<Result<Uuid>> Stores::clone_bdev(std::string bdev_name, std::string store, std::string name) {
  const Result<Lock> locked = co_await lock_store(std::move(store));
  if (!locked) co_return std::unexpected(locked.error());
  // Held until the volume has its own handle, so that the bdev does not change in between.
  ShortUse use;
  auto origin = bdevs_.open(bdev_name, BdevAccess::kReadStable, use, "the making of a clone");
  if (!origin) co_return std::unexpected(origin.error());
  const Bdev& bdev = (*origin)->bdev();
  if (is_volume(bdev)) {
    co_return fail(EINVAL, "the bdev is a logical volume: make a snapshot of it and clone that with bdev_lvol_clone");
  }
  if (bdev.limits().block_size_bytes > (*locked)->base().limits().block_size_bytes) {
    co_return fail(EINVAL, "the blocks of the bdev are larger than those of the store");
  }
  co_return co_await (*locked)->create(
      {.name = std::move(name), .size_bytes = bdev.size_bytes(), .external_origin = bdev.name()});
}

Task<Result<>> Stores::rename(std::string volume, std::string name) {
  const Result<LockedVolume> locked = co_await lock_volume(std::move(volume));
  if (!locked) co_return std::unexpected(locked.error());
  co_return co_await locked->lock->rename(locked->id, std::move(name));
}

Task<Result<>> Stores::resize(std::string volume, uint64_t size_bytes) {
  const Result<LockedVolume> locked = co_await lock_volume(std::move(volume));
  if (!locked) co_return std::unexpected(locked.error());
  co_return co_await locked->lock->resize(locked->id, size_bytes);
}

Task<Result<>> Stores::set_parent(std::string volume, std::string parent) {
  const Result<LockedVolume> locked = co_await lock_volume(std::move(volume));
  if (!locked) co_return std::unexpected(locked.error());
  const Place place = find_volume(parent);
  if (place.store == nullptr) co_return fail(ENODEV, "there is no logical volume of the parent's name");
  if (place.store != locked->lock.store()) co_return fail(EINVAL, "the parent is in another store");
  co_return co_await locked->lock->set_parent(locked->id, place.id, "");
}

Task<Result<>> Stores::set_parent_bdev(std::string volume, std::string bdev_name) {
  const Result<LockedVolume> locked = co_await lock_volume(std::move(volume));
  if (!locked) co_return std::unexpected(locked.error());
  // Held until the volume has its own handle, so that the bdev does not change in between.
  ShortUse use;
  auto origin = bdevs_.open(bdev_name, BdevAccess::kReadStable, use, "the change of a parent");
  if (!origin) co_return std::unexpected(origin.error());
  const Bdev& bdev = (*origin)->bdev();
  if (is_volume(bdev)) co_return fail(EINVAL, "the bdev is a logical volume: bdev_lvol_set_parent is for those");
  if (bdev.limits().block_size_bytes > locked->lock->base().limits().block_size_bytes) {
    co_return fail(EINVAL, "the blocks of the bdev are larger than those of the store");
  }
  co_return co_await locked->lock->set_parent(locked->id, kNoVolume, bdev.name());
}

Task<Result<>> Stores::set_readonly(std::string volume) {
  const Result<LockedVolume> locked = co_await lock_volume(std::move(volume));
  if (!locked) co_return std::unexpected(locked.error());
  co_return co_await locked->lock->set_readonly(locked->id);
}

Task<Result<>> Stores::remove(std::string volume) {
  const Result<LockedVolume> locked = co_await lock_volume(std::move(volume));
  if (!locked) co_return std::unexpected(locked.error());
  co_return co_await locked->lock->remove(locked->id);
}

Task<Result<VolumeInfo>> Stores::volume(std::string volume) {
  const Place place = find_volume(volume);
  if (place.store == nullptr) co_return no_volume();
  co_return co_await place.store->volume(place.id);
}

Task<Result<VolumeUsage>> Stores::usage(std::string volume) {
  const Place place = find_volume(volume);
  if (place.store == nullptr) co_return no_volume();
  co_return co_await place.store->usage(place.id);
}

Task<Result<std::vector<VolumeInfo>>> Stores::volumes(std::optional<std::string> store) {
  std::vector<StorePointer> chosen = stores_;
  if (store) {
    chosen = {find_store(*store)};
    if (chosen.front() == nullptr) co_return no_store();
  }
  std::vector<VolumeInfo> infos;
  for (const StorePointer& each : chosen) {
    auto volumes = co_await each->volumes();
    if (volumes) std::ranges::move(*volumes, std::back_inserter(infos));
  }
  co_return infos;
}

}  // namespace sluice::lvol
