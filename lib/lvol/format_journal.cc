// The journal's pages and records.
#include "lib/lvol/format.h"
#include "lib/lvol/format_disk.h"

namespace sluice::lvol {

using namespace disk;

namespace {

constexpr uint32_t kJournalMagic = 0x4a56'4c53;  // "SLVJ"

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

// Records have no alignment.
enum class RecordType : uint8_t {
  kSetEntry = 1,
  kDropRange = 2,
  kPutVolume = 3,
  kDeleteVolume = 4,
  kPutStore = 5,
  kAllocateRange = 6,
};

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
static_assert(sizeof(DiskRecord) == kRecordHeadBytes && sizeof(DiskPutVolume) == sizeof(VolumeId));

template <typename... Fns>
struct Overloaded : Fns... {
  using Fns::operator()...;
};

// With its DiskRecord.
size_t disk_bytes(const Record& record) {
  return sizeof(DiskRecord) +
         std::visit(Overloaded{
                        [](const SetEntryRecord&) { return sizeof(DiskSetEntry); },
                        [](const DropRangeRecord&) { return sizeof(DiskDropRange); },
                        [](const AllocateRangeRecord&) { return sizeof(DiskAllocateRange); },
                        [](const PutVolumeRecord& put_volume) {
                          return sizeof(DiskPutVolume) + disk::disk_bytes(put_volume.volume);
                        },
                        [](const DeleteVolumeRecord&) { return sizeof(DiskDeleteVolume); },
                        [](const PutStoreRecord& put_store) { return sizeof(DiskPutStore) + put_store.name.size(); },
                    },
                    record);
}

bool good_names(const Record& record) {
  if (const auto* put_volume = std::get_if<PutVolumeRecord>(&record)) return disk::good_names(put_volume->volume);
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
  std::visit(
      Overloaded{
          [&](const SetEntryRecord& set) {
            writer.value(DiskSetEntry{.volume = set.volume, .index = set.index, .entry = to_disk(set.entry)});
          },
          [&](const DropRangeRecord& drop) {
            writer.value(
                DiskDropRange{.volume = drop.volume, .first = drop.first, .count = drop.count, .base = drop.base});
          },
          [&](const AllocateRangeRecord& allocate) {
            writer.value(DiskAllocateRange{
                .volume = allocate.volume, .first = allocate.first, .count = allocate.count, .own = allocate.own});
          },
          [&](const PutVolumeRecord& put_volume) {
            writer.value(DiskPutVolume{.map_of = put_volume.map_of});
            write(writer, put_volume.volume);
          },
          [&](const DeleteVolumeRecord& deleted) { writer.value(DiskDeleteVolume{.volume = deleted.volume}); },
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

}  // namespace

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
