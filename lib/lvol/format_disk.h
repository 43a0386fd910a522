// What the files that encode and decode the format have in common. Not for others: they include format.h.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "lib/base/check.h"
#include "lib/base/crc32c.h"
#include "lib/base/uuid.h"
#include "lib/lvol/format.h"

namespace sluice::lvol::disk {

static_assert(std::endian::native == std::endian::little, "structures are little-endian, as the disk is");

// The disk, byte by byte: docs/format-lvol.md. Fields named `zero` are written as zeros and not looked at.
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

template <typename T>
void put(std::byte* to, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::memcpy(to, &value, sizeof(T));
}

template <typename T>
T get(const std::byte* from) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value{};
  std::memcpy(&value, from, sizeof(T));
  return value;
}

inline DiskRef to_disk(const PageRef& ref) { return {.page = ref.page, .crc = ref.crc, .zero = 0}; }
inline PageRef from_disk(const DiskRef& ref) { return {.page = ref.page, .crc = ref.crc}; }
inline DiskEntry to_disk(const Entry& entry) { return {.own = entry.own, .base = entry.base, .valid = entry.valid}; }
inline Entry from_disk(const DiskEntry& entry) { return {.own = entry.own, .base = entry.base, .valid = entry.valid}; }

inline void copy_uuid(const Uuid& uuid, uint8_t (&to)[16]) { std::memcpy(to, uuid.bytes.data(), sizeof(to)); }
inline Uuid to_uuid(const uint8_t (&from)[16]) {
  Uuid uuid;
  std::memcpy(uuid.bytes.data(), from, sizeof(from));
  return uuid;
}

inline bool good_name(std::string_view name) { return name.size() <= kMaxNameBytes && !name.contains('\0'); }

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

// A volume, as it is in the volume table and in a record, into which it fits.
inline constexpr size_t kRecordHeadBytes = 4;
inline constexpr size_t kMaxVolumeDiskBytes = kMaxRecordBytes - kRecordHeadBytes - sizeof(VolumeId);
size_t disk_bytes(const VolumeRecord& volume);
bool good_names(const VolumeRecord& volume);
void write(Writer& writer, const VolumeRecord& volume);
[[nodiscard]] bool read(Reader& reader, VolumeRecord& volume);

}  // namespace sluice::lvol::disk
