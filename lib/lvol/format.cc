#include "lib/lvol/format.h"

#include <isa-l/crc.h>

#include <bit>
#include <cstring>
#include <string_view>
#include <type_traits>

#include "lib/base/check.h"

namespace sluice::lvol {
namespace {

static_assert(std::endian::native == std::endian::little, "the structures below are little-endian, as the disk is");

constexpr char kSuperblockMagic[8] = {'S', 'L', 'U', 'I', 'C', 'E', 'L', 'V'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kJournalMagic = 0x4a56'4c53;  // "SLVJ"

// --- The disk, byte by byte: docs/format-lvol.md. Fields named `zero` are written as zeros and not looked at. ---

struct DiskRef {
  uint64_t page;
  uint32_t crc;
  uint32_t zero;
};
static_assert(sizeof(DiskRef) == 16);
static_assert(sizeof(DiskRef) * kRefsPerPage == kPageBytes);

struct DiskEntry {
  uint32_t own;
  uint32_t base;
  uint64_t valid;
};
static_assert(sizeof(DiskEntry) == 16);
static_assert(sizeof(DiskEntry) * kFanOut == kPageBytes);

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

struct DiskJournalHeader {
  uint32_t crc;  // of all behind it, to the end of the page
  uint32_t magic;
  uint64_t sequence;
  uint64_t durable_sequence;
  uint64_t first_record;
  uint8_t store[16];
  uint32_t previous_crc;
  uint16_t records;
  uint16_t used_bytes;
  uint64_t opening;
};
static_assert(sizeof(DiskJournalHeader) == kJournalHeaderBytes);
static_assert(offsetof(DiskJournalHeader, sequence) == 8);
static_assert(offsetof(DiskJournalHeader, store) == 32);
static_assert(offsetof(DiskJournalHeader, opening) == 56);

// What follows has no alignment: it lies behind names.
struct [[gnu::packed]] DiskVolume {
  uint32_t id;
  uint32_t parent;
  uint8_t uuid[16];
  uint64_t size_bytes;
  uint64_t created_s;
  uint8_t flags;
  uint8_t name_bytes;
  uint8_t origin_bytes;
  uint8_t zero;
  uint16_t xattrs;
  uint16_t zero_too;
  // char name[name_bytes], origin[origin_bytes]; then xattrs times: DiskXattr, char key[key_bytes], value[value_bytes]
};
static_assert(sizeof(DiskVolume) == 48);
static_assert(offsetof(DiskVolume, flags) == 40);

constexpr uint8_t kThin = 1;
constexpr uint8_t kSnapshot = 2;
constexpr uint8_t kReadonly = 4;
constexpr uint8_t kFlags = kThin | kSnapshot | kReadonly;

struct [[gnu::packed]] DiskXattr {
  uint8_t key_bytes;
  uint8_t zero;
  uint16_t value_bytes;
};
static_assert(sizeof(DiskXattr) == 4);

struct [[gnu::packed]] DiskTableEntry {
  uint32_t entry_bytes;  // of all of it, with the volume that follows
  uint32_t level;
  DiskRef root;
};
static_assert(sizeof(DiskTableEntry) == 24);

enum class RecordType : uint8_t { kSetEntry = 1, kDropRange = 2, kPutVolume = 3, kDeleteVolume = 4, kPutStore = 5, kAllocateRange = 6 };

struct [[gnu::packed]] DiskRecord {
  RecordType type;
  uint8_t zero;
  uint16_t record_bytes;  // of all of it, with these four
};
static_assert(sizeof(DiskRecord) == 4);

struct [[gnu::packed]] DiskSetEntry {
  uint32_t volume;
  uint32_t index;
  DiskEntry entry;
};
static_assert(sizeof(DiskSetEntry) == 24);

struct [[gnu::packed]] DiskDropRange {
  uint32_t volume;
  uint32_t first;
  uint32_t count;
  uint32_t base;
};
static_assert(sizeof(DiskDropRange) == 16);

struct [[gnu::packed]] DiskAllocateRange {
  uint32_t volume;
  uint32_t first;
  uint32_t count;
  uint32_t own;
};
static_assert(sizeof(DiskAllocateRange) == 16);

struct [[gnu::packed]] DiskPutVolume {
  uint32_t map_of;
  // DiskVolume
};
static_assert(sizeof(DiskPutVolume) == 4);

struct [[gnu::packed]] DiskDeleteVolume {
  uint32_t volume;
};
static_assert(sizeof(DiskDeleteVolume) == 4);

struct [[gnu::packed]] DiskPutStore {
  uint32_t total_clusters;
  uint8_t name_bytes;
  uint8_t zero[3];
  // char name[name_bytes]
};
static_assert(sizeof(DiskPutStore) == 8);

// 2^32 of the largest clusters: what an index of 32 bits can name.
constexpr uint64_t kMaxVolumeBytes = kMaxClusterBytes << 32;

// CRC-32C. isa-l leaves it to its caller to invert the register before and after.
uint32_t crc32c(std::span<const std::byte> bytes) {
  auto* const first = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(bytes.data()));
  return ~crc32_iscsi(first, static_cast<int>(bytes.size()), ~0U);
}

template <typename T>
void put(std::byte* to, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::memcpy(to, &value, sizeof(T));
}

template <typename T>
T get(const std::byte* from) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

DiskRef to_disk(const PageRef& ref) { return {.page = ref.page, .crc = ref.crc, .zero = 0}; }
PageRef from_disk(const DiskRef& ref) { return {.page = ref.page, .crc = ref.crc}; }
DiskEntry to_disk(const Entry& entry) { return {.own = entry.own, .base = entry.base, .valid = entry.valid}; }
Entry from_disk(const DiskEntry& entry) { return {.own = entry.own, .base = entry.base, .valid = entry.valid}; }

void copy_uuid(const Uuid& uuid, uint8_t (&to)[16]) { std::memcpy(to, uuid.bytes.data(), sizeof(to)); }
Uuid to_uuid(const uint8_t (&from)[16]) {
  Uuid uuid;
  std::memcpy(uuid.bytes.data(), from, sizeof(from));
  return uuid;
}

bool good_name(std::string_view name) { return name.size() <= kMaxNameBytes && !name.contains('\0'); }

// Writes one thing behind the other. The caller has made sure that there is room.
class Writer {
 public:
  explicit Writer(std::span<std::byte> room) : room_(room) {}

