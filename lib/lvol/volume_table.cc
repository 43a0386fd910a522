#include "lib/lvol/volume_table.h"

#include <algorithm>
#include <utility>

namespace sluice::lvol {
namespace {

bool holds_data(ClusterIndex cluster, const Geometry& geometry) {
  return cluster >= geometry.reserved_clusters && cluster < geometry.total_clusters;
}

// With what describes its map.
uint64_t bytes_of(const VolumeRecord& record) {
  uint64_t bytes = 256 + record.name.size() + record.external_origin.size();
  for (const auto& [key, value] : record.xattrs) bytes += key.size() + value.size() + 16;
  return bytes;
}

bool within(const Volume& volume, uint64_t first, uint64_t count, const Geometry& geometry) {
  return first + count <= volume.record->size_bytes / geometry.cluster_bytes;
}

}  // namespace

bool is_sound(const Entry& entry, const Geometry& geometry) {
  const uint64_t full = geometry.full();
  if ((entry.valid & ~full) != 0) return false;
  if (entry.own == kNoCluster ? entry.valid != 0 : !holds_data(entry.own, geometry)) return false;
  if (entry.valid == full && entry.base != kBaseOrigin) return false;
  return entry.base == kBaseOrigin || entry.base == kBaseZeros ||
         (holds_data(entry.base, geometry) && entry.base != entry.own);
}

void drop_range(Maps& maps, MapRoot& root, uint32_t first, uint32_t count, const Entry& nothing, RecordNumber by) {
  const uint64_t end = static_cast<uint64_t>(first) + count;
  if (nothing == Entry{}) {
    for (uint64_t index = maps.next_mapped(root, first, end); index < end;
         index = maps.next_mapped(root, index + 1, end)) {
      maps.set(root, static_cast<uint32_t>(index), nothing, by);
    }
    return;
  }
  for (uint64_t index = first; index < end; ++index) maps.set(root, static_cast<uint32_t>(index), nothing, by);
}

Volume* VolumeTable::find(VolumeId id) const {
  const auto found = volumes_.find(id);
  return found == volumes_.end() ? nullptr : found->second.get();
}

Volume* VolumeTable::find(std::string_view name) const {
  const auto found = std::ranges::find_if(volumes_, [name](const auto& at) { return at.second->record->name == name; });
  return found == volumes_.end() ? nullptr : found->second.get();
}

std::vector<Volume*> VolumeTable::children_of(VolumeId id) const {
  std::vector<Volume*> children;
  for (const auto& [child_id, volume] : volumes_) {
    if (volume->record->parent == id) children.push_back(volume.get());
  }
  return children;
}

Result<Volume*> VolumeTable::put(VolumeRecord record) {
  if (record.id == kNoVolume || volumes_.contains(record.id) || find(record.name) != nullptr) {
    return fail(EILSEQ, "two volumes of the store have the same id or name");
  }
  const VolumeId id = record.id;
  next_id_ = std::max(next_id_, id + 1);
  record_bytes_ += bytes_of(record);
  auto volume = std::make_unique<Volume>(std::make_shared<const VolumeRecord>(std::move(record)));
  return (volumes_[id] = std::move(volume)).get();
}

const MapRoot* VolumeTable::map_of(VolumeId id) const {
  const Volume* volume = find(id);
  return volume == nullptr ? nullptr : &volume->map;
}

void VolumeTable::link_parents() {
  for (const auto& [id, volume] : volumes_) maps_.stand_on(volume->map, map_of(volume->record->parent));
}

Result<> VolumeTable::apply(const Record& record, const Geometry& geometry, RecordNumber by) {
  return std::visit([&](const auto& one) { return apply_one(one, geometry, by); }, record);
}

Result<> VolumeTable::apply_one(const SetEntryRecord& record, const Geometry& geometry, RecordNumber by) {
  Volume* volume = find(record.volume);
  if (volume == nullptr || !within(*volume, record.index, 1, geometry) || !is_sound(record.entry, geometry)) {
    return fail(EILSEQ, "the journal changes a cluster that there is not");
  }
  maps_.set(volume->map, record.index, record.entry, by);
  return {};
}

Result<> VolumeTable::apply_one(const DropRangeRecord& record, const Geometry& geometry, RecordNumber by) {
  Volume* volume = find(record.volume);
  if (volume == nullptr || !within(*volume, record.first, record.count, geometry) || record.base > kBaseZeros) {
    return fail(EILSEQ, "the journal drops clusters that there are not");
  }
  drop_range(maps_, volume->map, record.first, record.count, {.own = kNoCluster, .base = record.base, .valid = 0}, by);
  return {};
}

Result<> VolumeTable::apply_one(const AllocateRangeRecord& record, const Geometry& geometry, RecordNumber by) {
  Volume* volume = find(record.volume);
  if (volume == nullptr || !within(*volume, record.first, record.count, geometry) || record.count == 0 ||
      !holds_data(record.own, geometry) || record.count > geometry.total_clusters - record.own) {
    return fail(EILSEQ, "the journal allocates clusters that there are not");
  }
  for (uint32_t i = 0; i < record.count; ++i) {
    maps_.set(volume->map, record.first + i, {.own = record.own + i, .base = kBaseOrigin, .valid = 0}, by);
  }
  return {};
}

Result<> VolumeTable::apply_one(const PutVolumeRecord& record, const Geometry& geometry, RecordNumber by) {
  if (record.volume.size_bytes % geometry.cluster_bytes != 0) {
    return fail(EILSEQ, "the journal has a volume that does not end with a cluster");
  }
  const uint64_t clusters = record.volume.size_bytes / geometry.cluster_bytes;
  Volume* volume = find(record.volume.id);
  const Volume* same_name = find(record.volume.name);
  if (clusters > UINT32_MAX || (same_name != nullptr && same_name != volume)) {
    return fail(EILSEQ, "the journal has a volume that cannot be");
  }
  if (volume != nullptr) {
    const uint64_t before = volume->record->size_bytes / geometry.cluster_bytes;
    if (clusters < before) {
      drop_range(maps_, volume->map, static_cast<uint32_t>(clusters), static_cast<uint32_t>(before - clusters), {}, by);
    }
    record_bytes_ = record_bytes_ - bytes_of(*volume->record) + bytes_of(record.volume);
    const VolumeId parent = std::exchange(volume->record, std::make_shared<const VolumeRecord>(record.volume))->parent;
    if (parent != record.volume.parent) maps_.stand_on(volume->map, map_of(record.volume.parent));
    return {};
  }
  const Volume* origin = record.map_of == kNoVolume ? nullptr : find(record.map_of);
  if (record.map_of != kNoVolume && origin == nullptr) {
    return fail(EILSEQ, "the journal copies a volume that there is not");
  }
  auto made = put(record.volume);
  if (!made) return std::unexpected(made.error());
  if (origin != nullptr) {
    maps_.share(origin->map, (*made)->map);
    (*made)->damaged = origin->damaged;
  }
  if (origin != nullptr && origin->record->parent == record.volume.parent) {
    maps_.stand_beside(origin->map, (*made)->map);
  } else {
    maps_.stand_on((*made)->map, map_of(record.volume.parent));
  }
  return {};
}

Result<> VolumeTable::apply_one(const DeleteVolumeRecord& record, const Geometry&, RecordNumber by) {
  const auto found = volumes_.find(record.volume);
  if (found == volumes_.end()) return fail(EILSEQ, "the journal deletes a volume that there is not");
  // Its children stand on what it stood on; but read-only volumes may stand on each other.
  const VolumeId parent = found->second->record->parent;
  for (Volume* child : children_of(record.volume)) {
    VolumeRecord changed = *child->record;
    changed.parent = parent == child->id() || parent == record.volume ? kNoVolume : parent;
    // One that has not changed since has the same count; all of a thousand clones, perhaps.
    const bool same = child->map.page() == found->second->map.page() && changed.parent == parent;
    if (same) {
      maps_.stand_beside(found->second->map, child->map);
    } else {
      maps_.stand_on(child->map, map_of(changed.parent));
    }
    child->record = std::make_shared<const VolumeRecord>(std::move(changed));
  }
  record_bytes_ -= bytes_of(*found->second->record);
  maps_.release(found->second->map, by);
  volumes_.erase(found);
  return {};
}

Result<> VolumeTable::apply_one(const PutStoreRecord&, const Geometry&, RecordNumber) { return {}; }

}  // namespace sluice::lvol
