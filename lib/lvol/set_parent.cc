// Store::set_parent(): what a volume does not own itself it has from another snapshot from now on.
#include <bit>

#include "lib/bdev/io_buffer.h"
#include "lib/lvol/io_task.h"
#include "lib/lvol/store.h"

namespace sluice::lvol {
namespace {

constexpr uint32_t kStep = 128;

// What of a cluster's entry is the volume's own, and not its present parent's.
Entry own_part(const Entry& entry, const Entry& of_parent) {
  if (entry.own == kNoCluster || entry.own == of_parent.own) return {};
  return {.own = entry.own, .base = kBaseOrigin, .valid = entry.valid};
}

// The parent's sub-clusters that must move into the volume's own cluster: two clusters deep is as deep as an entry
// goes.
uint64_t must_copy(const Entry& own, const Entry& parent, uint64_t full) {
  const bool deep = own.own != kNoCluster && parent.own != kNoCluster && parent.valid != full;
  return deep ? parent.valid & ~own.valid : 0;
}

}  // namespace

Task<Result<>> Store::set_parent(VolumeId id, VolumeId parent, std::string external_origin) {
  auto found = writable(id);
  if (!found) co_return std::unexpected(found.error());
  Volume& volume = **found;
  Volume* of = nullptr;
  if (volume.record->snapshot) co_return sluice::fail(EPERM, "a snapshot never changes");
  if (parent != kNoVolume) {
    of = volumes_.find(parent);
    if (of == nullptr) co_return sluice::fail(ENOENT, "there is no volume of this name in the store");
    if (of->writable() || of == &volume) co_return sluice::fail(EPERM, "only a read-only volume can be a parent");
    if (of->record->size_bytes > volume.record->size_bytes) {
      co_return sluice::fail(EPERM, "the parent is larger than the volume");
    }
    if (of->busy) co_return sluice::fail(EBUSY, "another operation on the parent is under way");
    external_origin = of->record->external_origin;
  }
  // All three stay as they are meanwhile.
  Volume* before = volumes_.find(volume.record->parent);
  if (before == of) before = nullptr;
  if (before != nullptr && before->busy) co_return sluice::fail(EBUSY, "another operation on the parent is under way");
  for (Volume* one : {before, of, &volume}) {
    if (one != nullptr) one->busy = true;
  }
  co_await arbiter_->hold(volume);
  // Clusters that a deleted snapshot still counts for are the volume's own in a moment.
  co_await settle();
  // All of it can be done, or nothing is begun.
  Result<> result = co_await change_parent(volume, of, true);
  if (result) result = co_await change_parent(volume, of, false);
  arbiter_->release(volume);
  if (result) {
    result = co_await alter(id, [&](VolumeRecord& record) {
      record.parent = parent;
      record.external_origin = external_origin;
      record.thin = true;
    });
  }
  for (Volume* one : {before, of, &volume}) {
    if (one != nullptr) one->busy = false;
  }
  co_return result;
}

Task<Result<>> Store::change_parent(Volume& volume, const Volume* parent, bool only_check) {
  const uint64_t clusters = volume.record->size_bytes / geometry_.cluster_bytes;
  const Volume* before = volumes_.find(volume.record->parent);
  uint32_t step = 0;
  for (uint64_t index = 0; index < clusters; ++index) {
    // The next cluster that either of them has.
    uint64_t next = maps_.next_mapped(volume.map, index, clusters);
    if (parent != nullptr) next = std::min(next, maps_.next_mapped(parent->map, index, next));
    if (next == clusters) break;
    index = next;
    const Found found = maps_.find(volume.map, index);
    const Entry& entry = found.entry;
    const Entry of_before = before == nullptr ? Entry{} : maps_.find(before->map, index).entry;
    const Entry of_parent = parent == nullptr ? Entry{} : maps_.find(parent->map, index).entry;
    if (++step % kStep == 0) co_await next_turn();
    const Entry own = own_part(entry, of_before);
    if (only_check) {
      if (must_copy(own, of_parent, geometry_.full()) != 0 && !found.in_place) {
        co_return sluice::fail(EPERM, "the volume shares data with others than its parent: decouple it first");
      }
      continue;
    }
    auto merged = co_await put_on(own, of_parent);
    if (!merged) co_return std::unexpected(merged.error());
    if (*merged != entry) {
      if (auto room = co_await make_room(); !room) co_return room;
      change(SetEntryRecord{.volume = volume.id(), .index = static_cast<uint32_t>(index), .entry = *merged});
    }
  }
  co_return Result<>{};
}

// An entry that reads as `own` where that is valid, and as `parent` elsewhere.
Task<Result<Entry>> Store::put_on(const Entry& own, const Entry& parent) {
  const uint64_t full = geometry_.full();
  if (own.own == kNoCluster) co_return parent;
  Entry entry = own;
  uint64_t copy = 0;
  if (parent.own == kNoCluster) {
    entry.base = parent.base;
  } else if (parent.valid == full) {
    entry.base = parent.own;
  } else {
    copy = must_copy(own, parent, full);
    entry.base = parent.base;
    entry.valid |= copy;
  }
  if (entry.valid == full) entry.base = kBaseOrigin;
  const uint64_t bytes = geometry_.subcluster_bytes();
  while (copy != 0) {
    const auto first = static_cast<uint32_t>(std::countr_zero(copy));
    const auto run = static_cast<uint32_t>(std::countr_one(copy >> first));
    auto buffer = IoBuffer::allocate(run * bytes);
    if (!buffer) co_return std::unexpected(buffer.error());
    const uint64_t from = geometry_.offset_bytes(parent.own) + first * bytes;
    const uint64_t to = geometry_.offset_bytes(own.own) + first * bytes;
    IoStatus status = co_await transfer(channel_, IoType::kRead, from, buffer->bytes().first(run * bytes));
    if (status == IoStatus::kOk) {
      status = co_await transfer(channel_, IoType::kWrite, to, buffer->bytes().first(run * bytes));
    }
    if (status != IoStatus::kOk) co_return sluice::fail(EIO, "data could not be copied");
    copy &= ~geometry_.bits(first, first + run - 1);
  }
  co_return entry;
}

}  // namespace sluice::lvol
