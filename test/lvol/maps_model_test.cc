// Maps, ClusterTable, PagePlaces and Epochs together against a plain model: volumes, snapshots, deletes, changes,
// checkpoints and I/O in flight in random order, with everything counted anew again and again.
#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <unordered_map>

#include "lib/lvol/maps.h"

namespace sluice::lvol {
namespace {

using Entries = std::map<uint32_t, Entry>;

struct ModelVolume {
  uint64_t id;
  MapRoot root;
  Entries entries;
  ModelVolume* parent = nullptr;
};

// A request in flight: whatever it may have found must not be taken by anybody.
struct InFlight {
  EpochUse use;
  uint64_t volume;
  std::set<ClusterIndex> found;
};

struct Frozen {
  MapPage* root;
  Entries entries;
};

class World {
 public:
  explicit World(uint32_t seed) : random_(seed) {}
  ~World() {
    while (!in_flight_.empty()) end_io();
    if (maps_.checkpointing()) end_checkpoint();
    for (const auto& volume : volumes_) release(*volume);
    volumes_.clear();
    settle_all();
    begin_checkpoint();  // so that all places are given back
    end_checkpoint();
    settle_all();
    EXPECT_EQ(maps_.pages(), 0U);
    EXPECT_EQ(maps_.unplaced_pages(), 0U);
    EXPECT_EQ(clusters_.free(), kClusters - 2);
  }

  void step() {
    switch (random_() % 32) {
      case 0:
        if (volumes_.size() < 8) volumes_.push_back(std::make_unique<ModelVolume>(++volume_ids_));
        break;
      case 1:
      case 2:
        if (volumes_.size() < 8 && !volumes_.empty()) share();
        break;
      case 3:
        if (volumes_.size() > 2) erase(random_() % volumes_.size());
        break;
      case 4:
        if (!volumes_.empty()) drop_range();
        break;
      case 5:
        if (maps_.checkpointing()) {
          random_() % 3 == 0 ? fail_checkpoint() : end_checkpoint();
        } else {
          begin_checkpoint();
        }
        break;
      case 6:
      case 7:
        if (maps_.checkpointing()) place_some();
        break;
      case 8:
      case 9:
        durable_ += random_() % (record_ - durable_ + 1);
        break;
      case 10:
        maps_.settle(durable_, 1 + random_() % 600);
        break;
      case 11:
        clusters_.settle(durable_, 1 + random_() % 100);
        break;
      case 12:
        if (in_flight_.size() < 6 && !volumes_.empty()) begin_io();
        break;
      case 13:
        if (!in_flight_.empty()) end_io();
        break;
      case 14:
        if (!volumes_.empty()) compare();
        break;
      case 15:
        if (!volumes_.empty()) count_own();
        break;
      default:
        if (!volumes_.empty()) change(some_volume(), some_index());
    }
  }

  // Whatever the state: maps read as the model says, nothing counts less than it must.
  void check() {
    for (const auto& volume : volumes_) {
      check_reads(*volume);
      check_own(*volume);
    }
    for (const Frozen& frozen : frozen_) ASSERT_EQ(read(frozen.root), frozen.entries);
    count_anew(false);
  }
  // With nothing waiting: all counts are exact.
  void check_settled() {
    while (!in_flight_.empty()) end_io();
    settle_all();
    count_anew(true);
    for (const auto& volume : volumes_) {
      for (const auto& [index, entry] : volume->entries) {
        const bool own_only = entry.own != kNoCluster && named_[entry.own] == 1;
        ASSERT_EQ(maps_.find(volume->root, index).in_place, own_only) << index;
      }
    }
  }

  // That were compared: of clusters that are a map's own.
  uint64_t whole_counts() const { return whole_counts_; }
  uint64_t partial_counts() const { return partial_counts_; }

 private:
  static constexpr uint32_t kClusters = 3000;

  ModelVolume& some_volume() { return *volumes_[random_() % volumes_.size()]; }
  // Dense at the beginning, for leaves with much in them, and here and there further up, for all levels.
  uint32_t some_index() {
    switch (random_() % 8) {
      case 0:
        return static_cast<uint32_t>(random_() % 8 * 9000);
      case 1:
        return static_cast<uint32_t>(random_() % 3) << 23;
      default:
        return static_cast<uint32_t>(random_() % 600);
    }
  }

