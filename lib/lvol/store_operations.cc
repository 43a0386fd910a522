// Store: its operations on volumes and on itself.
#include <algorithm>
#include <ctime>

#include "lib/lvol/store.h"
#include "lib/thread/await.h"

namespace sluice::lvol {
namespace {

// Clusters that one step gives out, or takes back, before others have their turn.
constexpr uint32_t kAllocateStep = 256;
// A snapshot changes two volumes.
constexpr uint32_t kRecordsAtOnce = 2;

}  // namespace

Result<> Store::valid_name(std::string_view name) {
  if (name.empty() || name.size() > kMaxNameBytes || name.find('\0') != std::string_view::npos ||
      name.find('/') != std::string_view::npos) {
    return sluice::fail(EINVAL, "a name has 1 to 255 bytes, without a slash");
  }
  return {};
}

Result<Volume*> Store::writable(VolumeId id) {
  if (!damage_.empty()) return sluice::fail(EROFS, "the store is damaged and can only be read");
  Volume* volume = volumes_.find(id);
  if (volume == nullptr) return sluice::fail(ENOENT, "there is no volume of this name in the store");
  if (volume->busy) return sluice::fail(EBUSY, "another operation on the volume is under way");
  return volume;
}

Result<> Store::check_name(std::string_view name, const Volume* but) const {
  if (auto valid = valid_name(name); !valid) return valid;
  const Volume* same = volumes_.find(name);
  if (same != nullptr && same != but) return sluice::fail(EEXIST, "a volume of this name is in the store");
  return {};
}

// Carries out what is to be recorded, and records it.
RecordNumber Store::change(const Record& record) {
  const RecordNumber by = journal_->append(record);
  const Result<> applied = volumes_.apply(record, geometry_, by);
  CHECK(applied.has_value());
  changed();
  return by;
}

// Until the journal takes the records of one change of the volume list, which is to be made at once then: others may
// take the room. Errors: EIO: it will never take anything any more.
Task<Result<>> Store::make_room() {
  while (damage_.empty() && !journal_->has_reserve(kRecordsAtOnce)) {
    starved_ = true;
    wake();
    co_await sleep_for(kNsPerMs);
  }
  if (!damage_.empty()) co_return sluice::fail(EIO, "metadata could not be written");
  co_return Result<>{};
}

// More volumes need more metadata, for which there must be room.
Result<> Store::check_space() const {
  if (!arbiter_->may_take()) return sluice::fail(ENOSPC, "the store has no room for more metadata");
  return {};
}

Task<Result<VolumeId>> Store::create(CreateOptions options) {
  if (!damage_.empty()) co_return sluice::fail(EROFS, "the store is damaged and can only be read");
  if (auto valid = check_name(options.name, nullptr); !valid) co_return std::unexpected(valid.error());
  const uint64_t cluster = geometry_.cluster_bytes;
  const uint64_t clusters = options.size_bytes / cluster + (options.size_bytes % cluster != 0 ? 1 : 0);
  if (clusters == 0 || clusters > UINT32_MAX) co_return sluice::fail(EINVAL, "a volume has 1 to 2^32 - 1 clusters");
  if (!options.thin && clusters + reserve(clusters / kFanOut) > clusters_.free()) {
    co_return sluice::fail(ENOSPC, "the store has not so many free clusters");
  }
  VolumeRecord record{.id = kNoVolume,
                      .uuid = options.uuid.is_nil() ? Uuid::random() : options.uuid,
                      .name = options.name,
                      .size_bytes = clusters * cluster,
                      // A thick one becomes that when it has all of its clusters: power may fail before.
                      .thin = true,
                      .snapshot = false,
                      .readonly = false,
                      .parent = kNoVolume,
                      .external_origin = options.external_origin,
                      .created_s = static_cast<uint64_t>(std::time(nullptr)),
                      .xattrs = options.xattrs};
  if (!fits(PutVolumeRecord{.volume = record, .map_of = kNoVolume})) {
    co_return sluice::fail(EINVAL, "names and attributes of the volume are too long");
  }
  if (auto room = co_await make_room(); !room) co_return std::unexpected(room.error());
  // Again: this has waited.
  if (auto valid = check_name(options.name, nullptr); !valid) co_return std::unexpected(valid.error());
  if (auto space = check_space(); !space) co_return std::unexpected(space.error());
  const VolumeId id = record.id = volumes_.next_id();
  change(PutVolumeRecord{.volume = std::move(record), .map_of = kNoVolume});
  // Nobody else may find it before it is complete.
  Volume& volume = *volumes_.find(id);
  volume.busy = true;
  Result<> made = co_await commit();
  if (made && !options.thin) made = co_await allocate_all(volume);
  if (made && !options.thin) made = co_await alter(id, [](VolumeRecord& complete) { complete.thin = false; });
  volume.busy = false;
  if (made) co_return id;
  if (made.error().code == ENOSPC) {
    if (auto removed = co_await remove(id); !removed) made = removed;
  }
  co_return std::unexpected(made.error());
}

Task<Result<>> Store::allocate_all(Volume& volume) {
  const auto clusters = static_cast<uint32_t>(volume.record->size_bytes / geometry_.cluster_bytes);
  for (uint32_t index = 0; index < clusters;) {
    const auto count = co_await allocate_some(volume, index, clusters);
    if (!count) co_return std::unexpected(count.error());
    if (*count == 0) co_return sluice::fail(ENOSPC, "the store has not so many free clusters");
    index += *count;
    co_await next_turn();
  }
  co_return co_await commit();
}

Task<Result<uint32_t>> Store::allocate_some(Volume& volume, uint32_t index, uint32_t end) {
  if (auto room = co_await make_room(); !room) co_return std::unexpected(room.error());
  end = std::min(end, index + kAllocateStep);
  const auto mapped = static_cast<uint32_t>(maps_.next_mapped(volume.map, index, end));
  const uint32_t most = arbiter_->next_granted(volume, index, mapped) - index;
  uint32_t count = 0;
  ClusterIndex first = kNoCluster;
  while (count < most && arbiter_->may_take()) {
    const std::optional<ClusterIndex> taken = clusters_.take();
    if (!taken) break;
    if (count > 0 && *taken != first + count) {
      clusters_.give_back(*taken);
      break;
    }
    if (count++ == 0) first = *taken;
  }
  if (count > 0) change(AllocateRangeRecord{.volume = volume.id(), .first = index, .count = count, .own = first});
  co_return count;
}

// Changes the volume's record. Requires: it is busy (checked).
Task<Result<>> Store::alter(VolumeId id, std::function<void(VolumeRecord&)> how) {
  CHECK(volumes_.find(id)->busy);
  if (auto room = co_await make_room(); !room) co_return room;
  // As it is now: when its parent goes, it changes, busy or not.
  VolumeRecord record = *volumes_.find(id)->record;
  how(record);
  if (auto valid = check_name(record.name, volumes_.find(id)); !valid) co_return valid;
  if (!fits(PutVolumeRecord{.volume = record, .map_of = kNoVolume})) {
    co_return sluice::fail(EINVAL, "names and attributes of the volume are too long");
  }
  change(PutVolumeRecord{.volume = std::move(record), .map_of = kNoVolume});
  co_return co_await commit();
}

Task<Result<VolumeId>> Store::snapshot(VolumeId id, std::string name, std::map<std::string, std::string> xattrs) {
  return copy(id, std::move(name), true, std::move(xattrs));
}

Task<Result<VolumeId>> Store::clone(VolumeId id, std::string name, std::map<std::string, std::string> xattrs) {
  return copy(id, std::move(name), false, std::move(xattrs));
}

Task<Result<VolumeId>> Store::copy(VolumeId id, std::string name, bool as_snapshot,
                                   std::map<std::string, std::string> xattrs) {
  auto found = writable(id);
  if (!found) co_return std::unexpected(found.error());
  Volume& volume = **found;
  if (!as_snapshot && volume.writable()) co_return sluice::fail(EPERM, "only a read-only volume can be cloned");
  if (auto valid = check_name(name, nullptr); !valid) co_return std::unexpected(valid.error());
  VolumeRecord record = *volume.record;
  record.uuid = Uuid::random();
  record.name = name;
  record.thin = true;
  record.snapshot = as_snapshot;
  record.readonly = false;
  record.parent = as_snapshot ? volume.record->parent : id;
  record.created_s = static_cast<uint64_t>(std::time(nullptr));
  record.xattrs = std::move(xattrs);
  if (!fits(PutVolumeRecord{.volume = record, .map_of = id})) {
    co_return sluice::fail(EINVAL, "names and attributes of the volume are too long");
  }
  volume.busy = true;
  // Most of the waiting comes before writes are held.
  Result<> result = co_await make_room();
  // Writes may be in flight that began before the volume became read-only.
  const bool hold = result && !volume.record->snapshot;
  if (hold) {
    co_await arbiter_->hold(volume);
    result = co_await make_room();
  }
  if (result) result = check_name(name, nullptr);  // again: this has waited
  if (result) result = check_space();
  if (result) {
    record.id = volumes_.next_id();
    record.parent = as_snapshot ? volume.record->parent : id;
    change(PutVolumeRecord{.volume = record, .map_of = id});
    if (as_snapshot) {
      VolumeRecord changed = *volume.record;
      changed.parent = record.id;
      change(PutVolumeRecord{.volume = std::move(changed), .map_of = kNoVolume});
    }
  }
  if (hold) arbiter_->release(volume);
  if (result) result = co_await commit();
  volume.busy = false;
  if (!result) co_return std::unexpected(result.error());
  co_return record.id;
}

Task<Result<>> Store::remove(VolumeId id) {
  auto found = writable(id);
  if (!found) co_return std::unexpected(found.error());
  (*found)->busy = true;
  if (auto room = co_await make_room(); !room) {
    (*found)->busy = false;
    co_return room;
  }
  change(DeleteVolumeRecord{.volume = id});
  co_return co_await commit();
}

Task<Result<>> Store::rename(VolumeId id, std::string name) {
  auto found = writable(id);
  if (!found) co_return std::unexpected(found.error());
  if (auto valid = check_name(name, *found); !valid) co_return valid;
  (*found)->busy = true;
  const Result<> result = co_await alter(id, [&name](VolumeRecord& record) { record.name = name; });
  (*found)->busy = false;
  co_return result;
}

Task<Result<>> Store::resize(VolumeId id, uint64_t size_bytes) {
  auto found = writable(id);
  if (!found) co_return std::unexpected(found.error());
  Volume& volume = **found;
  if (volume.record->snapshot) co_return sluice::fail(EPERM, "a snapshot keeps its size");
  const uint64_t cluster = geometry_.cluster_bytes;
  const uint64_t clusters = size_bytes / cluster + (size_bytes % cluster != 0 ? 1 : 0);
  const uint64_t before = volume.record->size_bytes / cluster;
  if (clusters == 0 || clusters > UINT32_MAX) co_return sluice::fail(EINVAL, "a volume has 1 to 2^32 - 1 clusters");
  volume.busy = true;
  // What is in flight beyond the new end must not map anything there afterwards; what waits is refused then.
  const bool hold = clusters < before && volume.writable();
  if (hold) co_await arbiter_->hold(volume);
  const Result<> result = co_await change_size(volume, clusters);
  if (hold) arbiter_->release(volume);
  volume.busy = false;
  co_return result;
}

Task<Result<>> Store::change_size(Volume& volume, uint64_t clusters) {
  // In steps, so that the last one has nothing left to drop.
  for (uint64_t end = volume.record->size_bytes / geometry_.cluster_bytes; end > clusters;) {
    const uint64_t first = std::max<uint64_t>(clusters, end > kAllocateStep ? end - kAllocateStep : 0);
    if (maps_.next_mapped(volume.map, first, end) < end) {
      if (auto room = co_await make_room(); !room) co_return room;
      change(DropRangeRecord{.volume = volume.id(),
                             .first = static_cast<uint32_t>(first),
                             .count = static_cast<uint32_t>(end - first),
                             .base = kBaseOrigin});
      co_await next_turn();
    }
    end = first;
  }
  const uint64_t size_bytes = clusters * geometry_.cluster_bytes;
  co_return co_await alter(volume.id(), [size_bytes](VolumeRecord& record) { record.size_bytes = size_bytes; });
}

Task<Result<>> Store::set_readonly(VolumeId id) {
  auto found = writable(id);
  if (!found) co_return std::unexpected(found.error());
  (*found)->busy = true;
  const Result<> result = co_await alter(id, [](VolumeRecord& record) { record.readonly = true; });
  (*found)->busy = false;
  co_return result;
}

Task<Result<>> Store::detach(VolumeId id, bool thick) {
  co_return co_await alter(id, [thick](VolumeRecord& record) {
    record.parent = kNoVolume;
    if (thick) {
      record.thin = false;
      record.external_origin.clear();
    }
  });
}

Result<> Store::reserve_volume(VolumeId id) {
  auto found = writable(id);
  if (!found) return std::unexpected(found.error());
  (*found)->busy = true;
  return {};
}

void Store::let_go_of(VolumeId id) {
  Volume* volume = volumes_.find(id);
  CHECK(volume != nullptr);
  CHECK(std::exchange(volume->busy, false));
}

Task<Result<>> Store::rename_store(std::string name) {
  if (!damage_.empty()) co_return sluice::fail(EROFS, "the store is damaged and can only be read");
  if (auto valid = valid_name(name); !valid) co_return valid;
  if (auto room = co_await make_room(); !room) co_return room;
  name_ = std::move(name);
  change(PutStoreRecord{.name = name_, .total_clusters = geometry_.total_clusters});
  co_return co_await commit();
}

Task<Result<>> Store::grow() {
  if (!damage_.empty()) co_return sluice::fail(EROFS, "the store is damaged and can only be read");
  const uint64_t clusters = channel_.bdev().size_bytes() / geometry_.cluster_bytes;
  if (clusters > UINT32_MAX) co_return sluice::fail(EINVAL, "the device has too many clusters of this size");
  if (clusters <= geometry_.total_clusters) co_return Result<>{};
  if (auto room = co_await make_room(); !room) co_return room;
  if (clusters <= geometry_.total_clusters) co_return Result<>{};  // another one was faster
  geometry_.total_clusters = static_cast<uint32_t>(clusters);
  clusters_.grow(geometry_.total_clusters);
  change(PutStoreRecord{.name = name_, .total_clusters = geometry_.total_clusters});
  const Result<> committed = co_await commit();
  arbiter_->resume();
  co_return committed;
}

}  // namespace sluice::lvol
