#include "lib/bdev/bdev_manager.h"

namespace sluice {
BdevHandle::~BdevHandle() { manager_.close(*this); }

BdevManager::~BdevManager() { CHECK(entries_.empty()); }

Result<Bdev*> BdevManager::add(std::unique_ptr<Bdev> bdev) {
  for (const std::string& key : keys_of(*bdev)) {
    if (index_.contains(key)) return fail(EEXIST, "a bdev of this name, alias or uuid exists");
  }
  Bdev* added = bdev.get();
  auto entry = std::make_unique<Entry>();
  entry->bdev = std::move(bdev);
  for (std::string& key : keys_of(*added)) index_[std::move(key)] = entry.get();
  entries_[added->name()] = std::move(entry);
  while (Waiter* waiter = waiters_.pop_front()) waiter->appeared.set();
  watchers_.for_each([added](BdevWatcher& watcher) { watcher.on_added(*added); });
  return added;
}

Bdev* BdevManager::find(std::string_view name) const {
  auto found = index_.find(std::string(name));
  if (found == index_.end()) {
    const std::optional<Uuid> uuid = Uuid::parse(name);  // in upper case, perhaps
    if (uuid) found = index_.find(uuid->to_string());
  }
  return found == index_.end() || found->second->removing ? nullptr : found->second->bdev.get();
}

std::vector<std::string> BdevManager::keys_of(const Bdev& bdev) {
  std::vector<std::string> keys = bdev.aliases();
  keys.push_back(bdev.name());
  keys.push_back(bdev.uuid().to_string());
  return keys;
}

Task<Bdev*> BdevManager::wait_for(std::string name, uint64_t timeout_ns) {
  LwThread& thread = *LwThread::current();
  const uint64_t deadline_ns = thread.now_ns() + timeout_ns;
  for (;;) {
    Bdev* found = find(name);
    if (found != nullptr || waits_cancelled_ || thread.now_ns() >= deadline_ns) co_return found;
    Waiter waiter;
    Timer timeout("bdev_wait", [&waiter] { waiter.appeared.set(); });
    timeout.arm_at(thread, deadline_ns);
    waiters_.push_back(waiter);
    co_await waiter.appeared.wait();
  }
}

void BdevManager::cancel_waits() {
  waits_cancelled_ = true;
  while (Waiter* waiter = waiters_.pop_front()) waiter->appeared.set();
}

std::vector<Bdev*> BdevManager::list() const {
  std::vector<Bdev*> bdevs;
  for (const auto& [name, entry] : entries_) {
    if (!entry->removing) bdevs.push_back(entry->bdev.get());
  }
  return bdevs;
}

namespace {

// nullptr, or why the two cannot have the same device open.
const char* conflict(const BdevHandle& present, BdevAccess wanted) {
  if (writes(wanted) && present.access() == BdevAccess::kWriteAlone) return "the bdev is claimed by its only writer";
  if (writes(wanted) && present.access() == BdevAccess::kReadStable) {
    return "the bdev is claimed by a reader, for whom it must not change";
  }
  if (present.writable() && (wanted == BdevAccess::kWriteAlone || wanted == BdevAccess::kReadStable)) {
    return "the bdev is open for writing";
  }
  return nullptr;
}

}  // namespace

Result<std::unique_ptr<BdevHandle>> BdevManager::open(std::string_view name, BdevAccess access, BdevEvents& events,
                                                      std::string user) {
  Bdev* bdev = find(name);
  if (bdev == nullptr) return fail(ENODEV, "there is no bdev of this name");
  Entry& entry = *find_entry(*bdev);
  if (writes(access) && bdev->readonly()) return fail(EROFS, "the bdev is read-only");
  const char* refusal = nullptr;
  entry.handles.for_each([&](const BdevHandle& handle) {
    if (refusal == nullptr) refusal = conflict(handle, access);
  });
  if (refusal != nullptr) return fail(EBUSY, refusal);
  std::unique_ptr<BdevHandle> handle(new BdevHandle(*this, *bdev, events, std::move(user), access));
  entry.handles.push_back(*handle);
  ++entry.users;
  return handle;
}

void BdevManager::close(BdevHandle& handle) {
  Entry& entry = *find_entry(handle.bdev());
  handle.unlink();
  release(entry);
}

void BdevManager::release(Entry& entry) {
  if (--entry.users == 0 && entry.removing) entry.unused.set();
}

std::vector<const BdevHandle*> BdevManager::users(const Bdev& bdev) const {
  std::vector<const BdevHandle*> handles;
  find_entry(bdev)->handles.for_each([&handles](BdevHandle& handle) { handles.push_back(&handle); });
  return handles;
}

Task<Result<>> BdevManager::remove(Bdev& bdev, RemoveMode mode) {
  Entry* entry = find_entry(bdev);
  if (entry == nullptr || entry->removing) co_return fail(ENODEV, "the bdev is being removed already");
  if (mode == RemoveMode::kIfUnused && !entry->handles.empty()) co_return fail(EBUSY, "the bdev is in use");
  entry->removing = true;
  bdev.removed_.store(true, std::memory_order_relaxed);
  watchers_.for_each([&bdev](BdevWatcher& watcher) { watcher.on_removing(bdev); });
  entry->handles.for_each([](BdevHandle& handle) { handle.events_.on_remove(); });
  if (entry->users > 0) co_await entry->unused.wait();
  for (const std::string& key : keys_of(bdev)) index_.erase(key);
  entries_.erase(entries_.find(bdev.name()));
  gone_.notify_all();
  co_return Result<>{};
}

Task<> BdevManager::remove_all() {
  // Looked at again each time, as others may come and go while this waits.
  while (!entries_.empty()) {
    const std::vector<Bdev*> left = list();
    if (left.empty()) {
      co_await gone_.wait();  // somebody else removes those that are left
    } else {
      std::ignore = co_await remove(*left.front(), RemoveMode::kForce);
    }
  }
}

void BdevManager::set_size(Bdev& bdev, uint64_t size_bytes) {
  CHECK(size_bytes % bdev.limits().block_size_bytes == 0);
  if (bdev.size_bytes_.exchange(size_bytes, std::memory_order_relaxed) == size_bytes) return;
  find_entry(bdev)->handles.for_each([](BdevHandle& handle) { handle.events_.on_resize(); });
}

void BdevManager::set_readonly(Bdev& bdev, bool readonly) { bdev.readonly_.store(readonly, std::memory_order_relaxed); }

Result<> BdevManager::set_aliases(Bdev& bdev, std::vector<std::string> aliases) {
  Entry* entry = find_entry(bdev);
  CHECK(entry != nullptr);
  for (const std::string& alias : aliases) {
    const auto found = index_.find(alias);
    if (found != index_.end() && found->second != entry) {
      return fail(EEXIST, "a bdev of this name, alias or uuid exists");
    }
  }
  for (const std::string& key : keys_of(bdev)) index_.erase(key);
  bdev.aliases_ = std::move(aliases);
  for (std::string& key : keys_of(bdev)) index_[std::move(key)] = entry;
  return {};
}

// A channel that closes on the way may be counted twice, or not at all: then the count is taken again.
Task<IoStats> BdevManager::iostat(Bdev& bdev) {
  Entry& entry = *find_entry(bdev);
  ++entry.users;
  IoStats sum;
  uint64_t closed = 0;
  do {
    closed = bdev.closed_channels();
    sum = bdev.closed_channels_stats();
    co_await threads_.for_each_channel(
        bdev, [&sum](Channel& channel) { sum.add(static_cast<BdevChannel&>(channel).stats()); });
  } while (bdev.closed_channels() != closed);
  release(entry);
  co_return sum;
}

Task<> BdevManager::reset_iostat(Bdev& bdev, IoStatsReset mode) {
  Entry& entry = *find_entry(bdev);
  ++entry.users;
  uint64_t closed = 0;
  do {
    closed = bdev.closed_channels();
    bdev.reset_closed_channels_stats(mode);
    co_await threads_.for_each_channel(
        bdev, [mode](Channel& channel) { static_cast<BdevChannel&>(channel).reset_stats(mode); });
  } while (bdev.closed_channels() != closed);
  release(entry);
}

BdevManager::Entry* BdevManager::find_entry(const Bdev& bdev) const {
  const auto found = entries_.find(bdev.name());
  return found == entries_.end() ? nullptr : found->second.get();
}

}  // namespace sluice
