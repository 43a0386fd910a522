#include "lib/lvol/format.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>

namespace sluice::lvol {
namespace {

constexpr Uuid kStoreUuid{{0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0x4c, 0xfe, 0x8f, 1, 2, 3, 4, 5, 6, 7}};

Superblock example_superblock() {
  return {.generation = 6,
          .uuid = kStoreUuid,
          .name = "fast",
          .geometry = {.cluster_bytes = 64U << 10, .total_clusters = 1000, .reserved_clusters = 3, .journal_pages = 40},
          .base_block_bytes = 4096,
          .journal_sequence = 77,
          .journal_crc = 0x1234'5678,
          .first_record = 901,
          .table_bytes = 5000,
          .next_volume = 8,
          .table_index = {{.page = 99, .crc = 0x8765'4321}}};
}

VolumeRecord example_volume(VolumeId id = 7) {
  return {.id = id,
          .uuid = Uuid{{9, 8, 7}},
          .name = "disk of vm " + std::to_string(id),
          .size_bytes = 10U << 20,
          .thin = false,
          .snapshot = true,
          .readonly = true,
          .parent = 3,
          .external_origin = "image",
          .created_s = 1'700'000'000,
          .xattrs = {{"colour", "red"}, {"empty", ""}, {"nul", std::string("a\0b", 3)}}};
}

std::vector<Record> example_records() {
  VolumeRecord plain;
  plain.id = 1;
  return {
      SetEntryRecord{.volume = 7, .index = 0xffff'ffff, .entry = {.own = 5, .base = 1, .valid = 0x8000'0000'0000'0001}},
      DropRangeRecord{.volume = 7, .first = 0xffff'fffe, .count = 2, .base = kBaseZeros},
      AllocateRangeRecord{.volume = 7, .first = 0xffff'fffe, .count = 2, .own = 9},
      PutVolumeRecord{.volume = example_volume(), .map_of = 3},
      PutVolumeRecord{.volume = plain},
      DeleteVolumeRecord{.volume = 6},
      PutStoreRecord{.name = "", .total_clusters = 4},
      PutStoreRecord{.name = std::string(kMaxNameBytes, 'n'), .total_clusters = 0xffff'ffff}};
}

JournalHeader example_header() {
  return {.store = kStoreUuid,
          .sequence = 12,
          .durable_sequence = 9,
          .first_record = 100,
          .opening = 0x1122'3344'5566'7788,
          .previous_crc = 0xabcd'ef01};
}

// A whole page of the journal with these records.
Page journal_page(const std::vector<Record>& records, JournalHeader& header) {
  Page page{};
  for (const Record& record : records) EXPECT_TRUE(append(record, page, header));
  seal(header, page);
  return page;
}

Page encoded(const Superblock& superblock) {
  Page page;
  page.fill(std::byte{0xaa});
  encode(superblock, page);
  return page;
}

// The checksum as its definition has it, bit by bit.
uint32_t slow_crc(std::span<const std::byte> bytes) {
  uint32_t crc = ~0U;
  for (const std::byte byte : bytes) {
    crc ^= static_cast<uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ ((crc & 1U) != 0 ? 0x82f6'3b78U : 0);
  }
  return ~crc;
}

template <typename T>
void poke(std::span<std::byte> bytes, size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof(value));
}

// Changes a field of a superblock, makes its checksum right again, and tells how that is taken.
template <typename T>
int code_with(size_t offset, T value) {
  Page page = encoded(example_superblock());
  poke(page, offset, value);
  poke(page, kPageBytes - 4, slow_crc(std::span(page).first(kPageBytes - 4)));
  const auto decoded = decode_superblock(page);
  return decoded ? 0 : decoded.error().code;
}

// The same with a field of a journal page's header.
template <typename T>
int header_code_with(size_t offset, T value) {
  JournalHeader header = example_header();
  Page page = journal_page({DeleteVolumeRecord{.volume = 1}}, header);
  poke(page, offset, value);
  poke(page, 0, slow_crc(std::span(page).subspan(4)));
  const auto decoded = decode_journal_header(page, kStoreUuid);
  return decoded ? 0 : decoded.error().code;
}

// Whether a page whose records are these bytes is taken.
bool taken(std::vector<uint8_t> bytes, uint16_t records = 1) {
  Page page{};
  std::memcpy(page.data() + kJournalHeaderBytes, bytes.data(), bytes.size());
  JournalHeader header = example_header();
  header.records = records;
  header.used_bytes = static_cast<uint16_t>(bytes.size());
  return decode_records(page, header).has_value();
}

// The bytes of one record.
std::vector<uint8_t> bytes_of(const Record& record) {
  JournalHeader header = example_header();
  Page page{};
  EXPECT_TRUE(append(record, page, header));
  const auto* first = reinterpret_cast<const uint8_t*>(page.data()) + kJournalHeaderBytes;
  return {first, first + header.used_bytes};
}

std::vector<uint8_t> with(std::vector<uint8_t> bytes, size_t offset, std::vector<uint8_t> values) {
  std::ranges::copy(values, bytes.begin() + static_cast<ptrdiff_t>(offset));
  return bytes;
}

TEST(LvolFormat, ChecksumIsCrc32c) {
  Page page{};
  EXPECT_EQ(page_crc(page), slow_crc(page));
  // RFC 3720, B.4: 32 bytes of zeros.
  EXPECT_EQ(slow_crc(std::span(page).first(32)), 0x8a91'36aaU);
  std::mt19937_64 random(1);
  for (std::byte& byte : page) byte = static_cast<std::byte>(random());
  EXPECT_EQ(page_crc(page), slow_crc(page));
}

// --- Superblock ---

TEST(LvolFormat, SuperblockComesBack) {
  Superblock superblock = example_superblock();
  EXPECT_EQ(decode_superblock(encoded(superblock)), superblock);

  superblock.name = std::string(kMaxNameBytes, 'x');
  superblock.table_bytes = uint64_t{kMaxTableIndex} * kRefsPerPage * kPageBytes;
  superblock.table_index.clear();
  for (uint32_t i = 0; i < kMaxTableIndex; ++i) superblock.table_index.push_back({.page = 1000 + i, .crc = ~i});
  EXPECT_EQ(decode_superblock(encoded(superblock)), superblock);

  superblock.name = "";
  superblock.table_bytes = 0;
  superblock.table_index.clear();
  EXPECT_EQ(decode_superblock(encoded(superblock)), superblock);
}

TEST(LvolFormat, EachFlippedBitOfASuperblockIsFound) {
  Page page = encoded(example_superblock());
  for (size_t bit = 0; bit < kPageBytes * 8; ++bit) {
    page[bit / 8] ^= std::byte{1} << bit % 8;
    const auto decoded = decode_superblock(page);
    ASSERT_FALSE(decoded) << "bit " << bit;
    EXPECT_EQ(decoded.error().code, bit < 64 ? ENODATA : EILSEQ);
    page[bit / 8] ^= std::byte{1} << bit % 8;
  }
}

TEST(LvolFormat, ATornSuperblockIsFound) {
  const Page old_page = encoded(example_superblock());
  Superblock superblock = example_superblock();
  superblock.generation += 2;
  superblock.table_index[0].crc = 1;
  const Page new_page = encoded(superblock);
  Page torn = old_page;
  std::copy_n(new_page.begin(), 512, torn.begin());
  EXPECT_FALSE(decode_superblock(torn));
}

TEST(LvolFormat, AnEmptyDiskIsNoSuperblock) { EXPECT_EQ(decode_superblock(Page{}).error().code, ENODATA); }

TEST(LvolFormat, ALaterVersionIsNamed) { EXPECT_EQ(code_with<uint32_t>(8, 2), ENOTSUP); }

TEST(LvolFormat, RefusesASuperblockThatMakesNoSense) {
  EXPECT_EQ(code_with<uint32_t>(12, 512), 0);
  EXPECT_EQ(code_with<uint32_t>(12, 256), EILSEQ);
  EXPECT_EQ(code_with<uint32_t>(12, 8192), EILSEQ);
  EXPECT_EQ(code_with<uint32_t>(12, 513), EILSEQ);
  EXPECT_EQ(code_with<uint64_t>(40, 0), EILSEQ);  // cluster_bytes
  EXPECT_EQ(code_with<uint64_t>(40, 32U << 10), EILSEQ);
  EXPECT_EQ(code_with<uint64_t>(40, 32U << 20), EILSEQ);
  EXPECT_EQ(code_with<uint64_t>(40, 65'537), EILSEQ);
  EXPECT_EQ(code_with<uint32_t>(48, 7), 0);  // total_clusters: page 99 is in cluster 6
  EXPECT_EQ(code_with<uint32_t>(48, 6), EILSEQ);
  EXPECT_EQ(code_with<uint32_t>(48, 3), EILSEQ);
  EXPECT_EQ(code_with<uint32_t>(48, 0), EILSEQ);
  EXPECT_EQ(code_with<uint32_t>(52, 1), EILSEQ);  // reserved_clusters
  EXPECT_EQ(code_with<uint32_t>(52, 2), EILSEQ);  // 32 pages, of which superblocks and journal need 42
  EXPECT_EQ(code_with<uint32_t>(52, 7), EILSEQ);  // the table lies in them
  EXPECT_EQ(code_with<uint32_t>(52, 1000), EILSEQ);
  EXPECT_EQ(code_with<uint32_t>(56, 46), 0);  // journal_pages
  EXPECT_EQ(code_with<uint32_t>(56, 47), EILSEQ);
  EXPECT_EQ(code_with<uint32_t>(56, 0xffff'ffff), EILSEQ);
  EXPECT_EQ(code_with<uint32_t>(56, kMinJournalPages - 1), EILSEQ);
  EXPECT_EQ(code_with<uint64_t>(64, 0), EILSEQ);  // journal_sequence
  EXPECT_EQ(code_with<uint64_t>(72, 0), EILSEQ);  // first_record
  EXPECT_EQ(code_with<uint64_t>(80, 0), EILSEQ);  // table_bytes, with an index page
  EXPECT_EQ(code_with<uint64_t>(80, 1U << 20), 0);
  EXPECT_EQ(code_with<uint64_t>(80, (1U << 20) + 1), EILSEQ);
  EXPECT_EQ(code_with<uint64_t>(80, UINT64_MAX), EILSEQ);
  EXPECT_EQ(code_with<uint32_t>(88, 0), EILSEQ);  // next_volume
  EXPECT_EQ(code_with<uint32_t>(92, 0), EILSEQ);  // index pages
  EXPECT_EQ(code_with<uint32_t>(92, 193), EILSEQ);
  EXPECT_EQ(code_with<uint32_t>(96, 256), EILSEQ);  // name
  EXPECT_EQ(code_with<uint32_t>(96, 5), EILSEQ);    // has a NUL then
  EXPECT_EQ(code_with<uint64_t>(512, 0), EILSEQ);   // the index page's place
  EXPECT_EQ(code_with<uint64_t>(512, 47), EILSEQ);
  EXPECT_EQ(code_with<uint64_t>(512, 48), 0);
  EXPECT_EQ(code_with<uint64_t>(512, 16'000), EILSEQ);
  EXPECT_EQ(code_with<uint64_t>(512, UINT64_MAX), EILSEQ);
}

// --- Pages of maps ---

TEST(LvolFormat, PagesOfMapsComeBack) {
  std::mt19937_64 random(2);
  std::array<PageRef, kRefsPerPage> refs;
  std::array<Entry, kFanOut> entries;
  for (PageRef& ref : refs) ref = {.page = random(), .crc = static_cast<uint32_t>(random())};
  for (Entry& entry : entries) {
    entry = {.own = static_cast<uint32_t>(random()), .base = static_cast<uint32_t>(random()), .valid = random()};
  }
  Page page;
  std::array<PageRef, kRefsPerPage> refs_back;
  std::array<Entry, kFanOut> entries_back;
  encode(refs, page);
  decode(page, refs_back);
  EXPECT_EQ(refs_back, refs);
  encode(entries, page);
  decode(page, entries_back);
  EXPECT_EQ(entries_back, entries);
}

// --- Volume table ---

TEST(LvolFormat, TheVolumeTableComesBack) {
  std::vector<TableEntry> entries;
  std::vector<std::byte> table;
  EXPECT_EQ(decode_table(table), entries);
  for (VolumeId id = 10; id < 300; ++id) {
    entries.push_back({.volume = example_volume(id), .level = id % 4, .root = {.page = id * 1000ULL, .crc = ~id}});
    encode(entries.back(), table);
  }
  EXPECT_EQ(decode_table(table), entries);
}

TEST(LvolFormat, ACutVolumeTableIsFound) {
  std::vector<std::byte> table;
  encode(TableEntry{.volume = example_volume()}, table);
  for (size_t length = 1; length < table.size(); ++length) {
    const auto decoded = decode_table(std::span(table).first(length));
    ASSERT_FALSE(decoded) << length;
    EXPECT_EQ(decoded.error().code, EILSEQ);
  }
}

TEST(LvolFormat, RefusesATableEntryThatMakesNoSense) {
  std::vector<std::byte> table;
  encode(TableEntry{.volume = example_volume()}, table);
  const auto code = [&table](size_t offset, uint8_t value) {
    std::vector<std::byte> changed = table;
    changed[offset] = std::byte{value};
    const auto decoded = decode_table(changed);
    return decoded ? 0 : decoded.error().code;
  };
  EXPECT_EQ(code(24, 9), 0);         // another id
  EXPECT_EQ(code(0, 4), EILSEQ);     // shorter than its own head
  EXPECT_EQ(code(4, 4), EILSEQ);     // a map deeper than there are
  EXPECT_EQ(code(24, 0), EILSEQ);    // no id
  EXPECT_EQ(code(28, 7), EILSEQ);    // its own parent
  EXPECT_EQ(code(49, 1), EILSEQ);    // a size that is no multiple of any cluster size
  EXPECT_EQ(code(55, 2), EILSEQ);    // a size beyond all clusters
  EXPECT_EQ(code(64, 8), EILSEQ);    // an unknown flag
  EXPECT_EQ(code(72, 0), EILSEQ);    // a NUL in the name
  EXPECT_EQ(code(68, 9), EILSEQ);    // more xattrs than there are
  EXPECT_EQ(code(68, 2), EILSEQ);    // less
  EXPECT_EQ(code(89, 0), EILSEQ);    // an empty key
  EXPECT_EQ(code(93, 'z'), EILSEQ);  // keys out of order
}

TEST(LvolFormat, RefusesAVolumeThatNoRecordCouldHold) {
  VolumeRecord volume = example_volume();
  volume.xattrs.clear();
  volume.xattrs["notes"] = std::string(3000, 'x');
  std::vector<std::byte> table;
  encode(TableEntry{.volume = volume}, table);
  EXPECT_TRUE(decode_table(table));
  // The same with one xattr more.
  const std::string another = std::string({5, 0, '\xe8', 3}) + "notez" + std::string(1000, 'y');
  for (const char c : another) table.push_back(static_cast<std::byte>(c));
  poke(table, 0, static_cast<uint32_t>(table.size()));
  poke(table, 24 + 44, uint16_t{2});
  const auto decoded = decode_table(table);
  ASSERT_FALSE(decoded);
  EXPECT_STREQ(decoded.error().what, "an entry of the volume table is too long");
}

// --- Journal ---

TEST(LvolFormat, JournalPagesComeBack) {
  JournalHeader header = example_header();
  const std::vector<Record> records = example_records();
  const Page page = journal_page(records, header);
  EXPECT_EQ(header.records, records.size());
  EXPECT_EQ(header.crc, slow_crc(std::span(page).subspan(4)));
  const auto decoded = decode_journal_header(page, kStoreUuid);
  ASSERT_TRUE(decoded);
  EXPECT_EQ(*decoded, header);
  EXPECT_EQ(decode_records(page, *decoded), records);
}

TEST(LvolFormat, APageTakes144Entries) {
  JournalHeader header = example_header();
  Page page{};
  for (int i = 0; i < 144; ++i) ASSERT_TRUE(append(SetEntryRecord{.volume = 1}, page, header));
  EXPECT_FALSE(append(SetEntryRecord{.volume = 1}, page, header));
  EXPECT_FALSE(append(DeleteVolumeRecord{.volume = 1}, page, header));
  EXPECT_EQ(header.records, 144);
  EXPECT_EQ(header.used_bytes, kMaxRecordBytes);
  seal(header, page);
  EXPECT_EQ(decode_records(page, *decode_journal_header(page, kStoreUuid))->size(), 144U);
}

TEST(LvolFormat, TheLargestRecordFillsAPage) {
  PutVolumeRecord record{.volume = example_volume()};
  record.volume.xattrs["notes"] = "";
  const size_t rest = kMaxRecordBytes - bytes_of(record).size();
  record.volume.xattrs["notes"] = std::string(rest, 'x');
  EXPECT_TRUE(fits(record));
  EXPECT_EQ(bytes_of(record).size(), kMaxRecordBytes);
  JournalHeader header = example_header();
  const Page page = journal_page({record}, header);
  EXPECT_EQ(decode_records(page, header), std::vector<Record>{record});
  std::vector<std::byte> table;
  encode(TableEntry{.volume = record.volume}, table);
  EXPECT_EQ(decode_table(table)->at(0).volume, record.volume);

  record.volume.xattrs["notes"] += 'x';
  EXPECT_FALSE(fits(record));
}

TEST(LvolFormat, OnlyGoodNamesFit) {
  const auto fits_with = [](auto change) {
    PutVolumeRecord record{.volume = example_volume()};
    change(record.volume);
    return fits(record);
  };
  const std::string nul("a\0b", 3);
  EXPECT_TRUE(fits_with([](VolumeRecord& volume) { volume.name = std::string(255, 'x'); }));
  EXPECT_FALSE(fits_with([](VolumeRecord& volume) { volume.name = std::string(256, 'x'); }));
  EXPECT_FALSE(fits_with([](VolumeRecord& volume) { volume.external_origin = std::string(256, 'x'); }));
  EXPECT_FALSE(fits_with([](VolumeRecord& volume) { volume.xattrs[std::string(256, 'x')] = ""; }));
  EXPECT_FALSE(fits_with([](VolumeRecord& volume) { volume.xattrs[""] = ""; }));
  EXPECT_FALSE(fits_with([&](VolumeRecord& volume) { volume.name = nul; }));
  EXPECT_FALSE(fits_with([&](VolumeRecord& volume) { volume.external_origin = nul; }));
  EXPECT_FALSE(fits_with([&](VolumeRecord& volume) { volume.xattrs[nul] = ""; }));
  EXPECT_FALSE(fits(PutStoreRecord{.name = std::string(256, 'x'), .total_clusters = 9}));
  EXPECT_FALSE(fits(PutStoreRecord{.name = nul, .total_clusters = 9}));
}

TEST(LvolFormat, EachFlippedBitOfAJournalPageIsFound) {
  JournalHeader header = example_header();
  Page page = journal_page(example_records(), header);
  for (size_t bit = 0; bit < kPageBytes * 8; ++bit) {
    page[bit / 8] ^= std::byte{1} << bit % 8;
    const auto decoded = decode_journal_header(page, kStoreUuid);
    ASSERT_FALSE(decoded) << "bit " << bit;
    EXPECT_EQ(decoded.error().code, EILSEQ);
    page[bit / 8] ^= std::byte{1} << bit % 8;
  }
}

TEST(LvolFormat, APageOfAnotherStoreIsNotTaken) {
  JournalHeader header = example_header();
  const Page page = journal_page(example_records(), header);
  EXPECT_TRUE(decode_journal_header(page, kStoreUuid));
  EXPECT_FALSE(decode_journal_header(page, Uuid{{1}}));
}

TEST(LvolFormat, RefusesAJournalHeaderThatMakesNoSense) {
  EXPECT_EQ(header_code_with<uint64_t>(8, 13), 0);
  EXPECT_EQ(header_code_with<uint64_t>(8, 0), EILSEQ);   // sequence
  EXPECT_EQ(header_code_with<uint64_t>(8, 9), EILSEQ);   // it was durable before it was written
  EXPECT_EQ(header_code_with<uint64_t>(24, 0), EILSEQ);  // first_record
  EXPECT_EQ(header_code_with<uint16_t>(52, 0), EILSEQ);  // records
  EXPECT_EQ(header_code_with<uint16_t>(54, 4032), 0);    // used_bytes
  EXPECT_EQ(header_code_with<uint16_t>(54, 4033), EILSEQ);
}

TEST(LvolFormat, RefusesRecordsThatMakeNoSense) {
  for (const Record& record : example_records()) {
    const std::vector<uint8_t> bytes = bytes_of(record);
    EXPECT_TRUE(taken(bytes));
    EXPECT_FALSE(taken(bytes, 2));
    EXPECT_FALSE(taken(bytes, 0));
    // A byte more than there is in it, or less.
    std::vector<uint8_t> longer = bytes;
    longer.push_back(0);
    EXPECT_FALSE(taken(longer));
    const auto size = static_cast<uint16_t>(bytes.size() + 1);
    EXPECT_FALSE(taken(with(longer, 2, {static_cast<uint8_t>(size), static_cast<uint8_t>(size >> 8)})));
    for (size_t length = 1; length < bytes.size(); ++length) {
      std::vector<uint8_t> cut(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(length));
      EXPECT_FALSE(taken(cut));
      if (length >= 4) {
        EXPECT_FALSE(taken(with(cut, 2, {static_cast<uint8_t>(length), static_cast<uint8_t>(length >> 8)})));
      }
    }
    // A type that there is not.
    EXPECT_FALSE(taken(with(bytes, 0, {0})));
    EXPECT_FALSE(taken(with(bytes, 0, {7})));
  }
  const std::vector<uint8_t> set = bytes_of(SetEntryRecord{.volume = 1});
  EXPECT_FALSE(taken(with(set, 4, {0})));  // no volume
  const std::vector<uint8_t> drop = bytes_of(DropRangeRecord{.volume = 1, .first = 0xffff'fffe, .count = 2});
  EXPECT_FALSE(taken(with(drop, 4, {0})));   // no volume
  EXPECT_FALSE(taken(with(drop, 12, {3})));  // beyond the last index
  EXPECT_FALSE(taken(with(drop, 12, {0})));  // nothing
  EXPECT_FALSE(taken(with(drop, 16, {2})));  // a base that is a cluster
  const std::vector<uint8_t> range =
      bytes_of(AllocateRangeRecord{.volume = 1, .first = 0xffff'fffe, .count = 2, .own = 5});
  EXPECT_FALSE(taken(with(range, 4, {0})));   // no volume
  EXPECT_FALSE(taken(with(range, 12, {3})));  // beyond the last index
  EXPECT_FALSE(taken(with(range, 12, {0})));  // nothing
  EXPECT_FALSE(taken(with(range, 16, {1})));  // not a cluster for data
  const std::vector<uint8_t> volume = bytes_of(PutVolumeRecord{.volume = example_volume(7), .map_of = 3});
  EXPECT_FALSE(taken(with(volume, 4, {7})));  // a copy of itself
  const std::vector<uint8_t> deleted = bytes_of(DeleteVolumeRecord{.volume = 1});
  EXPECT_FALSE(taken(with(deleted, 4, {0})));
  const std::vector<uint8_t> store = bytes_of(PutStoreRecord{.name = "s", .total_clusters = 3});
  EXPECT_FALSE(taken(with(store, 4, {2})));   // no cluster for data
  EXPECT_FALSE(taken(with(store, 12, {0})));  // a NUL in the name
}

TEST(LvolFormat, ArbitraryBytesAreSurvived) {
  std::mt19937_64 random(3);
  JournalHeader header = example_header();
  const Page journal = journal_page(example_records(), header);
  std::vector<std::byte> table;
  encode(TableEntry{.volume = example_volume()}, table);
  encode(TableEntry{.volume = example_volume(8)}, table);
  for (int round = 0; round < 20'000; ++round) {
    // Noise, and what we write with some noise in it, as if the checksum had not seen it.
    Page noise;
    for (size_t i = 0; i < kPageBytes; i += 8) poke(noise, i, random());
    EXPECT_FALSE(decode_superblock(noise));
    EXPECT_FALSE(decode_journal_header(noise, kStoreUuid));
    JournalHeader any = header;
    any.records = static_cast<uint16_t>(random() % 20);
    any.used_bytes = static_cast<uint16_t>(random() % (kMaxRecordBytes + 1));
    static_cast<void>(decode_records(noise, any));
    Page changed = journal;
    std::vector<std::byte> changed_table = table;
    for (uint64_t changes = random() % 8 + 1; changes > 0; --changes) {
      changed[kJournalHeaderBytes + random() % header.used_bytes] = static_cast<std::byte>(random());
      changed_table[random() % table.size()] = static_cast<std::byte>(random());
    }
    static_cast<void>(decode_records(changed, header));
    static_cast<void>(decode_table(changed_table));
    static_cast<void>(decode_table(std::span(noise).first(random() % kPageBytes)));
  }
}

// --- The examples of docs/format-lvol.md: a change of these bytes is a change of the format ---

constexpr Uuid kExampleStore{
    {0x8e, 0x2f, 0x5c, 0x1a, 0x6b, 0x3d, 0x4e, 0x7f, 0x90, 0xa1, 0xb2, 0xc3, 0xd4, 0xe5, 0xf6, 0x07}};

// Lines of 16 bytes, as `hexdump -C` has them, without the text.
std::string hexdump(PageView page, size_t first, size_t end) {
  std::string text;
  for (size_t line = first; line < end; line += 16) {
    text += fmt::format("{:08x} ", line);
    for (size_t i = line; i < line + 16; ++i) text += fmt::format(" {:02x}", static_cast<uint8_t>(page[i]));
    text += '\n';
  }
  return text;
}

TEST(LvolFormat, TheExampleOfASuperblock) {
  const Page page = encoded({.generation = 3,
                             .uuid = kExampleStore,
                             .name = "fast",
                             .geometry = {.cluster_bytes = 256U << 10,
                                          .total_clusters = 40'960,
                                          .reserved_clusters = 65,
                                          .journal_pages = 4096},
                             .journal_sequence = 2,
                             .journal_crc = 0x9c16'5534,
                             .first_record = 4,
                             .table_bytes = 75,
                             .next_volume = 2,
                             .table_index = {{.page = 4162, .crc = 0x5d0f'70a2}}});
  EXPECT_EQ(hexdump(page, 0, 112),
            "00000000  53 4c 55 49 43 45 4c 56 01 00 00 00 00 02 00 00\n"
            "00000010  03 00 00 00 00 00 00 00 8e 2f 5c 1a 6b 3d 4e 7f\n"
            "00000020  90 a1 b2 c3 d4 e5 f6 07 00 00 04 00 00 00 00 00\n"
            "00000030  00 a0 00 00 41 00 00 00 00 10 00 00 34 55 16 9c\n"
            "00000040  02 00 00 00 00 00 00 00 04 00 00 00 00 00 00 00\n"
            "00000050  4b 00 00 00 00 00 00 00 02 00 00 00 01 00 00 00\n"
            "00000060  04 00 00 00 00 00 00 00 66 61 73 74 00 00 00 00\n");
  EXPECT_EQ(hexdump(page, 512, 528), "00000200  42 10 00 00 00 00 00 00 a2 70 0f 5d 00 00 00 00\n");
  EXPECT_EQ(hexdump(page, 4080, 4096), "00000ff0  00 00 00 00 00 00 00 00 00 00 00 00 34 ca ef 21\n");
}

TEST(LvolFormat, TheExampleOfAJournalPage) {
  JournalHeader header{.store = kExampleStore, .sequence = 1, .first_record = 1, .opening = 0x0123'4567'89ab'cdef};
  const VolumeRecord volume{
      .id = 1,
      .uuid = Uuid{{0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x47, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 0}},
      .name = "vm0",
      .size_bytes = 1U << 30,
      .created_s = 1'767'225'600};
  const Page page = journal_page(
      {PutVolumeRecord{.volume = volume}, SetEntryRecord{.volume = 1, .index = 5, .entry = {.own = 66, .valid = 0x3}},
       DropRangeRecord{.volume = 1, .first = 5, .count = 1}},
      header);
  EXPECT_EQ(hexdump(page, 0, 176),
            "00000000  34 55 16 9c 53 4c 56 4a 01 00 00 00 00 00 00 00\n"
            "00000010  00 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00\n"
            "00000020  8e 2f 5c 1a 6b 3d 4e 7f 90 a1 b2 c3 d4 e5 f6 07\n"
            "00000030  00 00 00 00 03 00 6b 00 ef cd ab 89 67 45 23 01\n"
            "00000040  03 00 3b 00 00 00 00 00 01 00 00 00 00 00 00 00\n"
            "00000050  11 22 33 44 55 66 47 88 99 aa bb cc dd ee ff 00\n"
            "00000060  00 00 00 40 00 00 00 00 00 b9 55 69 00 00 00 00\n"
            "00000070  01 03 00 00 00 00 00 00 76 6d 30 01 00 1c 00 01\n"
            "00000080  00 00 00 05 00 00 00 42 00 00 00 00 00 00 00 03\n"
            "00000090  00 00 00 00 00 00 00 02 00 14 00 01 00 00 00 05\n"
            "000000a0  00 00 00 01 00 00 00 00 00 00 00 00 00 00 00 00\n");
}

}  // namespace
}  // namespace sluice::lvol