  // --- The model's clusters: how many entries of volumes name them, and by which record one last ceased to. ---

  void name(const Entry& entry) {
    ++named_[entry.own];
    ++named_[entry.base];
  }
  // `now`: what is there instead.
  void unname(const Entry& entry, const Entry& now, RecordNumber by) {
    for (const ClusterIndex cluster : {entry.own, entry.base}) {
      --named_[cluster];
      if (cluster != now.own && cluster != now.base) last_drop_[cluster] = by;
    }
  }

  ClusterIndex take_cluster() {
    const auto cluster = clusters_.take();
    if (!cluster) return kNoCluster;
    EXPECT_EQ(named_[*cluster], 0U);
    EXPECT_LE(last_drop_[*cluster], durable_) << "taken before the record that freed it is durable";
    for (const InFlight& io : in_flight_) EXPECT_FALSE(io.found.contains(*cluster)) << "in use by a request";
    for (const PageNumber page : on_disk_) EXPECT_NE(geometry_.cluster_of(page), *cluster);
    return *cluster;
  }
  std::optional<PageNumber> take_place() {
    const auto page = places_.take();
    if (page) {
      EXPECT_FALSE(on_disk_.contains(*page)) << "the superblock refers to it";
      EXPECT_EQ(named_[geometry_.cluster_of(*page)], 0U);
    }
    return page;
  }

  // --- Operations ---

