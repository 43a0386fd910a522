#include "lib/lvol/loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "lib/bdev/io_buffer.h"
#include "lib/thread/await.h"

namespace sluice::lvol {
namespace {

constexpr uint64_t kReadPages = 256;  // 1 MiB
// Pages that nobody needs are read along with those before and behind them if they are no more than this.
constexpr uint64_t kMaxGapPages = 16;
constexpr uint32_t kStepPages = 64;

class MapLoader {
 public:
  MapLoader(const Superblock& superblock, MetaIo& io, PagePlaces& places, Maps& maps)
      : geometry_(superblock.geometry), io_(io), places_(places), maps_(maps) {}

  // To be read: the map of a volume.
  void add(Volume& volume, uint32_t level, const PageRef& root) {
    want(level, root, {.volume = &volume, .parent = nullptr, .slot = 0});
  }

  Task<Result<>> run() {
    auto buffer = IoBuffer::allocate(kReadPages * kPageBytes);
    if (!buffer) co_return std::unexpected(buffer.error());
    buffer_ = std::move(*buffer);
    for (uint32_t level = kMaxLevel + 1; level-- > 0;) {
      // Places of lower levels only are added meanwhile.
      auto& wanted = wanted_[level];
      for (auto at = wanted.begin(); at != wanted.end();) {
        const PageNumber first = at->first;
        auto last = at;
        auto end = at;
        for (; end != wanted.end() && end->first - last->first <= kMaxGapPages && end->first - first < kReadPages;
             ++end)
          last = end;
        const uint64_t pages = last->first - first + 1;
        auto read = co_await io_.read(first, buffer_.bytes().first(pages * kPageBytes));
        if (!read) co_return read;
        for (; at != end; ++at) {
          take(level, at->first, at->second,
               PageView(buffer_.bytes().data() + (at->first - first) * kPageBytes, kPageBytes));
          if (++step_ % kStepPages == 0) co_await next_turn();
        }
      }
      wanted.clear();
    }
    // Only now it is known which clusters hold metadata.
    for (LeafPage* leaf : leaves_) {
      for (uint32_t i = 0; i < kFanOut; ++i) {
        const Entry entry = leaf->load(i);
        if (places_.has(entry.own) || places_.has(entry.base))
          co_return fail(EILSEQ, "a map names a cluster of metadata");
      }
      maps_.count_leaf(*leaf);
      if (++step_ % kStepPages == 0) co_await next_turn();
    }
    co_return Result<>{};
  }

  const std::string& damage() const { return damage_; }

 private:
  // Who refers to a page: a volume's root, or a slot of the page above.
  struct Referrer {
    Volume* volume;
    InteriorPage* parent;
    uint32_t slot;
  };
  struct Wanted {
    uint32_t crc = 0;
    std::vector<Referrer> referrers;
  };

  void want(uint32_t level, const PageRef& ref, const Referrer& referrer) {
    Wanted& wanted = wanted_[level][ref.page];
    wanted.crc = ref.crc;
    wanted.referrers.push_back(referrer);
  }

  void take(uint32_t level, PageNumber place, const Wanted& wanted, PageView bytes) {
    MapPage* page = page_crc(bytes) == wanted.crc && places_.take(place) ? decode_page(level, bytes) : nullptr;
    if (page == nullptr) {
      if (damage_.empty()) damage_ = fmt::format("page {} of a map is damaged", place);
      page = &maps_.damaged_page();
    } else {
      maps_.placed(*page, {.page = place, .crc = wanted.crc});
      for (size_t more = 1; more < wanted.referrers.size(); ++more) maps_.add_holder(*page);
    }
    for (const Referrer& referrer : wanted.referrers) {
      if (referrer.volume != nullptr) {
        maps_.put_root(referrer.volume->map, *page);
      } else {
        referrer.parent->children[referrer.slot].store(page, std::memory_order_release);
      }
    }
  }

