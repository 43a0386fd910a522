#include "lib/vhost/device_state.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace sluice::vhost {
namespace {

constexpr std::array<char, 8> kMagic = {'s', 'l', 'u', 'i', 'c', 'e', 'D', 'S'};
constexpr uint16_t kStateVersion = 1;
constexpr uint8_t kReadonly = 1U << 0;
constexpr uint8_t kWriteback = 1U << 1;

struct Record {
  std::array<char, 8> magic;
  uint16_t version;
  uint16_t size;
  uint32_t block_size;
  uint64_t capacity;
  uint8_t flags;
  std::array<uint8_t, 7> reserved;
};
static_assert(sizeof(Record) == kDeviceStateBytes && offsetof(Record, capacity) == 16 && offsetof(Record, flags) == 24);
static_assert(std::endian::native == std::endian::little);

}  // namespace

std::array<std::byte, kDeviceStateBytes> encode(const DeviceState& state) {
  return std::bit_cast<std::array<std::byte, kDeviceStateBytes>>(
      Record{.magic = kMagic,
             .version = kStateVersion,
             .size = sizeof(Record),
             .block_size = state.block_size,
             .capacity = state.capacity,
             .flags = static_cast<uint8_t>((state.readonly ? kReadonly : 0) | (state.writeback ? kWriteback : 0)),
             .reserved = {}});
}

Result<DeviceState> decode(std::span<const std::byte> bytes) {
  Record record{};
  if (bytes.size() != sizeof(record)) return fail(EINVAL, "a device state has the wrong size");
  std::memcpy(&record, bytes.data(), sizeof(record));
  if (record.magic != kMagic) return fail(EINVAL, "a device state comes from another kind of back end");
  if (record.version != kStateVersion || record.size != sizeof(record))
    return fail(EINVAL, "a device state has a version that is not known here");
  if ((record.flags & ~(kReadonly | kWriteback)) != 0 ||
      std::ranges::any_of(record.reserved, [](uint8_t byte) { return byte != 0; })) {
    return fail(EINVAL, "a device state is damaged");
  }
  return DeviceState{.capacity = record.capacity,
                     .block_size = record.block_size,
                     .readonly = (record.flags & kReadonly) != 0,
                     .writeback = (record.flags & kWriteback) != 0};
}

}  // namespace sluice::vhost