  void change(ModelVolume& volume, uint32_t index) {
    const auto it = volume.entries.find(index);
    const Entry old = it == volume.entries.end() ? Entry{} : it->second;
    Entry entry = old;
    switch (random_() % 6) {
      case 0:
        entry = {};
        break;
      case 1:
        entry = {.base = kBaseZeros};
        break;
      case 2:  // what was copied is complete
        if (old.own != kNoCluster) entry = {.own = old.own, .valid = ~0ULL};
        break;
      case 3:  // written in place, which only who is alone may
        if (maps_.find(volume.root, index).in_place) {
          ASSERT_EQ(named_[old.own], 1U);
          ASSERT_LE(last_drop_[old.own], durable_);
          for (const InFlight& io : in_flight_) {
            ASSERT_TRUE(io.volume == volume.id || !io.found.contains(old.own)) << "another volume's request reads it";
          }
          entry.valid |= random_();
        }
        break;
      default: {  // copy on write
        const ClusterIndex own = take_cluster();
        if (own == kNoCluster) return;
        entry = {.own = own, .base = old.valid == ~0ULL ? old.own : old.base, .valid = random_()};
      }
    }
    set(volume, index, entry);
  }
  void set(ModelVolume& volume, uint32_t index, const Entry& entry) {
    Entry& now = volume.entries[index];
    name(entry);
    unname(now, entry, ++record_);
    now = entry;
    if (entry == Entry{}) volume.entries.erase(index);
    maps_.set(volume.root, index, entry, record_);
    ASSERT_EQ(maps_.find(volume.root, index).entry, entry);
  }
  void drop_range() {
    ModelVolume& volume = some_volume();
    const uint64_t first = random_() % 600;
    const uint64_t end = random_() % 4 == 0 ? 1ULL << 32 : first + random_() % 400;
    for (uint64_t at = first; (at = maps_.next_mapped(volume.root, at, end)) < end;) {
      set(volume, static_cast<uint32_t>(at), {});
    }
    const auto left = volume.entries.lower_bound(static_cast<uint32_t>(first));
    ASSERT_TRUE(left == volume.entries.end() || left->first >= end);
  }
  void share() {
    ModelVolume& from = some_volume();
    auto to = std::make_unique<ModelVolume>(++volume_ids_);
    maps_.share(from.root, to->root);
    to->entries = from.entries;
    for (const auto& [index, entry] : to->entries) name(entry);
    if (random_() % 2 == 0) {  // a snapshot
      to->parent = from.parent;
      maps_.stand_beside(from.root, to->root);
      stand_on(from, to.get());
    } else {
      stand_on(*to, &from);
    }
    volumes_.push_back(std::move(to));
  }
  void stand_on(ModelVolume& volume, ModelVolume* parent) {
    volume.parent = parent;
    maps_.stand_on(volume.root, parent == nullptr ? nullptr : &parent->root);
  }
  // Some steps, or a new parent.
  void count_own() {
    ModelVolume& volume = some_volume();
    if (random_() % 16 == 0) {
      ModelVolume& parent = some_volume();
      stand_on(volume, &parent == &volume ? nullptr : &parent);
    }
    const uint64_t own = own_below(volume, 1ULL << 32);
    for (uint64_t steps = random_() % 20; steps > 0; --steps) {
      if (const auto counted = maps_.count_own(volume.root, 1 + random_() % 200)) {
        ASSERT_EQ(counted, own);
      }
    }
  }
  void release(ModelVolume& volume) {
    maps_.release(volume.root, ++record_);
    for (const auto& [index, entry] : volume.entries) unname(entry, {}, record_);
  }
  void erase(size_t which) {
    for (const auto& volume : volumes_) {
      ModelVolume* parent = volumes_[which]->parent;
      if (volume->parent == volumes_[which].get()) stand_on(*volume, parent == volume.get() ? nullptr : parent);
    }
    release(*volumes_[which]);
    volumes_.erase(volumes_.begin() + static_cast<std::ptrdiff_t>(which));
  }
  void begin_io() {
    InFlight& io = in_flight_.emplace_back();
    reader_.enter(io.use);
    const ModelVolume& volume = some_volume();
    io.volume = volume.id;
    for (const auto& [index, entry] : volume.entries) {
      for (const ClusterIndex cluster : {entry.own, entry.base}) {
        if (cluster >= kFirstDataCluster) io.found.insert(cluster);
      }
    }
  }
  void end_io() {
    auto io = in_flight_.begin();
    std::advance(io, static_cast<std::ptrdiff_t>(random_() % in_flight_.size()));
    reader_.leave(io->use);
    in_flight_.erase(io);
  }
  void settle_all() {
    durable_ = record_;
    while (maps_.settle(durable_, 500) || clusters_.settle(durable_, 500)) {
    }
    ASSERT_TRUE(maps_.settled());
    ASSERT_EQ(clusters_.in_quarantine(), 0U);
  }
  void compare() {
    ModelVolume& a = some_volume();
    ModelVolume& b = some_volume();
    Entries differ_a;
    Entries differ_b;
    uint64_t last = 0;
    for (uint64_t at = 0; at < 1ULL << 32;) {
      at = maps_.compare(a.root, b.root, at, 1ULL << 32, 1 + random_() % 1000,
                         [&](uint64_t index, const Entry& in_a, const Entry& in_b) {
                           EXPECT_TRUE(differ_a.empty() || index > last);
                           last = index;
                           differ_a[static_cast<uint32_t>(index)] = in_a;
                           differ_b[static_cast<uint32_t>(index)] = in_b;
                         });
    }
    Entries expected_a;
    Entries expected_b;
    const auto look = [](const Entries& entries, uint32_t index) {
      const auto it = entries.find(index);
      return it == entries.end() ? Entry{} : it->second;
    };
    for (const Entries* entries : {&a.entries, &b.entries}) {
      for (const auto& [index, entry] : *entries) {
        if (look(a.entries, index) == look(b.entries, index)) continue;
        expected_a[index] = look(a.entries, index);
        expected_b[index] = look(b.entries, index);
      }
    }
    ASSERT_EQ(differ_a, expected_a);
    ASSERT_EQ(differ_b, expected_b);
  }

  // --- Checkpoints ---