  // nullptr if what it says cannot be.
  MapPage* decode_page(uint32_t level, PageView bytes) {
    if (level == 0) {
      std::array<Entry, kFanOut> entries;
      decode(bytes, std::span<Entry, kFanOut>(entries));
      for (const Entry& entry : entries) {
        if (!is_sound(entry, geometry_)) return nullptr;
      }
      LeafPage& leaf = maps_.new_leaf();
      for (uint32_t i = 0; i < kFanOut; ++i) leaf.store(i, entries[i]);
      leaves_.push_back(&leaf);
      return &leaf;
    }
    std::array<PageRef, kRefsPerPage> refs;
    decode(bytes, std::span<PageRef, kRefsPerPage>(refs));
    for (const PageRef& ref : refs) {
      const bool outside = ref.page >= static_cast<uint64_t>(geometry_.total_clusters) * geometry_.pages_per_cluster();
      if (outside || (ref.page != kNoPage && geometry_.cluster_of(ref.page) < geometry_.reserved_clusters)) {
        return nullptr;
      }
    }
    InteriorPage& interior = maps_.new_interior(level);
    for (uint32_t i = 0; i < kFanOut; ++i) {
      if (refs[i].page != kNoPage) want(level - 1, refs[i], {.volume = nullptr, .parent = &interior, .slot = i});
    }
    return &interior;
  }

