// Feeds arbitrary bytes to the decoders of lib/lvol/format.h. Checksums are made right first, or the fuzzer would not
// get beyond them. Whatever is taken must be written and read again as the same.
#include <algorithm>
#include <array>
#include <cstring>

#include "lib/base/check.h"
#include "lib/lvol/format.h"
#include "test/fuzz/lvol_format_input.h"

namespace sluice::lvol {
namespace {

// CRC-32C byte by byte, apart from the one that is tested.
uint32_t crc32c(std::span<const std::byte> bytes) {
  static const auto kTable = [] {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ ((crc & 1U) != 0 ? 0x82f6'3b78U : 0);
      table[i] = crc;
    }
    return table;
  }();
  uint32_t crc = ~0U;
  for (const std::byte byte : bytes) crc = crc >> 8 ^ kTable[(crc ^ static_cast<uint32_t>(byte)) & 0xff];
  return ~crc;
}

Page page_of(std::span<const std::byte> bytes) {
  Page page{};
  std::copy_n(bytes.begin(), std::min(bytes.size(), page.size()), page.begin());
  return page;
}

void try_superblock(Page page) {
  static_cast<void>(decode_superblock(page));
  const uint32_t crc = crc32c(std::span(page).first(kPageBytes - 4));
  std::memcpy(page.data() + kPageBytes - 4, &crc, sizeof(crc));
  const auto decoded = decode_superblock(page);
  if (!decoded) return;
  Page again;
  encode(*decoded, again);
  CHECK(decode_superblock(again) == *decoded);
}

void try_journal_page(Page page) {
  Uuid store;
  std::memcpy(store.bytes.data(), page.data() + 32, store.bytes.size());
  static_cast<void>(decode_journal_header(page, store));
  const uint32_t crc = crc32c(std::span(page).subspan(4));
  std::memcpy(page.data(), &crc, sizeof(crc));
  const auto header = decode_journal_header(page, store);
  if (!header) return;
  const auto records = decode_records(page, *header);
  if (!records) return;
  JournalHeader copied = *header;
  copied.records = copied.used_bytes = 0;
  Page again{};
  for (const Record& record : *records) {
    CHECK(fits(record));
    CHECK(append(record, again, copied));
  }
  seal(copied, again);
  CHECK(copied.records == header->records && copied.used_bytes == header->used_bytes);
  CHECK(decode_records(again, copied) == *records);
}

void try_table(std::span<const std::byte> bytes) {
  const auto entries = decode_table(bytes);
  if (!entries) return;
  std::vector<std::byte> again;
  for (const TableEntry& entry : *entries) {
    CHECK(fits(PutVolumeRecord{.volume = entry.volume}));
    encode(entry, again);
  }
  CHECK(decode_table(again) == *entries);
}

void try_map_page(const Page& page) {
  std::array<Entry, kFanOut> entries;
  std::array<PageRef, kRefsPerPage> refs;
  decode(page, entries);
  decode(page, refs);
  Page again;
  encode(entries, again);
  CHECK(again == page);
  encode(refs, again);
  std::array<PageRef, kRefsPerPage> refs_again;
  decode(again, refs_again);
  CHECK(refs_again == refs);
}

}  // namespace
}  // namespace sluice::lvol

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice::lvol;
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span(data + 1, size - 1));
  switch (static_cast<FuzzKind>(data[0] % kFuzzKinds)) {
    case FuzzKind::kSuperblock:
      try_superblock(page_of(bytes));
      break;
    case FuzzKind::kJournalPage:
      try_journal_page(page_of(bytes));
      break;
    case FuzzKind::kTable:
      try_table(bytes);
      break;
    case FuzzKind::kMapPage:
      try_map_page(page_of(bytes));
      break;
  }
  return 0;
}
