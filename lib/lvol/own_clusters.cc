// Maps: how many clusters are a map's own.
#include "lib/lvol/maps.h"

namespace sluice::lvol {
namespace {

constexpr uint64_t kAllCounted = UINT64_MAX;
// No volume has more clusters.
constexpr uint64_t kEnd = 1ULL << 32;

uint32_t own_in(const Entry& entry, const Entry& of_parent) {
  uint32_t count = 0;
  for (const ClusterIndex cluster : {entry.own, entry.base}) {
    if (cluster >= kFirstDataCluster && cluster != of_parent.own && cluster != of_parent.base) ++count;
  }
  return count;
}

}  // namespace

void Maps::stand_on(MapRoot& root, const MapRoot* parent) {
  root.parent_ = parent;
  root.parent_changes_ = parent == nullptr ? 0 : parent->changes_;
  root.own_ = 0;
  root.counted_ = root.page() == (parent == nullptr ? nullptr : parent->page()) ? kAllCounted : 0;
}

void Maps::stand_beside(const MapRoot& from, MapRoot& to) {
  CHECK(from.page() == to.page());
  to.parent_ = from.parent_;
  to.parent_changes_ = from.parent_changes_;
  to.own_ = from.own_;
  to.counted_ = from.counted_;
}

// Called before the change.
void Maps::adjust_own(MapRoot& root, uint64_t index, const Entry& from, const Entry& to) const {
  ++root.changes_;
  if (index >= root.counted_ || (from.own == to.own && from.base == to.base)) return;
  const Entry of_parent = root.parent_ == nullptr ? Entry{} : find(*root.parent_, index).entry;
  root.own_ = root.own_ + own_in(to, of_parent) - own_in(from, of_parent);
}

std::optional<uint64_t> Maps::count_own(MapRoot& root, uint32_t budget) const {
  static const MapRoot nothing;
  const MapRoot& parent = root.parent_ == nullptr ? nothing : *root.parent_;
  if (root.parent_ != nullptr && root.parent_changes_ != parent.changes_) {
    root.parent_changes_ = parent.changes_;
    root.own_ = root.counted_ = 0;
  }
  if (root.counted_ == kAllCounted) return root.own_;
  uint64_t own = root.own_;
  root.counted_ =
      compare(parent, root, root.counted_, kEnd, budget,
              [&own](uint64_t, const Entry& of_parent, const Entry& entry) { own += own_in(entry, of_parent); });
  root.own_ = own;
  if (root.counted_ < kEnd) return std::nullopt;
  root.counted_ = kAllCounted;
  return root.own_;
}

}  // namespace sluice::lvol
