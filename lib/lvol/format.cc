#include "lib/lvol/format.h"

#include "lib/lvol/format_disk.h"

namespace sluice::lvol {

using namespace disk;

namespace {

constexpr char kSuperblockMagic[8] = {'S', 'L', 'U', 'I', 'C', 'E', 'L', 'V'};
constexpr uint32_t kVersion = 1;

struct DiskSuperblock {
  char magic[8];
  uint32_t version;
  uint32_t base_block_bytes;
  uint64_t generation;
  uint8_t uuid[16];
  uint64_t cluster_bytes;
  uint32_t total_clusters;
  uint32_t reserved_clusters;
  uint32_t journal_pages;
  uint32_t journal_crc;
  uint64_t journal_sequence;
  uint64_t first_record;
  uint64_t table_bytes;
  uint32_t next_volume;
  uint32_t table_index_pages;
  uint32_t name_bytes;
  uint32_t zero;
  char name[256];
  uint8_t zero_after_name[152];
  DiskRef table_index[kMaxTableIndex];
  uint8_t zero_after_index[508];
  uint32_t crc;  // of all before it
};
static_assert(sizeof(DiskSuperblock) == kPageBytes);
static_assert(offsetof(DiskSuperblock, generation) == 16);
static_assert(offsetof(DiskSuperblock, cluster_bytes) == 40);
static_assert(offsetof(DiskSuperblock, journal_sequence) == 64);
static_assert(offsetof(DiskSuperblock, next_volume) == 88);
static_assert(offsetof(DiskSuperblock, name) == 104);
static_assert(offsetof(DiskSuperblock, table_index) == 512);
static_assert(offsetof(DiskSuperblock, crc) == kPageBytes - 4);
static_assert(sizeof(DiskSuperblock::name) > kMaxNameBytes);

bool good_geometry(const Geometry& geometry) {
  if (!std::has_single_bit(geometry.cluster_bytes)) return false;
  if (geometry.cluster_bytes < kMinClusterBytes || geometry.cluster_bytes > kMaxClusterBytes) return false;
  if (geometry.journal_pages < kMinJournalPages) return false;
  const uint64_t used_pages = uint64_t{kSuperblockSlots} + geometry.journal_pages;
  if (geometry.reserved_clusters < kFirstDataCluster ||
      uint64_t{geometry.reserved_clusters} * geometry.pages_per_cluster() < used_pages) {
    return false;
  }
  return geometry.total_clusters > geometry.reserved_clusters;
}

uint64_t index_pages_for(uint64_t table_bytes) {
  const uint64_t per_index_page = kRefsPerPage * kPageBytes;
  return table_bytes / per_index_page + (table_bytes % per_index_page != 0 ? 1 : 0);
}

// The page may hold metadata: it is in the store, and behind superblocks and journal.
bool good_place(const Geometry& geometry, PageNumber page) {
  const uint64_t cluster = page / geometry.pages_per_cluster();
  return cluster >= geometry.reserved_clusters && cluster < geometry.total_clusters;
}

}  // namespace

uint32_t page_crc(PageView page) { return crc32c(page); }

void encode(const Superblock& superblock, PageSpan page) {
  CHECK(good_geometry(superblock.geometry));
  CHECK(good_name(superblock.name));
  CHECK(superblock.table_index.size() <= kMaxTableIndex);
  CHECK(superblock.table_index.size() == index_pages_for(superblock.table_bytes));
  DiskSuperblock disk{};
  std::memcpy(disk.magic, kSuperblockMagic, sizeof(disk.magic));
  disk.version = kVersion;
  disk.base_block_bytes = static_cast<uint32_t>(superblock.base_block_bytes);
  disk.generation = superblock.generation;
  copy_uuid(superblock.uuid, disk.uuid);
  disk.cluster_bytes = superblock.geometry.cluster_bytes;
  disk.total_clusters = superblock.geometry.total_clusters;
  disk.reserved_clusters = superblock.geometry.reserved_clusters;
  disk.journal_pages = superblock.geometry.journal_pages;
  disk.journal_crc = superblock.journal_crc;
  disk.journal_sequence = superblock.journal_sequence;
  disk.first_record = superblock.first_record;
  disk.table_bytes = superblock.table_bytes;
  disk.next_volume = superblock.next_volume;
  disk.table_index_pages = static_cast<uint32_t>(superblock.table_index.size());
  disk.name_bytes = static_cast<uint32_t>(superblock.name.size());
  superblock.name.copy(disk.name, sizeof(disk.name));
  for (size_t i = 0; i < superblock.table_index.size(); ++i) disk.table_index[i] = to_disk(superblock.table_index[i]);
  put(page.data(), disk);
  put(page.data() + offsetof(DiskSuperblock, crc), crc32c(page.first<offsetof(DiskSuperblock, crc)>()));
}

Result<Superblock> decode_superblock(PageView page) {
  const auto disk = get<DiskSuperblock>(page.data());
  if (std::memcmp(disk.magic, kSuperblockMagic, sizeof(disk.magic)) != 0) return fail(ENODATA, "not a superblock");
  if (disk.crc != crc32c(page.first<offsetof(DiskSuperblock, crc)>())) {
    return fail(EILSEQ, "the superblock's checksum is wrong");
  }
  if (disk.version != kVersion) return fail(ENOTSUP, "the superblock is of a version that this program does not know");

  Superblock superblock;
  superblock.generation = disk.generation;
  superblock.uuid = to_uuid(disk.uuid);
  superblock.geometry = {.cluster_bytes = disk.cluster_bytes,
                         .total_clusters = disk.total_clusters,
                         .reserved_clusters = disk.reserved_clusters,
                         .journal_pages = disk.journal_pages};
  superblock.base_block_bytes = disk.base_block_bytes;
  superblock.journal_sequence = disk.journal_sequence;
  superblock.journal_crc = disk.journal_crc;
  superblock.first_record = disk.first_record;
  superblock.table_bytes = disk.table_bytes;
  superblock.next_volume = disk.next_volume;
  if (!good_geometry(superblock.geometry)) return fail(EILSEQ, "the superblock's sizes make no sense");
  if (!std::has_single_bit(disk.base_block_bytes) || disk.base_block_bytes < 512 ||
      disk.base_block_bytes > kPageBytes) {
    return fail(EILSEQ, "the superblock's block size makes no sense");
  }
  if (disk.journal_sequence == 0 || disk.first_record == 0 || disk.next_volume == kNoVolume) {
    return fail(EILSEQ, "the superblock's numbers make no sense");
  }
  if (disk.name_bytes > kMaxNameBytes) return fail(EILSEQ, "the superblock's name is too long");
  superblock.name.assign(disk.name, disk.name_bytes);
  if (!good_name(superblock.name)) return fail(EILSEQ, "the superblock's name has a NUL in it");
  if (disk.table_index_pages > kMaxTableIndex || disk.table_index_pages != index_pages_for(disk.table_bytes)) {
    return fail(EILSEQ, "the superblock's volume table makes no sense");
  }
  for (uint32_t i = 0; i < disk.table_index_pages; ++i) {
    const PageRef ref = from_disk(disk.table_index[i]);
    if (!good_place(superblock.geometry, ref.page)) {
      return fail(EILSEQ, "the superblock's volume table is where it cannot be");
    }
    superblock.table_index.push_back(ref);
  }
  return superblock;
}

// --- Pages of maps ---

void encode(std::span<const PageRef, kRefsPerPage> refs, PageSpan page) {
  for (size_t i = 0; i < refs.size(); ++i) put(page.data() + i * sizeof(DiskRef), to_disk(refs[i]));
}

void decode(PageView page, std::span<PageRef, kRefsPerPage> refs) {
  for (size_t i = 0; i < refs.size(); ++i) refs[i] = from_disk(get<DiskRef>(page.data() + i * sizeof(DiskRef)));
}

void encode(std::span<const Entry, kFanOut> entries, PageSpan page) {
  for (size_t i = 0; i < entries.size(); ++i) put(page.data() + i * sizeof(DiskEntry), to_disk(entries[i]));
}

void decode(PageView page, std::span<Entry, kFanOut> entries) {
  for (size_t i = 0; i < entries.size(); ++i) {
    entries[i] = from_disk(get<DiskEntry>(page.data() + i * sizeof(DiskEntry)));
  }
}

}  // namespace sluice::lvol