  template <typename T>
  void value(const T& value) {
    put(take(sizeof(T)), value);
  }
  void text(std::string_view text) {
    std::byte* const to = take(text.size());
    if (!text.empty()) std::memcpy(to, text.data(), text.size());
  }

 private:
  std::byte* take(size_t size) {
    CHECK(size <= room_.size());
    std::byte* const taken = room_.data();
    room_ = room_.subspan(size);
    return taken;
  }

  std::span<std::byte> room_;
};

// Reads one thing behind the other. False: there is not as much, or it is not what it has to be.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  bool at_end() const { return bytes_.empty(); }

  template <typename T>
  [[nodiscard]] bool value(T& value) {
    if (bytes_.size() < sizeof(T)) return false;
    value = get<T>(bytes_.data());
    bytes_ = bytes_.subspan(sizeof(T));
    return true;
  }
  [[nodiscard]] bool bytes(size_t size, std::span<const std::byte>& taken) {
    if (bytes_.size() < size) return false;
    taken = bytes_.first(size);
    bytes_ = bytes_.subspan(size);
    return true;
  }
  [[nodiscard]] bool text(size_t size, std::string& text) {
    std::span<const std::byte> taken;
    if (!bytes(size, taken)) return false;
    text.assign(reinterpret_cast<const char*>(taken.data()), taken.size());
    return true;
  }
  [[nodiscard]] bool name(size_t size, std::string& name) { return text(size, name) && good_name(name); }

