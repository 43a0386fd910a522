#include "lib/lvol/served_store.h"

#include "lib/lvol/volume_bdev.h"

namespace sluice::lvol {
namespace {

constexpr const char* kUser = "a logical volume store";

std::unexpected<Error> closed() { return fail(ENODEV, "the store is being closed"); }

}  // namespace

class ServedStore::Looking {
 public:
  explicit Looking(ServedStore& store) : store_(store) { ++store_.lookers_; }
  Looking(const Looking&) = delete;
  Looking& operator=(const Looking&) = delete;
  ~Looking() {
    if (--store_.lookers_ == 0) store_.changed.notify_all();
  }

 private:
  ServedStore& store_;
};

// --- Opening and closing ---

ServedStore::ServedStore(Parts parts) : parts_(parts), app_(*LwThread::current()) {}

ServedStore::~ServedStore() { CHECK(store_ == nullptr && base_ == nullptr); }

Task<Result<std::shared_ptr<ServedStore>>> ServedStore::open(Parts parts, std::string base_name, std::string name,
                                                             std::optional<Store::FormatOptions> format) {
  auto made = std::make_shared<ServedStore>(parts);
  ServedStore& self = *made;
  auto base = parts.bdevs.open(base_name, BdevAccess::kWriteAlone, self, kUser);
  if (!base) co_return std::unexpected(base.error());
  auto thread = parts.threads.create("lvol." + name, parts.threads.all_cpus());
  if (!thread) co_return std::unexpected(thread.error());
  self.base_ = std::move(*base);
  self.thread_ = *thread;
  const Result<> loaded = co_await call_on(**thread, [&] { return self.load(std::move(format)); });
  if (!loaded) {
    co_await parts.threads.destroy(**thread);
    self.base_.reset();
    co_return std::unexpected(loaded.error());
  }
  co_return made;
}

Task<Result<>> ServedStore::load(std::optional<Store::FormatOptions> format) {
  auto channel = thread_->get_channel(base_->bdev());
  if (!channel) co_return std::unexpected(channel.error());
  channel_ = std::move(*channel);
  auto& base = static_cast<BdevChannel&>(*channel_.get());
  const bool fresh = format.has_value();
  if (fresh) {
    if (auto formatted = co_await Store::format(base, std::move(*format)); !formatted) {
      let_go();
      co_return formatted;
    }
  }
  auto loaded = co_await Store::load(*thread_, base, *this);
  if (!loaded) {
    if (fresh) std::ignore = co_await Store::erase(base);
    let_go();
    co_return std::unexpected(loaded.error());
  }
  store_ = std::move(*loaded);
  uuid_ = store_->uuid();
  name_ = store_->name();
  for (const auto& [id, volume] : store_->volumes().all()) adopt(look(*store_, id));
  co_return Result<>{};
}

void ServedStore::let_go() {
  store_.reset();
  channel_.reset();
}

Task<Result<>> ServedStore::close(bool erase) {
  closing_ = true;
  // Writes that wait for space would keep the users of the volumes from leaving.
  co_await call_on(*thread_, [this] { store_->set_hold_when_full(false); });
  for (const auto& [id, volume] : volumes_) {
    if (volume->bdev != nullptr) std::ignore = co_await withdraw(*volume, RemoveMode::kForce);
    volume->origin.reset();
  }
  while (lookers_ > 0) co_await changed.wait();
  co_await call_on(*thread_, [this] { return store_->close(); });
  Result<> erased;
  if (erase) {
    erased = co_await call_on(*thread_, [this] { return Store::erase(static_cast<BdevChannel&>(*channel_.get())); });
  }
  co_await call_on(*thread_, [this] { let_go(); });
  co_await parts_.threads.destroy(*thread_);
  volumes_.clear();
  base_.reset();
  co_return erased;
}

bool ServedStore::try_lock() {
  if (locked_) return false;
  return locked_ = true;
}

void ServedStore::unlock() {
  locked_ = false;
  changed.notify_all();
}

// --- Events ---

void ServedStore::on_resize() {
  log(LogLevel::kNotice, LogFlag::kLvol, "lvol store {}: bdev {} has another size now: bdev_lvol_grow_lvstore uses it",
      name_, base().name());
}

void ServedStore::on_remove() {
  base_removed_ = true;
  parts_.events.on_base_removed(*this);
}

// The messages arrive before the store's close() has completed, as both come from its thread.
void ServedStore::on_no_space(bool waits) {
  uint64_t held_back = 0;
  if (!no_space_limiter_.allow(thread_->now_ns(), held_back)) return;
  post_to(app_, [this, waits] {
    log(LogLevel::kWarning, LogFlag::kLvol, "lvol store {} has no free cluster: writes {}", name_,
        waits ? "wait until there is one" : "fail");
    parts_.events.on_no_space(*this);
  });
}

void ServedStore::on_usage(uint32_t percent, bool above) {
  post_to(app_, [this, percent, above] {
    if (above) {
      log(LogLevel::kWarning, LogFlag::kLvol, "lvol store {}: {} percent of its clusters are in use", name_, percent);
    } else {
      log(LogLevel::kNotice, LogFlag::kLvol, "lvol store {}: less than {} percent of its clusters are in use again",
          name_, percent);
    }
    parts_.events.on_usage(*this, percent, above);
  });
}

void ServedStore::on_failed(const Error&) {
  post_to(app_, [this] { parts_.events.on_failed(*this); });
}

// --- Volumes and their bdevs ---

VolumeId ServedStore::find(const Uuid& uuid) const {
  for (const auto& [id, volume] : volumes_) {
    if (volume->record->uuid == uuid) return id;
  }
  return kNoVolume;
}

VolumeId ServedStore::find(std::string_view name) const {
  for (const auto& [id, volume] : volumes_) {
    if (volume->record->name == name) return id;
  }
  return kNoVolume;
}

Bdev* ServedStore::bdev_of(VolumeId id) const {
  const auto found = volumes_.find(id);
  return found == volumes_.end() ? nullptr : found->second->bdev;
}

std::vector<Bdev*> ServedStore::bdevs() const {
  std::vector<Bdev*> bdevs;
  for (const auto& [id, volume] : volumes_) {
    if (volume->bdev != nullptr) bdevs.push_back(volume->bdev);
  }
  return bdevs;
}

ServedStore::Offered& ServedStore::adopt(Seen seen) {
  const VolumeId id = seen.record->id;
  auto offered = std::make_unique<Offered>(*this, id);
  offered->volume = seen.volume;
  offered->record = std::move(seen.record);
  return *(volumes_[id] = std::move(offered));
}

Result<> ServedStore::offer(Offered& offered) {
  const VolumeRecord& record = *offered.record;
  if (!record.external_origin.empty() && offered.origin == nullptr) {
    auto origin = parts_.bdevs.open(record.external_origin, BdevAccess::kReadStable, offered,
                                    "logical volume " + alias_of(record.name));
    if (!origin) return std::unexpected(origin.error());
    offered.origin = std::move(*origin);
  }
  Bdev* origin = offered.origin == nullptr ? nullptr : &offered.origin->bdev();
  auto added = parts_.bdevs.add(make_volume_bdev(*store_, *offered.volume, record, name_, base_->bdev(), origin));
  if (!added) {
    offered.origin.reset();
    return std::unexpected(added.error());
  }
  offered.bdev = *added;
  return {};
}

void ServedStore::offer_again(Offered& offered) {
  if (const Result<> done = offer(offered); !done) {
    log(LogLevel::kWarning, LogFlag::kLvol, "logical volume {} is not offered: {}{}", alias_of(offered.record->name),
        offered.record->external_origin.empty() ? "" : "external bdev " + offered.record->external_origin + ": ",
        done.error().what);
  }
}

void ServedStore::offer_all() {
  for (const auto& [id, volume] : volumes_) {
    if (volume->bdev == nullptr) offer_again(*volume);
  }
}

Task<Result<>> ServedStore::withdraw(Offered& offered, RemoveMode mode) {
  const Result<> removed = co_await parts_.bdevs.remove(*offered.bdev, mode);
  if (removed) offered.bdev = nullptr;
  co_return removed;
}

Task<Result<>> ServedStore::withdraw_all() {
  for (const Bdev* bdev : bdevs()) {
    if (!parts_.bdevs.users(*bdev).empty()) co_return fail(EBUSY, "a volume of the store is in use");
  }
  for (const auto& [id, volume] : volumes_) {
    if (volume->bdev == nullptr) continue;
    if (const Result<> removed = co_await withdraw(*volume, RemoveMode::kIfUnused); !removed) {
      offer_all();
      co_return removed;
    }
  }
  co_return Result<>{};
}

bool ServedStore::waits_for_origin(const Bdev& bdev) const {
  for (const auto& [id, volume] : volumes_) {
    const std::string& origin = volume->record->external_origin;
    if (volume->bdev == nullptr && !origin.empty() && parts_.bdevs.find(origin) == &bdev) return true;
  }
  return false;
}

void ServedStore::gain_origin(const Bdev& bdev) {
  for (const auto& [id, volume] : volumes_) {
    const std::string& origin = volume->record->external_origin;
    const bool waits = volume->bdev == nullptr && !origin.empty() && parts_.bdevs.find(origin) == &bdev;
    if (waits) offer_again(*volume);
  }
}

Task<> ServedStore::lose_origin(VolumeId id) {
  const auto found = volumes_.find(id);
  if (found == volumes_.end()) co_return;
  Offered& offered = *found->second;
  if (offered.bdev != nullptr) std::ignore = co_await withdraw(offered, RemoveMode::kForce);
  offered.origin.reset();
}

// --- On the store's thread ---

ServedStore::Seen ServedStore::look(const Store& store, VolumeId id) {
  Volume* volume = store.volumes().find(id);
  return volume == nullptr ? Seen{} : Seen{.volume = volume, .record = volume->record};
}

Task<Result<ServedStore::Seen>> ServedStore::make(Store& store, Store::CreateOptions options) {
  const Result<VolumeId> id = co_await store.create(std::move(options));
  if (!id) co_return std::unexpected(id.error());
  co_return look(store, *id);
}

Task<Result<ServedStore::Seen>> ServedStore::make_copy(Store& store, VolumeId id, std::string name, bool as_snapshot) {
  const Result<VolumeId> made =
      as_snapshot ? co_await store.snapshot(id, std::move(name), {}) : co_await store.clone(id, std::move(name), {});
  if (!made) co_return std::unexpected(made.error());
  co_return look(store, *made);
}

Task<ServedStore::Changed> ServedStore::change(Store& store, VolumeId id, Task<Result<>> operation) {
  Result<> result = co_await std::move(operation);
  co_return Changed{.result = result, .seen = look(store, id)};
}

// But for its clones.
VolumeInfo ServedStore::describe(const Store& store, const Volume& volume, uint64_t own_clusters) {
  VolumeInfo info;
  info.record = *volume.record;
  info.own_clusters = own_clusters;
  info.cluster_bytes = store.geometry().cluster_bytes;
  if (const Volume* parent = store.volumes().find(info.record.parent)) info.parent = parent->record->name;
  return info;
}

Task<VolumeInfo> ServedStore::describe_one(Store& store, VolumeId id) {
  const Result<uint64_t> own = co_await store.own_clusters_of(id);
  if (!own) co_return VolumeInfo{};
  VolumeInfo info = describe(store, *store.volumes().find(id), *own);
  for (const Volume* child : store.volumes().children_of(id)) info.clones.push_back(child->record->name);
  co_return info;
}

Task<std::vector<VolumeInfo>> ServedStore::describe_all(Store& store) {
  std::vector<VolumeId> ids;
  for (const auto& [id, volume] : store.volumes().all()) ids.push_back(id);
  std::map<VolumeId, uint64_t> own_clusters;
  for (const VolumeId id : ids) own_clusters[id] = (co_await store.own_clusters_of(id)).value_or(0);
  // All at one moment. Some have gone meanwhile, perhaps, and new ones have come.
  std::vector<VolumeInfo> infos;
  std::map<VolumeId, std::vector<std::string>> clones;
  for (const auto& [id, volume] : store.volumes().all()) {
    clones[volume->record->parent].push_back(volume->record->name);
    if (const auto own = own_clusters.find(id); own != own_clusters.end()) {
      infos.push_back(describe(store, *volume, own->second));
    }
  }
  for (VolumeInfo& info : infos) info.clones = std::move(clones[info.record.id]);
  co_return infos;
}

// --- Operations ---

Task<Result<Uuid>> ServedStore::adopt_new(Result<Seen> made) {
  if (!made) co_return std::unexpected(made.error());
  Offered& offered = adopt(std::move(*made));
  const VolumeId id = offered.id;
  const Uuid uuid = offered.record->uuid;
  const Result<> done = offer(offered);
  if (done) co_return uuid;
  volumes_.erase(id);
  std::ignore = co_await call_on(*thread_, [&] { return store_->remove(id); });
  co_return std::unexpected(done.error());
}

Task<Result<Uuid>> ServedStore::create(Store::CreateOptions options) {
  if (parts_.bdevs.find(alias_of(options.name)) != nullptr) co_return fail(EEXIST, "a bdev of this name exists");
  co_return co_await adopt_new(co_await call_on(*thread_, [&] { return make(*store_, std::move(options)); }));
}

Task<Result<Uuid>> ServedStore::copy(VolumeId id, std::string name, bool as_snapshot) {
  if (parts_.bdevs.find(alias_of(name)) != nullptr) co_return fail(EEXIST, "a bdev of this name exists");
  auto made = co_await call_on(*thread_, [&] { return make_copy(*store_, id, std::move(name), as_snapshot); });
  co_return co_await adopt_new(std::move(made));
}

Task<Result<>> ServedStore::remove(VolumeId id) {
  Offered& offered = *volumes_.at(id);
  if (offered.bdev != nullptr) {
    if (auto withdrawn = co_await withdraw(offered, RemoveMode::kIfUnused); !withdrawn) co_return withdrawn;
  }
  const Changed done = co_await call_on(*thread_, [&] { return change(*store_, id, store_->remove(id)); });
  if (done.seen.volume == nullptr) {
    volumes_.erase(id);
  } else {
    offer_again(offered);
  }
  co_return done.result;
}

Task<Result<>> ServedStore::rename(VolumeId id, std::string name) {
  Offered& offered = *volumes_.at(id);
  const std::string before = alias_of(offered.record->name);
  const std::string after = alias_of(name);
  // Both meanwhile, so that neither the new one nor the way back can fail.
  if (offered.bdev != nullptr) {
    if (auto taken = parts_.bdevs.set_aliases(*offered.bdev, {before, after}); !taken) co_return taken;
  }
  Changed done = co_await call_on(*thread_, [&] { return change(*store_, id, store_->rename(id, std::move(name))); });
  offered.record = std::move(done.seen.record);
  if (offered.bdev != nullptr) {
    CHECK(parts_.bdevs.set_aliases(*offered.bdev, {alias_of(offered.record->name)}).has_value());
  }
  co_return done.result;
}

Task<Result<>> ServedStore::resize(VolumeId id, uint64_t size_bytes) {
  Offered& offered = *volumes_.at(id);
  if (offered.record->snapshot) co_return fail(EPERM, "a snapshot keeps its size");
  const uint64_t cluster = store_->geometry().cluster_bytes;
  if (size_bytes == 0 || size_bytes > UINT64_MAX - cluster) co_return fail(EINVAL, "a volume cannot have this size");
  const uint64_t before = offered.record->size_bytes;
  const uint64_t after = (size_bytes + cluster - 1) / cluster * cluster;
  // What is cut off must not be used any more, and what is new not be used before it is there.
  if (offered.bdev != nullptr && after < before) parts_.bdevs.set_size(*offered.bdev, after);
  Changed done = co_await call_on(*thread_, [&] { return change(*store_, id, store_->resize(id, size_bytes)); });
  offered.record = std::move(done.seen.record);
  if (offered.bdev != nullptr) parts_.bdevs.set_size(*offered.bdev, offered.record->size_bytes);
  co_return done.result;
}

Task<Result<>> ServedStore::set_readonly(VolumeId id) {
  Offered& offered = *volumes_.at(id);
  if (offered.record->snapshot || offered.record->readonly) co_return Result<>{};
  // First of all, so that no write comes after it; that of a damaged store is so anyway, and stays it.
  const bool before = offered.bdev != nullptr && offered.bdev->readonly();
  if (offered.bdev != nullptr) parts_.bdevs.set_readonly(*offered.bdev, true);
  Changed done = co_await call_on(*thread_, [&] { return change(*store_, id, store_->set_readonly(id)); });
  offered.record = std::move(done.seen.record);
  if (offered.bdev != nullptr) parts_.bdevs.set_readonly(*offered.bdev, before || offered.record->readonly);
  co_return done.result;
}

Task<Result<>> ServedStore::set_parent(VolumeId id, VolumeId parent, std::string external_origin) {
  Offered& offered = *volumes_.at(id);
  // The bdev that it stands on may be another one afterwards: it is made anew.
  if (offered.bdev != nullptr) {
    if (auto withdrawn = co_await withdraw(offered, RemoveMode::kIfUnused); !withdrawn) co_return withdrawn;
  }
  Changed done = co_await call_on(
      *thread_, [&] { return change(*store_, id, store_->set_parent(id, parent, std::move(external_origin))); });
  offered.record = std::move(done.seen.record);
  offered.origin.reset();
  const Result<> again = offer(offered);
  co_return done.result ? again : done.result;
}

Task<Result<>> ServedStore::rename_store(std::string name) {
  const std::string before = name_;
  const auto set_aliases = [this](const std::vector<std::string>& store_names) -> Result<> {
    for (const auto& [id, volume] : volumes_) {
      if (volume->bdev == nullptr) continue;
      std::vector<std::string> aliases;
      for (const std::string& store_name : store_names) aliases.push_back(store_name + "/" + volume->record->name);
      if (auto set = parts_.bdevs.set_aliases(*volume->bdev, std::move(aliases)); !set) return set;
    }
    return {};
  };
  // Both meanwhile, so that neither the new ones nor the way back can fail.
  Result<> renamed = set_aliases({before, name});
  if (renamed) renamed = co_await call_on(*thread_, [&] { return store_->rename_store(name); });
  // A store that cannot write the new name may have it nevertheless.
  name_ = co_await call_on(*thread_, [this] { return store_->name(); });
  CHECK(set_aliases({name_}).has_value());
  co_return renamed;
}

Task<Result<>> ServedStore::grow() {
  co_return co_await call_on(*thread_, [this] { return store_->grow(); });
}

// --- Looking ---

namespace {

StoreInfo info_of(const Store& store) {
  StoreInfo info;
  info.uuid = store.uuid();
  info.cluster_bytes = store.geometry().cluster_bytes;
  info.usage = store.usage();
  info.hold_when_full = store.hold_when_full();
  info.usage_thresholds = store.usage_thresholds();
  info.damage = store.damage();
  return info;
}

}  // namespace

Task<Result<StoreInfo>> ServedStore::info() {
  if (closing_) co_return closed();
  const Looking looking(*this);
  StoreInfo info = co_await call_on(*thread_, [this] { return info_of(*store_); });
  info.name = name_;
  info.base_bdev = base().name();
  info.block_bytes = base().limits().block_size_bytes;
  info.base_bytes = base().size_bytes();
  co_return info;
}

void ServedStore::complete(VolumeInfo& info) const {
  info.store_name = name_;
  info.store_uuid = uuid_;
  info.base_bdev = base().name();
  info.offered = bdev_of(info.record.id) != nullptr;
}

Task<Result<std::vector<VolumeInfo>>> ServedStore::volumes() {
  if (closing_) co_return closed();
  const Looking looking(*this);
  std::vector<VolumeInfo> infos = co_await call_on(*thread_, [this] { return describe_all(*store_); });
  for (VolumeInfo& info : infos) complete(info);
  co_return infos;
}

Task<Result<VolumeInfo>> ServedStore::volume(VolumeId id) {
  if (closing_) co_return closed();
  const Looking looking(*this);
  VolumeInfo info = co_await call_on(*thread_, [this, id] { return describe_one(*store_, id); });
  if (info.record.id != id) co_return fail(ENODEV, "the volume is gone");
  complete(info);
  co_return info;
}

Task<Result<VolumeUsage>> ServedStore::usage(VolumeId id) {
  if (closing_) co_return closed();
  const Looking looking(*this);
  const auto usage = co_await call_on(*thread_, [this, id] { return store_->usage_of(id); });
  if (!usage) co_return fail(ENODEV, "the volume is gone");
  co_return usage;
}

Task<Result<>> ServedStore::set_hold_when_full(bool hold) {
  if (closing_) co_return closed();
  const Looking looking(*this);
  co_await call_on(*thread_, [this, hold] { store_->set_hold_when_full(hold); });
  co_return Result<>{};
}

Task<Result<>> ServedStore::set_usage_thresholds(std::vector<uint32_t> percents) {
  if (closing_) co_return closed();
  const Looking looking(*this);
  co_await call_on(*thread_, [&] { store_->set_usage_thresholds(std::move(percents)); });
  co_return Result<>{};
}

}  // namespace sluice::lvol