  void begin_checkpoint() {
    maps_.begin_checkpoint();
    places_.begin_checkpoint();
    for (const auto& volume : volumes_) {
      if (!volume->root.empty()) frozen_.push_back({volume->root.page(), volume->entries});
    }
  }
  // Gives places to at most `budget` pages; those below first.
  bool place(MapPage* page, uint32_t& budget) {
    if (page == nullptr || page->place.page != kNoPage) return true;
    if (page->level > 0) {
      for (auto& child : static_cast<InteriorPage*>(page)->children) {
        if (!place(child.load(), budget)) return false;
      }
    }
    if (budget == 0) return false;
    --budget;
    const auto where = take_place();
    if (!where) return false;
    maps_.placed(*page, {.page = *where, .crc = 1});
    placed_.push_back(page);
    return true;
  }
  void place_some() {
    uint32_t budget = random_() % 8;
    for (const Frozen& frozen : frozen_) place(frozen.root, budget);
  }
  void end_checkpoint() {
    uint32_t budget = UINT32_MAX;
    for (const Frozen& frozen : frozen_) {
      ASSERT_EQ(read(frozen.root), frozen.entries);
      if (!place(frozen.root, budget)) return fail_checkpoint();  // no space
    }
    on_disk_.clear();
    for (const Frozen& frozen : frozen_) collect_places(frozen.root, on_disk_);
    end(true);
  }
  void fail_checkpoint() {
    for (MapPage* page : placed_) {
      places_.give_back(page->place.page);
      maps_.misplaced(*page);
    }
    end(false);
  }
  void end(bool complete) {
    frozen_.clear();
    placed_.clear();
    const bool maps_first = random_() % 2 == 0;
    if (maps_first) maps_.end_checkpoint();
    complete ? places_.end_checkpoint() : places_.abandon_checkpoint();
    if (!maps_first) maps_.end_checkpoint();
  }
  static void collect_places(MapPage* page, std::set<PageNumber>& into) {
    ASSERT_NE(page->place.page, kNoPage);
    into.insert(page->place.page);
    if (page->level == 0) return;
    for (auto& child : static_cast<InteriorPage*>(page)->children) {
      if (child != nullptr) collect_places(child, into);
    }
  }

  // --- Checks ---

  static void read(MapPage* page, uint64_t first, Entries& into) {
    for (uint32_t slot = 0; slot < kFanOut; ++slot) {
      const uint64_t index = first | static_cast<uint64_t>(slot) << (kFanOutBits * page->level);
      if (page->level == 0) {
        const Entry entry = static_cast<LeafPage*>(page)->load(slot);
        if (entry != Entry{}) into[static_cast<uint32_t>(index)] = entry;
      } else if (MapPage* child = static_cast<InteriorPage*>(page)->children[slot]; child != nullptr) {
        read(child, index, into);
      }
    }
  }
  static Entries read(MapPage* root) {
    Entries entries;
    if (root != nullptr) read(root, 0, entries);
    return entries;
  }
  void check_reads(const ModelVolume& volume) {
    ASSERT_EQ(read(volume.root.page()), volume.entries);
    uint64_t at = 0;
    for (const auto& [index, entry] : volume.entries) {
      const Found found = maps_.find(volume.root, index);
      ASSERT_EQ(found.entry, entry);
      ASSERT_FALSE(found.damaged);
      if (found.in_place) ASSERT_EQ(named_[entry.own], 1U);
      ASSERT_EQ(maps_.next_mapped(volume.root, at, 1ULL << 32), index);
      at = index + 1ULL;
    }
    ASSERT_EQ(maps_.next_mapped(volume.root, at, 1ULL << 32), 1ULL << 32);
  }

  // Clusters of the entries before `end` that the parent does not name there.
  static uint64_t own_below(const ModelVolume& volume, uint64_t end) {
    uint64_t own = 0;
    for (const auto& [index, entry] : volume.entries) {
      if (index >= end) break;
      Entry below;
      if (volume.parent != nullptr) {
        const auto found = volume.parent->entries.find(index);
        if (found != volume.parent->entries.end()) below = found->second;
      }
      for (const ClusterIndex cluster : {entry.own, entry.base}) {
        if (cluster >= kFirstDataCluster && cluster != below.own && cluster != below.base) ++own;
      }
    }
    return own;
  }
  void check_own(ModelVolume& volume) {
    maps_.count_own(volume.root, 0);  // of no use if the parent has changed: begins again
    ASSERT_EQ(volume.root.own(), own_below(volume, volume.root.counted()));
    whole_counts_ += volume.root.counted() > 1ULL << 32 && !volume.entries.empty() ? 1 : 0;
    partial_counts_ += volume.root.counted() > 0 && volume.root.counted() < 1ULL << 32 ? 1 : 0;
  }

