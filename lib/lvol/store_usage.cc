// Store: how much is used, by whom, and what differs.
#include "lib/lvol/store.h"
#include "lib/thread/await.h"

namespace sluice::lvol {
namespace {

// Entries of maps that are looked at before others have their turn.
constexpr uint32_t kLookStep = 256;

}  // namespace

StoreUsage Store::usage() const {
  return {.total_clusters = geometry_.total_clusters - geometry_.reserved_clusters,
          .free_clusters = static_cast<uint32_t>(clusters_.free() + clusters_.in_quarantine()),
          .metadata_clusters = places_.clusters(),
          .map_pages = maps_.pages(),
          .waiting_writes = arbiter_->waiting_for_space(),
          .holds = arbiter_->holds().count(),
          .holds_p99_ns = arbiter_->holds().percentile(99),
          .holds_max_ns = arbiter_->holds().max()};
}

void Store::look_at_usage() {
  const uint32_t total = geometry_.total_clusters - geometry_.reserved_clusters;
  for (const auto& [percent, above] : usage_watch_.look(total - clusters_.free(), total)) {
    events_.on_usage(percent, above);
  }
}

void Store::set_usage_thresholds(std::vector<uint32_t> percents) {
  usage_watch_.set(std::move(percents));
  look_at_usage();
}

Task<Result<VolumeUsage>> Store::usage_of(VolumeId id) {
  VolumeUsage usage;
  uint32_t step = 0;
  for (uint64_t index = 0;;) {
    // Looked up each time: the volume may go while this waits.
    const Volume* volume = volumes_.find(id);
    if (volume == nullptr) co_return sluice::fail(ENOENT, "the volume is gone");
    const uint64_t clusters = volume->record->size_bytes / geometry_.cluster_bytes;
    index = maps_.next_mapped(volume->map, index, clusters);
    if (index >= clusters) co_return usage;
    const Found found = maps_.find(volume->map, index++);
    if (found.entry.own != kNoCluster) {
      ++usage.allocated;
      if (found.in_place) ++usage.exclusive;
    }
    if (found.entry.base >= kFirstDataCluster) ++usage.allocated;
    if (++step % kLookStep == 0) co_await next_turn();
  }
}

Task<Result<uint64_t>> Store::own_clusters_of(VolumeId id) {
  for (;;) {
    // Looked up each time: the volume may go while this waits.
    Volume* volume = volumes_.find(id);
    if (volume == nullptr) co_return sluice::fail(ENOENT, "the volume is gone");
    if (const auto own = maps_.count_own(volume->map, kLookStep)) co_return *own;
    co_await next_turn();
  }
}

Task<Result<Store::Changed>> Store::changed_clusters(VolumeId from, VolumeId to, uint64_t first, uint64_t limit) {
  static const MapRoot empty;
  Changed changed;
  changed.next = first;
  do {
    // Looked up each time: volumes may go while this waits.
    const Volume* volume = volumes_.find(to);
    const Volume* since = volumes_.find(from);
    if (volume == nullptr || (since == nullptr && from != kNoVolume)) {
      co_return sluice::fail(ENOENT, "there is no volume of this name in the store");
    }
    if (!damage_.empty()) co_return sluice::fail(EROFS, "the store is damaged: what has changed is not known");
    const uint64_t end = volume->record->size_bytes / geometry_.cluster_bytes;
    if (changed.next >= end) {
      changed.next = end;
      break;
    }
    changed.next =
        maps_.compare(since == nullptr ? empty : since->map, volume->map, changed.next, end, kLookStep,
                      [&](uint64_t index, const Entry&, const Entry&) { changed.clusters.push_back(index); });
    if (changed.clusters.size() > limit) {
      changed.next = changed.clusters[limit];
      changed.clusters.resize(limit);
      break;
    }
    if (changed.next == end) break;
    co_await next_turn();
  } while (changed.clusters.size() < limit);
  co_return changed;
}

}  // namespace sluice::lvol
