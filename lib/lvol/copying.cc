#include "lib/lvol/copying.h"

#include "lib/bdev/bdev.h"
#include "lib/bdev/io_buffer.h"
#include "lib/lvol/io_task.h"
#include "lib/lvol/store.h"
#include "lib/lvol/volume_channel.h"

namespace sluice::lvol {
namespace {

constexpr uint64_t kListStep = 1024;

// While it exists nobody else changes the volume as a whole.
class Reservation {
 public:
  Reservation(Store& store, VolumeId id) : store_(store), id_(id) {}
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  ~Reservation() { store_.let_go_of(id_); }

 private:
  Store& store_;
  VolumeId id_;
};

Result<> from_status(IoStatus status) {
  switch (status) {
    case IoStatus::kOk:
      return {};
    case IoStatus::kNoSpace:
      return fail(ENOSPC, "the store has no free cluster left");
    case IoStatus::kNoMemory:
      return fail(ENOMEM, "there is no memory to copy with");
    case IoStatus::kRemoved:
      return fail(ENODEV, "a device is being removed");
    default:
      return fail(EIO, "data could not be copied");
  }
}

}  // namespace

Task<Result<>> own_clusters(Store& store, VolumeId id, BdevChannel& volume, bool allocate, CopyProgress& progress) {
  if (auto reserved = store.reserve_volume(id); !reserved) co_return reserved;
  const Reservation reservation(store, id);
  Volume& found = *store.volumes().find(id);
  if (found.record->snapshot) co_return fail(EPERM, "a snapshot never changes");
  const uint64_t clusters = found.record->size_bytes / store.geometry().cluster_bytes;
  progress.total_clusters = clusters;
  auto& channel = static_cast<VolumeChannel&>(volume);
  uint32_t skipped = 0;
  for (uint64_t index = 0; index < clusters; ++index) {
    if (progress.cancelled) co_return fail(ECANCELED, "it was ended early");
    if (!allocate) {
      index = store.maps().next_mapped(found.map, index, clusters);
      if (index == clusters) break;
    }
    progress.done_clusters = index;
    // What is its own already costs no message.
    const Found entry = store.maps().find(found.map, index);
    if (entry.in_place && entry.entry.valid == store.geometry().full()) {
      if (++skipped % kListStep == 0) co_await next_turn();
      continue;
    }
    if (allocate && entry.entry == Entry{} && found.record->external_origin.empty()) {
      // Nothing needs to be copied where nothing is.
      const auto end = static_cast<uint32_t>(clusters);
      const auto allocated = co_await store.allocate_some(found, static_cast<uint32_t>(index), end);
      if (!allocated) co_return std::unexpected(allocated.error());
      if (*allocated > 0) {
        index += *allocated - 1;
        co_await next_turn();
        continue;
      }
    }
    const IoStatus status = co_await channel.own(static_cast<uint32_t>(index), allocate);
    if (status != IoStatus::kOk) co_return from_status(status);
  }
  progress.done_clusters = clusters;
  co_return co_await store.detach(id, allocate);
}

Task<Result<>> shallow_copy(Store& store, VolumeId id, BdevChannel& volume, BdevChannel& destination,
                            CopyProgress& progress) {
  if (auto reserved = store.reserve_volume(id); !reserved) co_return reserved;
  const Reservation reservation(store, id);
  const Volume& found = *store.volumes().find(id);
  if (found.writable()) co_return fail(EPERM, "only a read-only volume can be copied");
  if (destination.bdev().size_bytes() < found.record->size_bytes) {
    co_return fail(ENOSPC, "the destination is smaller than the volume");
  }
  const VolumeId parent = store.volumes().find(found.record->parent) == nullptr ? kNoVolume : found.record->parent;
  const uint64_t cluster_bytes = store.geometry().cluster_bytes;
  const uint64_t clusters = found.record->size_bytes / cluster_bytes;
  std::vector<uint64_t> own;
  for (uint64_t next = 0; next < clusters;) {
    auto changed = co_await store.changed_clusters(parent, id, next, kListStep);
    if (!changed) co_return std::unexpected(changed.error());
    own.insert(own.end(), changed->clusters.begin(), changed->clusters.end());
    next = changed->next;
  }
  progress.total_clusters = own.size();
  auto buffer = IoBuffer::allocate(cluster_bytes);
  if (!buffer) co_return std::unexpected(buffer.error());
  for (const uint64_t index : own) {
    if (progress.cancelled) co_return fail(ECANCELED, "it was ended early");
    const uint64_t offset = index * cluster_bytes;
    IoStatus status = co_await transfer(volume, IoType::kRead, offset, buffer->bytes());
    if (status == IoStatus::kOk) status = co_await transfer(destination, IoType::kWrite, offset, buffer->bytes());
    if (status != IoStatus::kOk) co_return from_status(status);
    ++progress.done_clusters;
  }
  const bool flushes = destination.bdev().supports(IoType::kFlush);
  co_return flushes ? from_status(co_await transfer(destination, IoType::kFlush, 0, {})) : Result<>{};
}

}  // namespace sluice::lvol