  void visit(MapPage* page, std::unordered_map<MapPage*, uint32_t>& holders) {
    if (++holders[page] > 1 || page->level == 0) return;
    for (auto& child : static_cast<InteriorPage*>(page)->children) {
      if (child == nullptr) continue;
      visit(child, holders);
      if (page->place.page != kNoPage) ASSERT_NE(child.load()->place.page, kNoPage) << "above a page without a place";
    }
  }
  void count_anew(bool settled) {
    std::unordered_map<MapPage*, uint32_t> holders;
    for (const auto& volume : volumes_) {
      if (!volume->root.empty()) visit(volume->root.page(), holders);
    }
    std::vector<uint32_t> references(kClusters);
    uint64_t unplaced = 0;
    std::set<PageNumber> places;
    for (const auto& [page, count] : holders) {
      ASSERT_GE(page->references, count);
      if (settled) ASSERT_EQ(page->references, count);
      if (page->place.page == kNoPage) {
        ++unplaced;
      } else {
        ASSERT_TRUE(places.insert(page->place.page).second) << "two pages in one place";
        ASSERT_TRUE(places_.has(geometry_.cluster_of(page->place.page)));
      }
      if (page->level > 0) continue;
      bool empty = true;
      for (uint32_t slot = 0; slot < kFanOut; ++slot) {
        const Entry entry = static_cast<LeafPage*>(page)->load(slot);
        ++references[entry.own];
        ++references[entry.base];
        empty = empty && entry == Entry{};
      }
      ASSERT_FALSE(empty) << "a leaf without entries";
    }
    ASSERT_GE(maps_.unplaced_pages(), unplaced);
    uint32_t data = 0;
    for (ClusterIndex cluster = 2; cluster < kClusters; ++cluster) {
      ASSERT_GE(clusters_.references(cluster), references[cluster]);
      if (settled) ASSERT_EQ(clusters_.references(cluster), references[cluster]);
      ASSERT_FALSE(clusters_.is_free(cluster) && references[cluster] > 0);
      data += references[cluster] > 0 ? 1 : 0;
    }
    ASSERT_GE(clusters_.free() + clusters_.in_quarantine() + data + places_.clusters(),
              maps_.settled() ? kClusters - 2 : 0);
    if (!settled) return;
    ASSERT_EQ(clusters_.free() + data + places_.clusters(), kClusters - 2);
    if (maps_.checkpointing()) return;
    ASSERT_EQ(maps_.pages(), holders.size());
    ASSERT_EQ(maps_.unplaced_pages(), unplaced);
  }

  std::mt19937_64 random_;
  // So that metadata and data often get in each other's way.
  const Geometry geometry_{.cluster_bytes = 64 << 10, .total_clusters = kClusters, .reserved_clusters = 2};
  Epochs epochs_;
  EpochReader reader_{epochs_};
  ClusterTable clusters_{geometry_, epochs_};
  PagePlaces places_{geometry_, clusters_};
  Maps maps_{clusters_, places_, epochs_};
  RecordNumber record_ = 0;
  RecordNumber durable_ = 0;
  uint64_t volume_ids_ = 0;
  std::vector<std::unique_ptr<ModelVolume>> volumes_;
  std::list<InFlight> in_flight_;
  std::vector<Frozen> frozen_;
  std::vector<MapPage*> placed_;  // by the checkpoint in progress
  std::set<PageNumber> on_disk_;  // what the newest superblock refers to
  std::map<ClusterIndex, uint64_t> named_;
  std::map<ClusterIndex, RecordNumber> last_drop_;
  uint64_t whole_counts_ = 0;
  uint64_t partial_counts_ = 0;
};

TEST(MapsModel, AgreesWithPlainMapsUnderRandomUse) {
  for (uint32_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    World world(seed);
    for (int step = 0; step < 6000; ++step) {
      world.step();
      if (step % 40 == 39) world.check();
      if (step % 250 == 249) world.check_settled();
      if (testing::Test::HasFailure()) FAIL() << "step " << step;
    }
    EXPECT_GT(world.whole_counts(), 0U);
    EXPECT_GT(world.partial_counts(), 0U);
  }
}

}  // namespace
}  // namespace sluice::lvol
