// The volume table, and volumes.
#include "lib/lvol/format.h"
#include "lib/lvol/format_disk.h"

namespace sluice::lvol {

using namespace disk;

namespace {

// There is no alignment behind names.
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

// 2^32 of the largest clusters: what an index of 32 bits can name.
constexpr uint64_t kMaxVolumeBytes = kMaxClusterBytes << 32;

}  // namespace

size_t disk::disk_bytes(const VolumeRecord& volume) {
  size_t bytes = sizeof(DiskVolume) + volume.name.size() + volume.external_origin.size();
  for (const auto& [key, value] : volume.xattrs) bytes += sizeof(DiskXattr) + key.size() + value.size();
  return bytes;
}

bool disk::good_names(const VolumeRecord& volume) {
  if (!good_name(volume.name) || !good_name(volume.external_origin)) return false;
  for (const auto& [key, value] : volume.xattrs) {
    if (key.empty() || !good_name(key)) return false;
  }
  return true;
}

void disk::write(Writer& writer, const VolumeRecord& volume) {
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
    writer.value(DiskXattr{
        .key_bytes = static_cast<uint8_t>(key.size()), .zero = 0, .value_bytes = static_cast<uint16_t>(value.size())});
    writer.text(key);
    writer.text(value);
  }
}

bool disk::read(Reader& reader, VolumeRecord& volume) {
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

void encode(const TableEntry& entry, std::vector<std::byte>& table) {
  CHECK(good_names(entry.volume));
  const size_t volume_bytes = disk_bytes(entry.volume);
  CHECK(volume_bytes <= kMaxVolumeDiskBytes);
  const size_t bytes = sizeof(DiskTableEntry) + volume_bytes;
  table.resize(table.size() + bytes);
  Writer writer(std::span(table).last(bytes));
  writer.value(
      DiskTableEntry{.entry_bytes = static_cast<uint32_t>(bytes), .level = entry.level, .root = to_disk(entry.root)});
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
    // One that could not be written again.
    if (body.size() > kMaxVolumeDiskBytes) return fail(EILSEQ, "an entry of the volume table is too long");
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

}  // namespace sluice::lvol
