// lvol_format_seeds DIRECTORY: writes there what lvol_format_fuzz begins with: one input of each kind, made by the
// encoders.
#include <algorithm>
#include <fstream>
#include <string>

#include "lib/base/check.h"
#include "lib/lvol/format.h"
#include "test/fuzz/lvol_format_input.h"

namespace sluice::lvol {
namespace {

void write(const std::string& path, FuzzKind kind, std::span<const std::byte> bytes) {
  std::ofstream file(path, std::ios::binary);
  file.put(static_cast<char>(kind));
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

void write_all(const std::string& directory) {
  Page page;
  encode({.generation = 3,
          .name = "store",
          .geometry =
              {.cluster_bytes = kMinClusterBytes, .total_clusters = 1000, .reserved_clusters = 3, .journal_pages = 40},
          .table_bytes = 5000,
          .next_volume = 9,
          .table_index = {{.page = 60, .crc = 7}}},
         page);
  write(directory + "/superblock", FuzzKind::kSuperblock, page);

  const VolumeRecord volume{.id = 3,
                            .name = "volume",
                            .size_bytes = 1U << 20,
                            .parent = 2,
                            .external_origin = "image",
                            .created_s = 1,
                            .xattrs = {{"a", "1"}, {"b", ""}}};
  JournalHeader header{.sequence = 5, .durable_sequence = 3, .first_record = 100};
  page.fill(std::byte{0});
  for (const Record& record : std::initializer_list<Record>{
           SetEntryRecord{.volume = 3, .index = 1, .entry = {.own = 9, .base = 1, .valid = 3}},
           DropRangeRecord{.volume = 3, .first = 1, .count = 2},
           AllocateRangeRecord{.volume = 3, .first = 1, .count = 2, .own = 9},
           PutVolumeRecord{.volume = volume, .map_of = 1}, DeleteVolumeRecord{.volume = 3},
           PutStoreRecord{.name = "renamed", .total_clusters = 2000}}) {
    CHECK(append(record, page, header));
  }
  seal(header, page);
  write(directory + "/journal", FuzzKind::kJournalPage, page);

  std::vector<std::byte> table;
  encode(TableEntry{.volume = volume, .level = 1, .root = {.page = 70, .crc = 1}}, table);
  encode(TableEntry{.volume = volume}, table);
  write(directory + "/table", FuzzKind::kTable, table);

  std::array<Entry, kFanOut> entries;
  entries.fill({.own = 5, .base = 6, .valid = 7});
  encode(entries, page);
  write(directory + "/map", FuzzKind::kMapPage, page);
}

}  // namespace
}  // namespace sluice::lvol

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  sluice::lvol::write_all(argv[1]);
  return 0;
}