  const Geometry& geometry_;
  MetaIo& io_;
  PagePlaces& places_;
  Maps& maps_;
  IoBuffer buffer_;
  std::map<PageNumber, Wanted> wanted_[kMaxLevel + 1];
  std::vector<LeafPage*> leaves_;
  std::string damage_;
  uint32_t step_ = 0;
};

// Reads the pages in order into `bytes`. Errors: EILSEQ: one is not what it was.
Task<Result<>> read_pages(MetaIo& io, const std::vector<PageRef>& refs, std::vector<std::byte>& bytes) {
  auto buffer = IoBuffer::allocate(kPageBytes);
  if (!buffer) co_return std::unexpected(buffer.error());
  const std::span<std::byte> page = buffer->bytes();
  for (const PageRef& ref : refs) {
    if (auto read = co_await io.read(ref.page, page); !read) co_return read;
    if (page_crc(page.first<kPageBytes>()) != ref.crc) co_return fail(EILSEQ, "the volume table is damaged");
    bytes.insert(bytes.end(), page.begin(), page.end());
  }
  co_return Result<>{};
}

bool can_be_metadata(const PageRef& ref, const Geometry& geometry) {
  const uint64_t pages = static_cast<uint64_t>(geometry.total_clusters) * geometry.pages_per_cluster();
  return ref.page < pages && geometry.cluster_of(ref.page) >= geometry.reserved_clusters;
}

Task<Result<std::vector<std::byte>>> read_table(const Superblock& superblock, MetaIo& io, PagePlaces& places,
                                                std::vector<PageNumber>& table_places) {
  std::vector<PageRef> level = superblock.table_index;
  std::vector<std::byte> bytes;
  for (const bool index : {true, false}) {
    for (const PageRef& ref : level) {
      if (!can_be_metadata(ref, superblock.geometry) || !places.take(ref.page)) {
        co_return fail(EILSEQ, "the volume table lies where it cannot be");
      }
      table_places.push_back(ref.page);
    }
    bytes.clear();
    if (auto read = co_await read_pages(io, level, bytes); !read) co_return std::unexpected(read.error());
    if (!index) break;
    const uint64_t pages = (superblock.table_bytes + kPageBytes - 1) / kPageBytes;
    level.clear();
    for (size_t at = 0; at < bytes.size() && level.size() < pages; at += kPageBytes) {
      std::array<PageRef, kRefsPerPage> refs;
      decode(PageView(bytes.data() + at, kPageBytes), std::span<PageRef, kRefsPerPage>(refs));
      const uint64_t count = std::min<uint64_t>(refs.size(), pages - level.size());
      level.insert(level.end(), refs.begin(), refs.begin() + static_cast<std::ptrdiff_t>(count));
    }
    if (level.size() != pages) co_return fail(EILSEQ, "the volume table is not complete");
  }
  bytes.resize(superblock.table_bytes);
  co_return bytes;
}

}  // namespace

Task<Result<Superblock>> read_superblock(MetaIo& io, uint64_t base_bytes) {
  auto buffer = IoBuffer::allocate(kSuperblockSlots * kPageBytes);
  if (!buffer) co_return std::unexpected(buffer.error());
  if (base_bytes < kSuperblockSlots * kPageBytes) co_return fail(ENODATA, "there is no store on this device");
  // A device that stores nothing may leave the buffer as it is: with a superblock that was read before, perhaps.
  std::ranges::fill(buffer->bytes(), std::byte{0});
  if (auto read = co_await io.read(0, buffer->bytes()); !read) co_return std::unexpected(read.error());
  std::optional<Superblock> newest;
  Error worst{.code = ENODATA, .what = "there is no store on this device"};
  for (uint32_t slot = 0; slot < kSuperblockSlots; ++slot) {
    auto decoded = decode_superblock(PageView(buffer->bytes().data() + slot * kPageBytes, kPageBytes));
    if (!decoded) {
      if (decoded.error().code != ENODATA) worst = decoded.error();
    } else if (!newest || decoded->generation > newest->generation) {
      newest = std::move(*decoded);
    }
  }
  if (!newest) co_return std::unexpected(worst);
  if (newest->geometry.total_clusters > base_bytes / newest->geometry.cluster_bytes) {
    co_return fail(EILSEQ, "the store is larger than the device it is on");
  }
  co_return std::move(*newest);
}

Task<Result<Loaded>> load(const Superblock& superblock, MetaIo& io, ClusterTable& clusters, PagePlaces& places,
                          Maps& maps, VolumeTable& volumes) {
  Loaded loaded{.journal = {},
                .table_places = {},
                .name = superblock.name,
                .total_clusters = superblock.geometry.total_clusters,
                .damage = ""};
  auto table = co_await read_table(superblock, io, places, loaded.table_places);
  if (!table) co_return std::unexpected(table.error());
  auto entries = decode_table(*table);
  if (!entries) co_return std::unexpected(entries.error());

  volumes.set_next_id(superblock.next_volume);
  MapLoader loader(superblock, io, places, maps);
  for (TableEntry& entry : *entries) {
    const bool sound = entry.volume.size_bytes % superblock.geometry.cluster_bytes == 0 && entry.level <= kMaxLevel &&
                       (entry.root.page == kNoPage || can_be_metadata(entry.root, superblock.geometry));
    if (!sound) co_return fail(EILSEQ, "the volume table has a volume that cannot be");
    const uint32_t level = entry.level;
    const PageRef root = entry.root;
    auto volume = volumes.put(std::move(entry.volume));
    if (!volume) co_return std::unexpected(volume.error());
    if (root.page != kNoPage) loader.add(**volume, level, root);
  }
  if (auto read = co_await loader.run(); !read) co_return std::unexpected(read.error());
  loaded.damage = loader.damage();
  volumes.link_parents();

  Geometry geometry = superblock.geometry;
  RecordNumber number = superblock.first_record;
  uint32_t steps = 0;
  const auto apply = [&](const Record& record) -> Result<> {
    if (const auto* store = std::get_if<PutStoreRecord>(&record)) {
      if (store->total_clusters < geometry.total_clusters) return fail(EILSEQ, "the journal makes the store smaller");
      loaded.name = store->name;
      loaded.total_clusters = geometry.total_clusters = store->total_clusters;
      clusters.grow(store->total_clusters);
      ++number;
      return {};
    }
    auto applied = volumes.apply(record, geometry, number);
    if (++steps % 256 == 0) {
      while (clusters.settle(number, UINT32_MAX)) {
      }
    }
    ++number;
    return applied;
  };
  // Over pages that are missing it would make of old and new something that never was.
  if (loaded.damage.empty()) {
    auto position = co_await replay_journal(superblock, io, apply);
    if (!position) co_return std::unexpected(position.error());
    loaded.journal = *position;
  }
  for (const auto& [id, volume] : volumes.all()) volume->damaged = !loaded.damage.empty();
  co_return loaded;
}

}  // namespace sluice::lvol
