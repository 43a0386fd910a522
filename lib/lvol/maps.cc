#include "lib/lvol/maps.h"

#include <algorithm>
#include <array>

namespace sluice::lvol {
namespace {

// What a page costs that is touched or freed, in entries: a few cache misses.
constexpr uint32_t kPageCost = 8;

void spend(uint32_t& budget, uint32_t cost) { budget -= std::min(budget, cost); }

InteriorPage& interior(MapPage& page) { return static_cast<InteriorPage&>(page); }
const InteriorPage& interior(const MapPage& page) { return static_cast<const InteriorPage&>(page); }
LeafPage& leaf(MapPage& page) { return static_cast<LeafPage&>(page); }
const LeafPage& leaf(const MapPage& page) { return static_cast<const LeafPage&>(page); }

MapPage* child(const MapPage& page, uint32_t slot) {
  return interior(page).children[slot].load(std::memory_order_acquire);
}

// The first index behind those below the page of `level` that `index` is below.
uint64_t behind(uint64_t index, uint32_t level) { return (index | (clusters_below(level) - 1)) + 1; }

// Whether nothing is mapped below a page. Looks behind `slot` first: where ranges are dropped from their beginning on,
// there is still something.
bool is_empty(const MapPage& page, uint32_t slot) {
  for (uint32_t step = 1; step <= kFanOut; ++step) {
    const uint32_t at = (slot + step) % kFanOut;
    if (page.level == 0 ? leaf(page).load(at) != Entry{} : child(page, at) != nullptr) return false;
  }
  return true;
}

// The page of `level` that `index` is below: nullptr if there is none; nullopt if the root is below that level itself,
// and at the same time below what would be that page.
std::optional<const MapPage*> page_at(const MapPage* root, uint64_t index, uint32_t level) {
  if (root == nullptr) return nullptr;
  if (level > root->level && index < clusters_below(level)) return std::nullopt;
  if (index >= clusters_below(root->level)) return nullptr;
  const MapPage* page = root;
  while (page != nullptr && page->level > level) page = child(*page, slot_of(index, page->level));
  return page;
}

}  // namespace

MapRoot::~MapRoot() { CHECK(empty()); }

Maps::Maps(ClusterTable& clusters, PagePlaces& places, Epochs& epochs)
    : clusters_(clusters), places_(places), epochs_(epochs) {}

Maps::~Maps() {
  CHECK(roots_ == 0);
  while (!all_.empty()) free_page(all_.front());
}

inline Found Maps::look_up(const MapPage* page, uint64_t index) const {
  if (page == nullptr || (page != &damaged_ && index >= clusters_below(page->level))) return {};
  bool alone = true;
  for (;;) {
    if (page == &damaged_) return {.damaged = true};
    // References of pages before those below and before the counts of clusters: a copy that takes one from the page
    // has first given one to what is below it.
    alone &= page->references.load(std::memory_order_acquire) == 1;
    if (page->level == 0) break;
    page = child(*page, slot_of(index, page->level));
    if (page == nullptr) return {};
  }
  const Entry entry = leaf(*page).load(slot_of(index, 0));
  return {.entry = entry, .in_place = alone && entry.own != kNoCluster && !clusters_.shared(entry.own)};
}

Found Maps::find(const MapRoot& root, uint64_t index) const {
  for (;;) {
    const uint64_t version = root.version_.load(std::memory_order_acquire);
    const Found found = look_up(root.page_.load(std::memory_order_acquire), index);
    // A page that left this map on the way here may since have been changed for another one. All loads of look_up() are
    // acquiring ones: whoever has seen such a change sees the version that came before it.
    if (root.version_.load(std::memory_order_relaxed) == version) [[likely]]
      return found;
  }
}

void Maps::set(MapRoot& root, uint32_t index, const Entry& entry, RecordNumber by) {
  const Found found = find(root, index);
  CHECK(!found.damaged);
  if (found.entry != entry) replace(root, index, found.entry, entry, by);
}

void Maps::replace(MapRoot& root, uint32_t index, const Entry& before, const Entry& entry, RecordNumber by) {
  adjust_own(root, index, before, entry);
  if (root.empty()) {
    root.page_.store(&new_page(level_for(static_cast<uint64_t>(index) + 1)), std::memory_order_release);
    ++roots_;
  }
  while (index >= clusters_below(root.page()->level)) {
    InteriorPage& above = new_interior(root.page()->level + 1);
    above.children[0].store(root.page(), std::memory_order_relaxed);
    root.page_.store(&above, std::memory_order_release);
  }

  std::array<std::atomic<MapPage*>*, kMaxLevel + 1> path{};
  const uint32_t top = root.page()->level;
  bool left_behind = false;
  path[top] = &root.page_;
  for (uint32_t level = top;; --level) {
    std::atomic<MapPage*>& edge = *path[level];
    if (edge.load(std::memory_order_relaxed) == nullptr) {
      edge.store(&new_page(level), std::memory_order_release);
    } else if (make_writable(edge)) {
      left_behind = true;
    }
    if (level == 0) break;
    path[level - 1] = &interior(*edge.load(std::memory_order_relaxed)).children[slot_of(index, level)];
  }
  count_change(before, entry, by, true);
  leaf(*path[0]->load(std::memory_order_relaxed)).store(slot_of(index, 0), entry);
  count_change(before, entry, by, false);
  // Behind the edges, so that who sees the new version finds the new pages.
  if (left_behind) root.version_.fetch_add(1, std::memory_order_release);

  if (entry != Entry{}) return;
  for (uint32_t level = 0; level <= top; ++level) {
    MapPage& page = *path[level]->load(std::memory_order_relaxed);
    if (!is_empty(page, slot_of(index, level))) return;
    path[level]->store(nullptr, std::memory_order_release);
    discard(page);
  }
  --roots_;
}

bool Maps::make_writable(std::atomic<MapPage*>& edge) {
  MapPage& page = *edge.load(std::memory_order_relaxed);
  const bool shared = page.references.load(std::memory_order_relaxed) > 1;
  if (!shared && !frozen(page)) {
    if (page.place.page != kNoPage) {
      places_.leave(page.place.page);
      page.place = {};
      ++unplaced_;
    }
    return false;
  }
  MapPage& copy = new_page(page.level);
  if (page.level == 0) {
    leaf(copy).copy_from(leaf(page));
    if (shared) count_leaf(leaf(copy));
  } else {
    for (uint32_t slot = 0; slot < kFanOut; ++slot) {
      MapPage* below = child(page, slot);
      interior(copy).children[slot].store(below, std::memory_order_relaxed);
      if (shared && below != nullptr) add_holder(*below);
    }
  }
  edge.store(&copy, std::memory_order_release);
  if (shared) {
    drop_holder(page);
  } else {
    kept_.push_back(&page);  // the copy has taken over what it counted for
  }
  return shared;
}

// Adds the references that an entry gains, or drops those that it loses. What both states name goes on as it is.
void Maps::count_change(const Entry& from, const Entry& to, RecordNumber by, bool add) {
  if (from.own == to.own && from.base == to.base) return;
  std::array<ClusterIndex, 2> before{from.own, from.base};
  std::array<ClusterIndex, 2> after{to.own, to.base};
  for (ClusterIndex& old : before) {
    const auto same = std::ranges::find(after, old);
    if (same != after.end()) old = *same = kNoCluster;
  }
  for (const ClusterIndex cluster : add ? after : before) {
    if (add) {
      clusters_.add_reference(cluster);
    } else {
      clusters_.drop_reference(cluster, by);
    }
  }
}

uint64_t Maps::next_mapped(const MapRoot& root, uint64_t from, uint64_t end) const {
  const MapPage* top = root.page();
  if (top == &damaged_) return std::min(from, end);
  while (top != nullptr && from < end && from < clusters_below(top->level)) {
    const MapPage* page = top;
    while (page->level > 0) {
      const MapPage* below = child(*page, slot_of(from, page->level));
      if (below == &damaged_) return from;
      if (below == nullptr) break;
      page = below;
    }
    if (page->level > 0) {
      from = behind(from, page->level - 1);
      continue;
    }
    for (const uint64_t last = std::min(end, behind(from, 0)); from < last; ++from) {
      if (leaf(*page).load(slot_of(from, 0)) != Entry{}) return from;
    }
  }
  return end;
}

void Maps::share(const MapRoot& from, MapRoot& to) {
  CHECK(to.empty());
  if (from.empty()) return;
  add_holder(*from.page());
  put_root(to, *from.page());
}

void Maps::release(MapRoot& root, RecordNumber by) {
  if (root.empty()) return;
  releases_.push_back({root.page(), by});
  root.page_.store(nullptr, std::memory_order_release);
  --roots_;
}

bool Maps::settle(RecordNumber durable, uint32_t budget) {
  // Roots are released one by one, so that these are few.
  for (; !releases_.empty() && releases_.front().by <= durable; releases_.pop_front()) {
    leaving_.push_back({releases_.front().page, epochs_.current()});
  }
  for (; budget > 0 && !ended_.empty(); ended_.pop_back(), spend(budget, kPageCost)) retire(*ended_.back());
  const bool more = places_.settle(budget) || !ended_.empty();
  if (leaving_.empty() && dropping_.empty() && retired_.empty()) return more;

  const auto is_last = [this](const std::deque<Retired>& queue) {
    return !queue.empty() && queue.back().epoch == epochs_.current();
  };
  if (is_last(leaving_) || is_last(retired_)) epochs_.advance();
  const uint64_t oldest = epochs_.oldest();
  const auto is_over = [oldest](const std::deque<Retired>& queue) {
    return !queue.empty() && queue.front().epoch < oldest;
  };
  while (budget > 0 && (!dropping_.empty() || is_over(leaving_))) {
    if (dropping_.empty()) {
      MapPage& page = *leaving_.front().page;
      leaving_.pop_front();
      spend(budget, kPageCost);
      if (drop_holder(page)) dropping_.push_back({&page, 0});
    } else {
      drop_some(budget);
    }
  }
  for (; budget > 0 && is_over(retired_); retired_.pop_front(), spend(budget, kPageCost)) {
    free_page(*retired_.front().page);
  }
  // Pages retired just now belong to the new epoch, which the next call ends.
  return more || !dropping_.empty() || is_over(leaving_) || is_over(retired_) || is_last(retired_);
}

// Goes on with the last of dropping_: to its end, to the end of the budget, or to a child to be dropped first.
void Maps::drop_some(uint32_t& budget) {
  MapPage& page = *dropping_.back().page;
  for (uint32_t& slot = dropping_.back().slot; slot < kFanOut && budget > 0;) {
    if (page.level == 0) {
      const Entry entry = leaf(page).load(slot++);
      clusters_.drop_reference(entry.own, 0);
      clusters_.drop_reference(entry.base, 0);
      spend(budget, 1);
      continue;
    }
    MapPage* below = child(page, slot++);
    spend(budget, below == nullptr ? 1 : kPageCost);
    if (below != nullptr && drop_holder(*below)) {
      dropping_.push_back({below, 0});
      return;
    }
  }
  if (dropping_.back().slot < kFanOut) return;
  dropping_.pop_back();
  discard(page);
}

bool Maps::settled() const {
  return releases_.empty() && leaving_.empty() && dropping_.empty() && ended_.empty() && retired_.empty();
}

uint64_t Maps::compare(const MapRoot& a, const MapRoot& b, uint64_t from, uint64_t end, uint32_t budget,
                       const std::function<void(uint64_t, const Entry&, const Entry&)>& fn) const {
  while (budget > 0 && from < end) {
    std::optional<const MapPage*> of_a;
    std::optional<const MapPage*> of_b;
    uint32_t level = kMaxLevel;
    for (;; --level) {
      of_a = page_at(a.page(), from, level);
      of_b = page_at(b.page(), from, level);
      if (level == 0 || (of_a && of_b && *of_a == *of_b)) break;
    }
    if (*of_a == *of_b) {
      from = behind(from, level);
      --budget;
      continue;
    }
    const auto entry = [this, &from](const MapPage* page) {
      return page == nullptr || page == &damaged_ ? Entry{} : leaf(*page).load(slot_of(from, 0));
    };
    for (const uint64_t last = std::min(end, behind(from, 0)); budget > 0 && from < last; ++from, --budget) {
      const Entry in_a = entry(*of_a);
      const Entry in_b = entry(*of_b);
      if (in_a != in_b) fn(from, in_a, in_b);
    }
  }
  return std::min(from, end);
}

void Maps::begin_checkpoint() {
  CHECK(!checkpointing_);
  checkpointing_ = true;
  ++generation_;
}

void Maps::end_checkpoint() {
  CHECK(checkpointing_);
  checkpointing_ = false;
  if (ended_.empty()) std::swap(ended_, kept_);
  ended_.insert(ended_.end(), kept_.begin(), kept_.end());
  kept_.clear();
}

void Maps::placed(MapPage& page, PageRef place) {
  CHECK(page.place.page == kNoPage && place.page != kNoPage);
  page.place = place;
  --unplaced_;
}

void Maps::misplaced(MapPage& page) {
  CHECK(page.place.page != kNoPage);
  page.place = {};
  ++unplaced_;
}

MapPage& Maps::new_page(uint32_t level) {
  MapPage* page = level == 0 ? static_cast<MapPage*>(new LeafPage) : new InteriorPage(level);
  page->generation = generation_;
  all_.push_front(*page);
  ++pages_;
  ++unplaced_;
  return *page;
}

LeafPage& Maps::new_leaf() { return leaf(new_page(0)); }

InteriorPage& Maps::new_interior(uint32_t level) {
  CHECK(level > 0 && level <= kMaxLevel);
  return interior(new_page(level));
}

// Only the owner changes references: no locked instructions.
void Maps::add_holder(MapPage& page) {
  if (&page == &damaged_) return;
  page.references.store(page.references.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

// True: it was the last one. Release: who finds the page alone sees what the copy of it has given to those below.
bool Maps::drop_holder(MapPage& page) {
  if (&page == &damaged_) return false;
  const uint32_t left = page.references.load(std::memory_order_relaxed) - 1;
  page.references.store(left, std::memory_order_release);
  return left == 0;
}

void Maps::put_root(MapRoot& root, MapPage& page) {
  CHECK(root.empty());
  root.page_.store(&page, std::memory_order_release);
  ++roots_;
}

void Maps::count_leaf(const LeafPage& page) {
  for (uint32_t slot = 0; slot < kFanOut; ++slot) {
    const Entry entry = page.load(slot);
    clusters_.add_reference(entry.own);
    clusters_.add_reference(entry.base);
  }
}

void Maps::discard(MapPage& page) {
  if (frozen(page)) {
    kept_.push_back(&page);
  } else {
    retire(page);
  }
}

void Maps::retire(MapPage& page) {
  if (page.place.page != kNoPage) {
    places_.leave(page.place.page);
  } else {
    --unplaced_;
  }
  retired_.push_back({&page, epochs_.current()});
}

void Maps::free_page(MapPage& page) {
  --pages_;
  if (page.level == 0) {
    delete &leaf(page);
  } else {
    delete &interior(page);
  }
}

void Maps::abandon(const std::vector<MapRoot*>& roots) {
  for (MapRoot* root : roots) {
    if (root->page_.exchange(nullptr, std::memory_order_relaxed) != nullptr) --roots_;
  }
  CHECK(roots_ == 0);
  while (!all_.empty()) free_page(all_.front());
  releases_.clear();
  leaving_.clear();
  dropping_.clear();
  kept_.clear();
  ended_.clear();
  retired_.clear();
  checkpointing_ = false;
  unplaced_ = 0;
}

}  // namespace sluice::lvol
