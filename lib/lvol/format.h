// What a store's metadata look like on disk, and nothing else: bytes to checked values and back. docs/format-lvol.md
// describes it. Bytes read are never believed: whatever is wrong with them becomes an Error (EILSEQ: not what we
// wrote; ENOTSUP: of a later version).
//
// Thread: any. Ownership: values.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "lib/base/result.h"
#include "lib/base/uuid.h"
#include "lib/lvol/layout.h"

namespace sluice::lvol {

using Page = std::array<std::byte, kPageBytes>;
// kPageBytes of it.
using PageView = std::span<const std::byte, kPageBytes>;
using PageSpan = std::span<std::byte, kPageBytes>;

inline constexpr size_t kMaxNameBytes = 255;

uint32_t page_crc(PageView page);

// --- Superblock ---

struct Superblock {
  uint64_t generation = 0;  // grows with each one written; the slot is its last bit
  Uuid uuid;
  std::string name;
  Geometry geometry;
  uint64_t base_block_bytes = 512;
  // Where replay begins: the sequence number of the first journal page to read, the CRC of the page before it in
  // sequence, and the number of its first record.
  uint64_t journal_sequence = 1;
  uint32_t journal_crc = 0;
  RecordNumber first_record = 1;
  // The volume table: this many bytes in pages named by index pages, in order.
  uint64_t table_bytes = 0;
  VolumeId next_volume = 1;
  std::vector<PageRef> table_index;  // kMaxTableIndex at most

  bool operator==(const Superblock&) const = default;
};
inline constexpr uint32_t kMaxTableIndex = 192;
inline constexpr uint32_t kRefsPerPage = kFanOut;

// The smallest ring in which the journal can keep pages in reserve.
inline constexpr uint32_t kMinJournalPages = 8;

// Requires: a geometry that decode_superblock() would take, a name of at most kMaxNameBytes (checked).
void encode(const Superblock& superblock, PageSpan page);
// Errors: ENODATA: it is not one of ours; EILSEQ: damaged; ENOTSUP: a later version.
Result<Superblock> decode_superblock(PageView page);

// --- Pages of maps, and of the table's index ---

// 256 references, 16 bytes each; kNoPage: none.
void encode(std::span<const PageRef, kRefsPerPage> refs, PageSpan page);
void decode(PageView page, std::span<PageRef, kRefsPerPage> refs);
// 256 entries, 16 bytes each.
void encode(std::span<const Entry, kFanOut> entries, PageSpan page);
void decode(PageView page, std::span<Entry, kFanOut> entries);

// --- Volumes ---

// All of a volume but its map.
struct VolumeRecord {
  VolumeId id = kNoVolume;
  Uuid uuid;
  std::string name;
  uint64_t size_bytes = 0;  // a multiple of the cluster size
  bool thin = true;
  bool snapshot = false;        // read-only for good
  bool readonly = false;        // by bdev_lvol_set_read_only
  VolumeId parent = kNoVolume;  // the snapshot it was made from, for display only
  std::string external_origin;  // the bdev it stands on, by name; empty: zeros
  uint64_t created_s = 0;       // since 1970
  std::map<std::string, std::string> xattrs{};

  bool operator==(const VolumeRecord&) const = default;
};

// An entry of the volume table.
struct TableEntry {
  VolumeRecord volume;
  uint32_t level = 0;  // of the root
  PageRef root;        // kNoPage: nothing is mapped

  bool operator==(const TableEntry&) const = default;
};
// Appends it to the table's bytes. Requires: fits(PutVolumeRecord{entry.volume}) (checked).
void encode(const TableEntry& entry, std::vector<std::byte>& table);
// All of them. Errors: EILSEQ.
Result<std::vector<TableEntry>> decode_table(std::span<const std::byte> table);

// --- Journal ---

// Volume `volume`: cluster `index` is `entry` from here on.
struct SetEntryRecord {
  VolumeId volume = kNoVolume;
  uint32_t index = 0;
  Entry entry;
  bool operator==(const SetEntryRecord&) const = default;
};
// Clusters first to first + count - 1 hold nothing any more: their entries are {kNoCluster, base, 0}.
struct DropRangeRecord {
  VolumeId volume = kNoVolume;
  uint32_t first = 0;
  uint32_t count = 0;
  ClusterIndex base = kBaseOrigin;  // or kBaseZeros
  bool operator==(const DropRangeRecord&) const = default;
};
// Clusters first to first + count - 1 get clusters own, own + 1, ... of the store: {own + i, kBaseOrigin, 0}.
struct AllocateRangeRecord {
  VolumeId volume = kNoVolume;
  uint32_t first = 0;
  uint32_t count = 0;
  ClusterIndex own = kNoCluster;
  bool operator==(const AllocateRangeRecord&) const = default;
};
// The volume is as described from here on. If there was none of this id it is new, with the map that `map_of` has at
// this point, or with an empty one.
struct PutVolumeRecord {
  VolumeRecord volume;
  VolumeId map_of = kNoVolume;
  bool operator==(const PutVolumeRecord&) const = default;
};
struct DeleteVolumeRecord {
  VolumeId volume = kNoVolume;
  bool operator==(const DeleteVolumeRecord&) const = default;
};
// The store's own name and size.
struct PutStoreRecord {
  std::string name;
  uint32_t total_clusters = 0;
  bool operator==(const PutStoreRecord&) const = default;
};
using Record = std::variant<SetEntryRecord, DropRangeRecord, PutVolumeRecord, DeleteVolumeRecord, PutStoreRecord,
                            AllocateRangeRecord>;

// What a journal page says of itself.
struct JournalHeader {
  Uuid store;
  uint64_t sequence = 0;          // of pages, from 1; the page lies at (sequence - 1) modulo the journal's pages
  uint64_t durable_sequence = 0;  // this page and all before it were durable when this one was written; 0: none
  RecordNumber first_record = 0;  // the number of its first record
  uint64_t opening = 0;           // random, another one each time the store is opened
  uint32_t previous_crc = 0;      // `crc` of the page before it in sequence
  uint32_t crc = 0;               // of all the rest of this page: seal() and decode_journal_header() set it
  uint16_t records = 0;
  uint16_t used_bytes = 0;  // of records

  bool operator==(const JournalHeader&) const = default;
};
inline constexpr size_t kJournalHeaderBytes = 64;
inline constexpr size_t kMaxRecordBytes = kPageBytes - kJournalHeaderBytes;

// Encodes the record behind the `used_bytes` of a page that is being filled, which is zero from there on; false if it
// does not fit there. Any record that fits() has found good fits into an empty page. Requires: fits() (checked).
[[nodiscard]] bool append(const Record& record, PageSpan page, JournalHeader& header);
// Whether the record can be written: its names are of at most kMaxNameBytes and without NUL, the keys of its xattrs
// too and not empty, and all of it is small enough for a page.
bool fits(const Record& record);
// Completes a page that append() has filled: its header and CRC, which it also puts into `header`.
void seal(JournalHeader& header, PageSpan page);
// Errors: EILSEQ: it is not a whole page of this store's journal.
Result<JournalHeader> decode_journal_header(PageView page, const Uuid& store);
// The records of a page whose header has been decoded. What they say is checked as far as it can be without knowing the
// store: entries, indexes and ids of volumes are not compared with anything. Errors: EILSEQ.
Result<std::vector<Record>> decode_records(PageView page, const JournalHeader& header);

}  // namespace sluice::lvol
