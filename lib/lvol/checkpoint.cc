#include "lib/lvol/checkpoint.h"

#include <algorithm>
#include <cstring>

#include "lib/thread/await.h"

namespace sluice::lvol {
namespace {

constexpr uint32_t kRunPages = 64;
// Encoding a page takes about a microsecond.
constexpr uint32_t kStepPages = 32;

uint64_t pages_for(uint64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes; }

}  // namespace

uint64_t Checkpoint::table_pages() const {
  const uint64_t pages = pages_for(volumes_.record_bytes());
  return pages + pages / kRefsPerPage + 2;
}

Task<Result<>> Checkpoint::run(Journal& journal, std::string name, Geometry geometry) {
  const Journal::Position position = journal.cut();
  Superblock next = superblock_;
  next.generation = superblock_.generation + 1;
  next.name = std::move(name);
  next.geometry = geometry;
  next.journal_sequence = position.sequence;
  next.journal_crc = position.previous_crc;
  next.first_record = position.next_record;
  next.next_volume = volumes_.next_id();

  for (const PageNumber page : table_places_) places_.leave(page);
  table_places_.clear();
  new_table_places_.clear();
  places_.begin_checkpoint();
  maps_.begin_checkpoint();
  std::vector<Frozen> frozen;
  frozen.reserve(volumes_.all().size());
  for (const auto& [id, volume] : volumes_.all()) frozen.push_back({volume->record, volume->map.page()});

  if (run_.bytes().empty()) {
    auto buffer = IoBuffer::allocate(kRunPages * kPageBytes);
    if (!buffer) co_return std::unexpected(buffer.error());
    run_ = std::move(*buffer);
  }
  for (const Frozen& volume : frozen) {
    if (volume.root == nullptr) continue;
    if (auto written = co_await write_map(*volume.root); !written) co_return written;
  }
  if (auto written = co_await write_table(frozen, next); !written) co_return written;
  // Data too: what was written before the cut is durable before what exposes it.
  if (auto flushed = co_await io_.flush(); !flushed) co_return flushed;

  encode(next, run_.bytes().first<kPageBytes>());
  const PageNumber slot = next.generation % kSuperblockSlots;
  if (auto written = co_await io_.write(slot, run_.bytes().first(kPageBytes)); !written) co_return written;
  if (auto flushed = co_await io_.flush(); !flushed) co_return flushed;

  superblock_ = std::move(next);
  table_places_ = std::move(new_table_places_);
  maps_.end_checkpoint();
  places_.end_checkpoint();
  journal.release_before(position);
  co_return Result<>{};
}

// Children first, as a page names places and CRCs of those below it.
Task<Result<>> Checkpoint::write_map(MapPage& root) {
  struct Visit {
    MapPage* page;
    uint32_t next_child;
  };
  std::vector<Visit> path;
  if (root.place.page == kNoPage) path.push_back({&root, 0});
  while (!path.empty()) {
    Visit& visit = path.back();
    MapPage* child = nullptr;
    if (visit.page->level > 0) {
      auto& children = static_cast<InteriorPage*>(visit.page)->children;
      while (child == nullptr && visit.next_child < kFanOut) {
        MapPage* candidate = children[visit.next_child++].load(std::memory_order_relaxed);
        if (candidate != nullptr && candidate->place.page == kNoPage) child = candidate;
      }
    }
    if (child != nullptr) {
      path.push_back({child, 0});
      continue;
    }
    MapPage& page = *visit.page;
    path.pop_back();
    if (auto written = co_await write_page(page); !written) co_return written;
    if (++step_ >= kStepPages) {
      step_ = 0;
      co_await next_turn();
    }
  }
  co_return Result<>{};
}

Task<Result<>> Checkpoint::write_page(MapPage& page) {
  Page bytes;
  if (page.level == 0) {
    std::array<Entry, kFanOut> entries;
    const auto& leaf = static_cast<const LeafPage&>(page);
    for (uint32_t i = 0; i < kFanOut; ++i) entries[i] = leaf.load(i);
    encode(std::span<const Entry, kFanOut>(entries), bytes);
  } else {
    std::array<PageRef, kFanOut> refs;
    const auto& interior = static_cast<const InteriorPage&>(page);
    for (uint32_t i = 0; i < kFanOut; ++i) {
      const MapPage* child = interior.children[i].load(std::memory_order_relaxed);
      refs[i] = child == nullptr ? PageRef{} : child->place;
    }
    encode(std::span<const PageRef, kRefsPerPage>(refs), bytes);
  }
  auto place = co_await put(bytes);
  if (!place) co_return std::unexpected(place.error());
  maps_.placed(page, *place);
  co_return Result<>{};
}

Task<Result<>> Checkpoint::write_table(const std::vector<Frozen>& volumes, Superblock& next) {
  std::vector<std::byte> table;
  for (const Frozen& volume : volumes) {
    TableEntry entry{.volume = *volume.record, .level = 0, .root = {}};
    if (volume.root != nullptr) {
      entry.level = volume.root->level;
      entry.root = volume.root->place;
    }
    encode(entry, table);
    if (++step_ >= kStepPages) {
      step_ = 0;
      co_await next_turn();
    }
  }
  next.table_bytes = table.size();
  next.table_index.clear();
  const uint64_t pages = pages_for(table.size());
  table.resize(pages * kPageBytes);
  std::array<PageRef, kRefsPerPage> refs{};
  for (uint64_t i = 0; i < pages; ++i) {
    auto place = co_await put(PageView(table.data() + i * kPageBytes, kPageBytes));
    if (!place) co_return std::unexpected(place.error());
    new_table_places_.push_back(place->page);
    refs[i % kRefsPerPage] = *place;
    if ((i + 1) % kRefsPerPage == 0 || i + 1 == pages) {
      Page index;
      encode(std::span<const PageRef, kRefsPerPage>(refs), index);
      auto index_place = co_await put(index);
      if (!index_place) co_return std::unexpected(index_place.error());
      new_table_places_.push_back(index_place->page);
      next.table_index.push_back(*index_place);
      refs.fill({});
    }
  }
  if (next.table_index.size() > kMaxTableIndex) co_return fail(EFBIG, "the store has too many volumes for its table");
  co_return co_await write_out();
}

Task<Result<PageRef>> Checkpoint::put(PageView bytes) {
  const std::optional<PageNumber> place = places_.take();
  if (!place) co_return fail(ENOSPC, "the store has no room for its metadata");
  if (run_pages_ == kRunPages || (run_pages_ > 0 && *place != run_first_ + run_pages_)) {
    if (auto written = co_await write_out(); !written) co_return std::unexpected(written.error());
  }
  if (run_pages_ == 0) run_first_ = *place;
  std::memcpy(run_.bytes().data() + run_pages_ * kPageBytes, bytes.data(), kPageBytes);
  ++run_pages_;
  co_return PageRef{.page = *place, .crc = page_crc(bytes)};
}

Task<Result<>> Checkpoint::write_out() {
  const uint32_t pages = std::exchange(run_pages_, 0);
  if (pages == 0) co_return Result<>{};
  co_return co_await io_.write(run_first_, run_.bytes().first(pages * kPageBytes));
}

}  // namespace sluice::lvol