 private:
  std::span<const std::byte> bytes_;
};

// --- Volumes ---

size_t disk_bytes(const VolumeRecord& volume) {
  size_t bytes = sizeof(DiskVolume) + volume.name.size() + volume.external_origin.size();
  for (const auto& [key, value] : volume.xattrs) bytes += sizeof(DiskXattr) + key.size() + value.size();
  return bytes;
}

bool good_names(const VolumeRecord& volume) {
  if (!good_name(volume.name) || !good_name(volume.external_origin)) return false;
  for (const auto& [key, value] : volume.xattrs) {
    if (key.empty() || !good_name(key)) return false;
  }
  return true;
}

void write(Writer& writer, const VolumeRecord& volume) {
  DiskVolume disk{};
  disk.id = volume.id;
  disk.parent = volume.parent;
  copy_uuid(volume.uuid, disk.uuid);
  disk.size_bytes = volume.size_bytes;
  disk.created_s = volume.created_s;
  disk.flags = static_cast<uint8_t>((volume.thin ? kThin : 0) | (volume.snapshot ? kSnapshot : 0) |
                                    (volume.readonly ? kReadonly : 0));
  disk.name_bytes = static_cast<uint8_t>(volume.name.size());
  disk.origin_bytes = static_cast<uint8_t>(volume.external_origin.size());
  disk.xattrs = static_cast<uint16_t>(volume.xattrs.size());
  writer.value(disk);
  writer.text(volume.name);
  writer.text(volume.external_origin);
  for (const auto& [key, value] : volume.xattrs) {
    writer.value(DiskXattr{.key_bytes = static_cast<uint8_t>(key.size()),
                           .zero = 0,
                           .value_bytes = static_cast<uint16_t>(value.size())});
    writer.text(key);
    writer.text(value);
  }
}

[[nodiscard]] bool read(Reader& reader, VolumeRecord& volume) {
  DiskVolume disk;
  if (!reader.value(disk)) return false;
  if (disk.id == kNoVolume || disk.parent == disk.id || (disk.flags & ~kFlags) != 0) return false;
  if (disk.size_bytes % kMinClusterBytes != 0 || disk.size_bytes > kMaxVolumeBytes) return false;
  volume.id = disk.id;
  volume.parent = disk.parent;
  volume.uuid = to_uuid(disk.uuid);
  volume.size_bytes = disk.size_bytes;
  volume.created_s = disk.created_s;
  volume.thin = (disk.flags & kThin) != 0;
  volume.snapshot = (disk.flags & kSnapshot) != 0;
  volume.readonly = (disk.flags & kReadonly) != 0;
  if (!reader.name(disk.name_bytes, volume.name)) return false;
  if (!reader.name(disk.origin_bytes, volume.external_origin)) return false;
  for (uint32_t i = 0; i < disk.xattrs; ++i) {
    DiskXattr xattr;
    std::string key;
    std::string value;
    if (!reader.value(xattr) || xattr.key_bytes == 0) return false;
    if (!reader.name(xattr.key_bytes, key) || !reader.text(xattr.value_bytes, value)) return false;
    // In the order of their keys, as they were written; so none is there twice.
    if (!volume.xattrs.empty() && volume.xattrs.rbegin()->first >= key) return false;
    volume.xattrs.emplace_hint(volume.xattrs.end(), std::move(key), std::move(value));
  }
  return true;
}

// --- Records ---

template <typename... Fns>
struct Overloaded : Fns... {
  using Fns::operator()...;
};

// With its DiskRecord.
size_t disk_bytes(const Record& record) {
  return sizeof(DiskRecord) + std::visit(Overloaded{
                                             [](const SetEntryRecord&) { return sizeof(DiskSetEntry); },
                                             [](const DropRangeRecord&) { return sizeof(DiskDropRange); },
                                             [](const AllocateRangeRecord&) { return sizeof(DiskAllocateRange); },
                                             [](const PutVolumeRecord& put_volume) {
                                               return sizeof(DiskPutVolume) + disk_bytes(put_volume.volume);
                                             },
                                             [](const DeleteVolumeRecord&) { return sizeof(DiskDeleteVolume); },
                                             [](const PutStoreRecord& put_store) {
                                               return sizeof(DiskPutStore) + put_store.name.size();
                                             },
                                         },
                                         record);
}

bool good_names(const Record& record) {
  if (const auto* put_volume = std::get_if<PutVolumeRecord>(&record)) return good_names(put_volume->volume);
  if (const auto* put_store = std::get_if<PutStoreRecord>(&record)) return good_name(put_store->name);
  return true;
}

RecordType type_of(const Record& record) {
  return std::visit(Overloaded{
                        [](const SetEntryRecord&) { return RecordType::kSetEntry; },
                        [](const DropRangeRecord&) { return RecordType::kDropRange; },
                        [](const AllocateRangeRecord&) { return RecordType::kAllocateRange; },
                        [](const PutVolumeRecord&) { return RecordType::kPutVolume; },
                        [](const DeleteVolumeRecord&) { return RecordType::kDeleteVolume; },
                        [](const PutStoreRecord&) { return RecordType::kPutStore; },
                    },
                    record);
}

void write(Writer& writer, const Record& record) {
  std::visit(Overloaded{
                 [&](const SetEntryRecord& set) {
                   writer.value(
                       DiskSetEntry{.volume = set.volume, .index = set.index, .entry = to_disk(set.entry)});
                 },
                 [&](const DropRangeRecord& drop) {
                   writer.value(DiskDropRange{
                       .volume = drop.volume, .first = drop.first, .count = drop.count, .base = drop.base});
                 },
                 [&](const AllocateRangeRecord& allocate) {
                   writer.value(DiskAllocateRange{
                       .volume = allocate.volume, .first = allocate.first, .count = allocate.count, .own = allocate.own});
                 },
                 [&](const PutVolumeRecord& put_volume) {
                   writer.value(DiskPutVolume{.map_of = put_volume.map_of});
                   write(writer, put_volume.volume);
                 },
                 [&](const DeleteVolumeRecord& deleted) {
                   writer.value(DiskDeleteVolume{.volume = deleted.volume});
                 },
                 [&](const PutStoreRecord& put_store) {
                   writer.value(DiskPutStore{.total_clusters = put_store.total_clusters,
                                             .name_bytes = static_cast<uint8_t>(put_store.name.size()),
                                             .zero = {}});
                   writer.text(put_store.name);
                 },
             },
             record);
}

[[nodiscard]] bool read(Reader& reader, SetEntryRecord& set) {
  DiskSetEntry disk;
  if (!reader.value(disk) || disk.volume == kNoVolume) return false;
  set = {.volume = disk.volume, .index = disk.index, .entry = from_disk(disk.entry)};
  return true;
}

[[nodiscard]] bool read(Reader& reader, DropRangeRecord& drop) {
  DiskDropRange disk;
  if (!reader.value(disk) || disk.volume == kNoVolume) return false;
  // Its last index is one of 32 bits too.
  if (disk.count == 0 || disk.count - 1 > UINT32_MAX - disk.first) return false;
  if (disk.base != kBaseOrigin && disk.base != kBaseZeros) return false;
  drop = {.volume = disk.volume, .first = disk.first, .count = disk.count, .base = disk.base};
  return true;
}

[[nodiscard]] bool read(Reader& reader, AllocateRangeRecord& allocate) {
  DiskAllocateRange disk;
  if (!reader.value(disk) || disk.volume == kNoVolume) return false;
  if (disk.count == 0 || disk.count - 1 > UINT32_MAX - disk.first) return false;
  if (disk.own < kFirstDataCluster || disk.count - 1 > UINT32_MAX - disk.own) return false;
  allocate = {.volume = disk.volume, .first = disk.first, .count = disk.count, .own = disk.own};
  return true;
}

[[nodiscard]] bool read(Reader& reader, PutVolumeRecord& put_volume) {
  DiskPutVolume disk;
  if (!reader.value(disk) || !read(reader, put_volume.volume)) return false;
  put_volume.map_of = disk.map_of;
  return put_volume.map_of != put_volume.volume.id;
}

[[nodiscard]] bool read(Reader& reader, DeleteVolumeRecord& deleted) {
  DiskDeleteVolume disk;
  if (!reader.value(disk) || disk.volume == kNoVolume) return false;
  deleted.volume = disk.volume;
  return true;
}

[[nodiscard]] bool read(Reader& reader, PutStoreRecord& put_store) {
  DiskPutStore disk;
  if (!reader.value(disk) || disk.total_clusters <= kFirstDataCluster) return false;
  put_store.total_clusters = disk.total_clusters;
  return reader.name(disk.name_bytes, put_store.name);
}

// A record is all of its bytes.
template <typename T>
[[nodiscard]] bool read_whole(std::span<const std::byte> body, std::vector<Record>& records) {
  Reader reader(body);
  T record;
  if (!read(reader, record) || !reader.at_end()) return false;
  records.emplace_back(std::move(record));
  return true;
}

[[nodiscard]] bool read_record(Reader& reader, std::vector<Record>& records) {
  DiskRecord disk;
  std::span<const std::byte> body;
  if (!reader.value(disk) || disk.record_bytes < sizeof(DiskRecord)) return false;
  if (!reader.bytes(disk.record_bytes - sizeof(DiskRecord), body)) return false;
  switch (disk.type) {
    case RecordType::kSetEntry:
      return read_whole<SetEntryRecord>(body, records);
    case RecordType::kDropRange:
      return read_whole<DropRangeRecord>(body, records);
    case RecordType::kAllocateRange:
      return read_whole<AllocateRangeRecord>(body, records);
    case RecordType::kPutVolume:
      return read_whole<PutVolumeRecord>(body, records);
    case RecordType::kDeleteVolume:
      return read_whole<DeleteVolumeRecord>(body, records);
    case RecordType::kPutStore:
      return read_whole<PutStoreRecord>(body, records);
  }
  return false;
}

// --- Superblock ---

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

// --- Volume table ---

void encode(const TableEntry& entry, std::vector<std::byte>& table) {
  CHECK(good_names(entry.volume));
  const size_t volume_bytes = disk_bytes(entry.volume);
  CHECK(sizeof(DiskRecord) + sizeof(DiskPutVolume) + volume_bytes <= kMaxRecordBytes);
  const size_t bytes = sizeof(DiskTableEntry) + volume_bytes;
  table.resize(table.size() + bytes);
  Writer writer(std::span(table).last(bytes));
  writer.value(DiskTableEntry{
      .entry_bytes = static_cast<uint32_t>(bytes), .level = entry.level, .root = to_disk(entry.root)});
  write(writer, entry.volume);
}

Result<std::vector<TableEntry>> decode_table(std::span<const std::byte> table) {
  std::vector<TableEntry> entries;
  for (Reader reader(table); !reader.at_end();) {
    DiskTableEntry disk;
    std::span<const std::byte> body;
    if (!reader.value(disk) || disk.entry_bytes < sizeof(DiskTableEntry) ||
        !reader.bytes(disk.entry_bytes - sizeof(DiskTableEntry), body)) {
      return fail(EILSEQ, "the volume table ends within an entry");
    }
    Reader inner(body);
    TableEntry entry;
    if (disk.level > kMaxLevel || !read(inner, entry.volume) || !inner.at_end()) {
      return fail(EILSEQ, "an entry of the volume table makes no sense");
    }
    entry.level = disk.level;
    entry.root = from_disk(disk.root);
    entries.push_back(std::move(entry));
  }
  return entries;
}

// --- Journal ---

bool fits(const Record& record) { return good_names(record) && disk_bytes(record) <= kMaxRecordBytes; }

bool append(const Record& record, PageSpan page, JournalHeader& header) {
  const size_t bytes = disk_bytes(record);
  CHECK(bytes <= kMaxRecordBytes);
  CHECK(good_names(record));
  if (bytes > kMaxRecordBytes - header.used_bytes) return false;
  Writer writer(page.subspan(kJournalHeaderBytes + header.used_bytes, bytes));
  writer.value(DiskRecord{.type = type_of(record), .zero = 0, .record_bytes = static_cast<uint16_t>(bytes)});
  write(writer, record);
  header.used_bytes = static_cast<uint16_t>(header.used_bytes + bytes);
  ++header.records;
  return true;
}

void seal(JournalHeader& header, PageSpan page) {
  DiskJournalHeader disk{};
  disk.magic = kJournalMagic;
  disk.sequence = header.sequence;
  disk.durable_sequence = header.durable_sequence;
  disk.first_record = header.first_record;
  copy_uuid(header.store, disk.store);
  disk.previous_crc = header.previous_crc;
  disk.records = header.records;
  disk.used_bytes = header.used_bytes;
  disk.opening = header.opening;
  put(page.data(), disk);
  header.crc = crc32c(page.subspan<sizeof(disk.crc)>());
  put(page.data(), header.crc);
}

Result<JournalHeader> decode_journal_header(PageView page, const Uuid& store) {
  const auto disk = get<DiskJournalHeader>(page.data());
  // The cheap looks first: most pages of a ring that is new are not ours.
  if (disk.magic != kJournalMagic || to_uuid(disk.store) != store) {
    return fail(EILSEQ, "not a page of this store's journal");
  }
  if (disk.crc != crc32c(page.subspan<sizeof(disk.crc)>())) {
    return fail(EILSEQ, "the journal page's checksum is wrong");
  }
  if (disk.sequence == 0 || disk.durable_sequence >= disk.sequence || disk.first_record == 0 || disk.records == 0 ||
      disk.used_bytes > kMaxRecordBytes) {
    return fail(EILSEQ, "the journal page's header makes no sense");
  }
  return JournalHeader{.store = store,
                       .sequence = disk.sequence,
                       .durable_sequence = disk.durable_sequence,
                       .first_record = disk.first_record,
                       .opening = disk.opening,
                       .previous_crc = disk.previous_crc,
                       .crc = disk.crc,
                       .records = disk.records,
                       .used_bytes = disk.used_bytes};
}

Result<std::vector<Record>> decode_records(PageView page, const JournalHeader& header) {
  CHECK(header.used_bytes <= kMaxRecordBytes);
  std::vector<Record> records;
  Reader reader(page.subspan(kJournalHeaderBytes, header.used_bytes));
  for (uint32_t i = 0; i < header.records; ++i) {
    if (!read_record(reader, records)) return fail(EILSEQ, "a record of the journal makes no sense");
  }
  if (!reader.at_end()) return fail(EILSEQ, "a journal page has more in it than its records");
  return records;
}

}  // namespace sluice::lvol
