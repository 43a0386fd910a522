#include "lib/lvol/check.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "lib/lvol/store.h"

namespace sluice::lvol {
namespace {

// A store that is damaged all over need not be described all over.
constexpr size_t kMaxFindings = 100;

class Walk {
 public:
  Walk(Store& store, CheckReport& report)
      : store_(store), report_(report), geometry_(store.geometry()), references_(geometry_.total_clusters) {}

  void run() {
    for (const auto& [id, volume] : store_.volumes().all()) take_volume(*volume);
    if (damaged_ > 0) {
      find("{} pages of maps cannot be read: {}", damaged_, store_.damage());
    }
    for (const PageNumber place : store_.table_places()) take_place(place, "the volume table");
    check_pages();
    check_places();
    check_clusters();
  }

 private:
  struct Seen {
    uint32_t holders = 0;
    bool has_place = false;  // and so has everything below
  };

  template <typename... Args>
  void find(fmt::format_string<Args...> text, Args&&... args) {
    if (report_.findings.size() < kMaxFindings) {
      report_.findings.push_back(fmt::format(text, std::forward<Args>(args)...));
    }
  }

  void take_volume(Volume& volume) {
    ++report_.volumes;
    if (volume.record->snapshot) ++report_.snapshots;
    MapPage* root = volume.map.page();
    name_ = volume.record->name;
    if (root != nullptr) take_page(*root);
    const uint64_t clusters = volume.record->size_bytes / geometry_.cluster_bytes;
    const uint64_t beyond = store_.maps().next_mapped(volume.map, clusters, clusters_below(kMaxLevel));
    if (beyond < clusters_below(kMaxLevel) && damaged_ == 0) {
      find("volume {} has {} clusters, but cluster {} is mapped", name_, clusters, beyond);
    }
    if (damaged_ == 0) check_own(volume);
  }

  // As far as they have been counted: after a load nothing has.
  void check_own(Volume& volume) {
    const Volume* parent = store_.volumes().find(volume.record->parent);
    if (volume.map.parent() != (parent == nullptr ? nullptr : &parent->map)) {
      find("volume {} stands on another map than its parent's", name_);
      return;
    }
    std::ignore = store_.maps().count_own(volume.map, 0);  // begins again if the parent has changed
    const uint64_t end = std::min(volume.map.counted(), clusters_below(kMaxLevel));
    uint64_t own = 0;
    for (uint64_t index = 0; (index = store_.maps().next_mapped(volume.map, index, end)) < end; ++index) {
      const Entry entry = store_.maps().find(volume.map, index).entry;
      const Entry below = parent == nullptr ? Entry{} : store_.maps().find(parent->map, index).entry;
      const std::set<ClusterIndex> shared{kBaseOrigin, kBaseZeros, below.own, below.base};
      own += (shared.contains(entry.own) ? 0 : 1) + (shared.contains(entry.base) ? 0 : 1);
    }
    if (own != volume.map.own()) {
      find("volume {} has {} clusters of its own, but counts {}", name_, own, volume.map.own());
    }
  }

  // Each page once, however many hold it. True: it has a place on disk.
  bool take_page(MapPage& page) {
    if (&page == &store_.maps().damaged_page()) {
      ++damaged_;
      return true;
    }
    const auto [found, first] = pages_.try_emplace(&page);
    ++found->second.holders;
    if (!first) return found->second.has_place;
    const bool has_place = page.place.page != kNoPage;
    if (has_place) {
      take_place(page.place.page, name_);
    } else {
      ++unplaced_;
    }
    if (page.level == 0) {
      take_leaf(static_cast<const LeafPage&>(page));
    } else if (!take_children(static_cast<const InteriorPage&>(page)) && has_place) {
      find("volume {}: page {} refers to a page that is not on disk", name_, page.place.page);
    }
    pages_.at(&page).has_place = has_place;
    return has_place;
  }

  bool take_children(const InteriorPage& page) {
    bool all_have_places = true;
    for (const auto& edge : page.children) {
      MapPage* child = edge.load(std::memory_order_relaxed);
      if (child == nullptr) continue;
      if (child != &store_.maps().damaged_page() && child->level + 1 != page.level) {
        find("volume {}: a page of level {} is below one of level {}", name_, child->level, page.level);
        continue;
      }
      if (!take_page(*child)) all_have_places = false;
    }
    return all_have_places;
  }

