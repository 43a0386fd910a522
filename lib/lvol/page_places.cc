#include "lib/lvol/page_places.h"

#include <bit>
#include <utility>

namespace sluice::lvol {
namespace {

// take() would rather free so many places than take a cluster.
constexpr uint32_t kFreeAtTake = 64;

void append(std::vector<PageNumber>& to, std::vector<PageNumber>& from) {
  if (to.empty()) std::swap(to, from);
  to.insert(to.end(), from.begin(), from.end());
  from.clear();
}

}  // namespace

PagePlaces::PagePlaces(const Geometry& geometry, ClusterTable& clusters)
    : clusters_(clusters), reserved_(geometry.reserved_clusters), places_per_cluster_(geometry.pages_per_cluster()) {}

PagePlaces::Clusters::iterator PagePlaces::add_cluster(ClusterIndex cluster) {
  spare_ += places_per_cluster_;
  with_room_.insert(cluster);
  return used_.emplace(cluster, Used{.bits = std::vector<uint64_t>((places_per_cluster_ + 63) / 64)}).first;
}

void PagePlaces::use(Clusters::iterator it, uint32_t place) {
  it->second.bits[place / 64] |= 1ULL << (place % 64);
  --spare_;
  if (++it->second.count == places_per_cluster_) with_room_.erase(it->first);
}

uint32_t PagePlaces::first_free(const Used& used, uint32_t first) const {
  while (first < places_per_cluster_) {
    const uint64_t taken = used.bits[first / 64] >> (first % 64);
    const auto run = static_cast<uint32_t>(std::countr_one(taken));
    if (run < 64 - first % 64) return first + run < places_per_cluster_ ? first + run : places_per_cluster_;
    first = (first / 64 + 1) * 64;
  }
  return places_per_cluster_;
}

std::optional<PageNumber> PagePlaces::take() {
  while (with_room_.empty() && !freeing_.empty()) settle(kFreeAtTake);
  // Behind the last one if that is possible, else in the next cluster that has room.
  const auto wanted = static_cast<ClusterIndex>(next_ / places_per_cluster_);
  auto room = with_room_.lower_bound(wanted);
  uint32_t place = places_per_cluster_;
  Clusters::iterator it;
  if (room != with_room_.end() && *room == wanted) {
    it = used_.find(wanted);
    place = first_free(it->second, static_cast<uint32_t>(next_ % places_per_cluster_));
    if (place == places_per_cluster_) ++room;
  }
  if (place == places_per_cluster_) {
    if (room == with_room_.end()) room = with_room_.begin();
    if (room != with_room_.end()) {
      it = used_.find(*room);
    } else {
      const std::optional<ClusterIndex> cluster = clusters_.take();
      if (!cluster) return std::nullopt;
      it = add_cluster(*cluster);
    }
    place = first_free(it->second, 0);
  }
  use(it, place);
  const PageNumber page = static_cast<PageNumber>(it->first) * places_per_cluster_ + place;
  next_ = page + 1;
  return page;
}

bool PagePlaces::take(PageNumber page) {
  const uint64_t cluster = page / places_per_cluster_;
  if (cluster < reserved_ || cluster >= clusters_.total()) return false;
  const auto index = static_cast<ClusterIndex>(cluster);
  auto it = used_.find(index);
  if (it == used_.end()) {
    if (!clusters_.is_free(index)) return false;
    clusters_.take(index);
    it = add_cluster(index);
  }
  const auto place = static_cast<uint32_t>(page % places_per_cluster_);
  if ((it->second.bits[place / 64] >> (place % 64) & 1) == 0) use(it, place);
  return true;
}

bool PagePlaces::in_use(PageNumber page) const {
  const auto found = used_.find(static_cast<ClusterIndex>(page / places_per_cluster_));
  const uint64_t place = page % places_per_cluster_;
  return found != used_.end() && (found->second.bits[place / 64] >> (place % 64) & 1) != 0;
}

void PagePlaces::leave(PageNumber page) { left_.push_back(page); }

void PagePlaces::give_back(PageNumber page) {
  const auto it = used_.find(static_cast<ClusterIndex>(page / places_per_cluster_));
  CHECK(it != used_.end());
  const auto place = static_cast<uint32_t>(page % places_per_cluster_);
  uint64_t& word = it->second.bits[place / 64];
  CHECK((word >> (place % 64) & 1) != 0);
  word ^= 1ULL << (place % 64);
  ++spare_;
  if (--it->second.count > 0) {
    with_room_.insert(it->first);
    return;
  }
  spare_ -= places_per_cluster_;
  with_room_.erase(it->first);
  clusters_.give_back(it->first);
  used_.erase(it);
}

void PagePlaces::begin_checkpoint() {
  CHECK(!checkpointing_);
  checkpointing_ = true;
  append(left_before_, left_);
}

void PagePlaces::end_checkpoint() {
  CHECK(checkpointing_);
  checkpointing_ = false;
  append(freeing_, left_before_);
}

void PagePlaces::abandon_checkpoint() {
  CHECK(checkpointing_);
  checkpointing_ = false;  // begin_checkpoint() adds to left_before_
}

bool PagePlaces::settle(uint32_t budget) {
  for (; budget > 0 && !freeing_.empty(); --budget) {
    const PageNumber page = freeing_.back();
    freeing_.pop_back();
    give_back(page);
  }
  return !freeing_.empty();
}

}  // namespace sluice::lvol
