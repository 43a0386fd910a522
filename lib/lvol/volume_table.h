// VolumeTable: the volumes of a store, and what each record of the journal does to them: when it is appended, and again
// when it is replayed. One code for both, so that a store is after a crash what it was before.
//
// Thread:    the store's owner.
// Ownership: owns the volumes; borrows maps.
#pragma once

#include <map>
#include <memory>
#include <string_view>

#include "lib/lvol/format.h"
#include "lib/lvol/maps.h"
#include "lib/lvol/volume.h"

namespace sluice::lvol {

// Makes `nothing` the entries of clusters first to first + count - 1. Empty ones cost nothing, unless `nothing` says
// more than Entry{} does.
void drop_range(Maps& maps, MapRoot& root, uint32_t first, uint32_t count, const Entry& nothing, RecordNumber by);

class VolumeTable {
 public:
  using Volumes = std::map<VolumeId, std::unique_ptr<Volume>>;

  explicit VolumeTable(Maps& maps) : maps_(maps) {}
  // Requires: every map has been released or abandoned.
  ~VolumeTable() = default;

  const Volumes& all() const { return volumes_; }
  Volume* find(VolumeId id) const;
  Volume* find(std::string_view name) const;
  // Volumes whose parent it is.
  std::vector<Volume*> children_of(VolumeId id) const;
  VolumeId next_id() const { return next_id_; }
  // What their records take on disk, at most.
  uint64_t record_bytes() const { return record_bytes_; }

  // At load: one that the checkpoint has, without its map. Errors: EILSEQ (there is one of this id or name).
  Result<Volume*> put(VolumeRecord record);
  // At load: the checkpoint's are all there, with their maps.
  void link_parents();
  void set_next_id(VolumeId id) { next_id_ = id; }

  // Carries out a record about volumes (PutStoreRecord is the store's). Errors, of a record that was read: EILSEQ: it
  // does not fit what was before it.
  Result<> apply(const Record& record, const Geometry& geometry, RecordNumber by);

 private:
  Result<> apply_one(const SetEntryRecord& record, const Geometry& geometry, RecordNumber by);
  Result<> apply_one(const DropRangeRecord& record, const Geometry& geometry, RecordNumber by);
  Result<> apply_one(const AllocateRangeRecord& record, const Geometry& geometry, RecordNumber by);
  Result<> apply_one(const PutVolumeRecord& record, const Geometry& geometry, RecordNumber by);
  Result<> apply_one(const DeleteVolumeRecord& record, const Geometry& geometry, RecordNumber by);
  Result<> apply_one(const PutStoreRecord& record, const Geometry& geometry, RecordNumber by);

  const MapRoot* map_of(VolumeId id) const;

  Maps& maps_;
  Volumes volumes_;
  VolumeId next_id_ = 1;
  uint64_t record_bytes_ = 0;
};

// Whether an entry can be one of this store: its clusters hold data, its bits are within a cluster.
bool is_sound(const Entry& entry, const Geometry& geometry);

}  // namespace sluice::lvol