  void take_leaf(const LeafPage& leaf) {
    for (uint32_t slot = 0; slot < kFanOut; ++slot) {
      const Entry entry = leaf.load(slot);
      if (!is_sound(entry, geometry_)) {
        find("volume {}: an entry cannot be: own {}, base {}, valid {:x}", name_, entry.own, entry.base, entry.valid);
        continue;
      }
      if (entry.own != kNoCluster) ++references_[entry.own];
      if (entry.base >= kFirstDataCluster) ++references_[entry.base];
    }
  }

  template <typename Owner>
  void take_place(PageNumber place, const Owner& owner) {
    if (!places_.insert(place).second) find("page {} on disk is used twice, once by {}", place, owner);
    const ClusterIndex cluster = geometry_.cluster_of(place);
    if (place / geometry_.pages_per_cluster() >= geometry_.total_clusters || cluster < geometry_.reserved_clusters) {
      find("page {}, of {}, is where no metadata can be", place, owner);
    } else if (!store_.places().in_use(place)) {
      find("page {}, of {}, counts as free", place, owner);
    }
  }

  void check_pages() {
    for (const auto& [page, seen] : pages_) {
      const uint32_t references = page->references.load(std::memory_order_relaxed);
      if (references != seen.holders) {
        find("a page of level {} has {} holders, but counts {}", page->level, seen.holders, references);
      }
    }
    report_.map_pages = pages_.size();
    if (store_.maps().pages() != pages_.size()) {
      find("{} pages are in memory, but {} are in maps", store_.maps().pages(), pages_.size());
    }
    if (store_.maps().unplaced_pages() != unplaced_) {
      find("{} pages are not on disk, but {} count so", unplaced_, store_.maps().unplaced_pages());
    }
  }

  // What the newest superblock names, and what was there and has changed since, is in use.
  void check_places() {
    const uint64_t used = places_.size() + store_.places().left();
    if (store_.places().used() != used) {
      find("{} pages on disk are in use, but {} count so", used, store_.places().used());
    }
  }

  void check_clusters() {
    const ClusterTable& clusters = store_.clusters();
    report_.total_clusters = geometry_.total_clusters;
    report_.reserved_clusters = geometry_.reserved_clusters;
    for (ClusterIndex cluster = 0; cluster < geometry_.total_clusters; ++cluster) {
      const bool is_free = clusters.is_free(cluster);
      const bool metadata = store_.places().has(cluster);
      const uint32_t counted = clusters.references(cluster);
      const uint32_t referred = references_[cluster];
      if (is_free) ++report_.free_clusters;
      if (metadata) ++report_.metadata_clusters;
      if (referred > 0) ++report_.data_clusters;
      if (counted != referred) {
        find("cluster {} is named by {} entries, but counts {}", cluster, referred, counted);
      }
      const int uses = (cluster < geometry_.reserved_clusters ? 1 : 0) + (is_free ? 1 : 0) + (metadata ? 1 : 0) +
                       (referred > 0 ? 1 : 0);
      if (uses == 0) find("cluster {} is neither in use nor free", cluster);
      if (uses > 1) {
        find("cluster {} has more than one use:{}{}{}{}", cluster,
             cluster < geometry_.reserved_clusters ? " reserved" : "", is_free ? " free" : "",
             metadata ? " metadata" : "", referred > 0 ? " data" : "");
      }
    }
    if (clusters.free() != report_.free_clusters) {
      find("{} clusters are free, but {} count so", report_.free_clusters, clusters.free());
    }
    if (clusters.in_quarantine() != 0) find("{} references wait to be dropped", clusters.in_quarantine());
  }

  Store& store_;
  CheckReport& report_;
  const Geometry geometry_;
  std::vector<uint32_t> references_;  // by cluster
  std::unordered_map<const MapPage*, Seen> pages_;
  std::unordered_set<PageNumber> places_;
  uint64_t unplaced_ = 0;
  uint64_t damaged_ = 0;
  std::string name_;  // of the volume that is being walked
};

}  // namespace

CheckReport check(Store& store) {
  CheckReport report;
  Walk(store, report).run();
  return report;
}

}  // namespace sluice::lvol
