// What virtio lays down for a block device: feature bits, ring layouts, configuration space, requests.
//
// Every integer is little-endian (VERSION_1) and so is every host this builds for. Rings and requests live in memory
// that the guest changes at any time: read a field once into private memory, then check, then use that copy.
//
// Names are the specification's without VIRTIO_ and VIRTIO_BLK_.
//
// Source: Virtual I/O Device (VIRTIO) Version 1.2/1.3: "Split Virtqueues", "Packed Virtqueues", "Reserved Feature
// Bits", "Block Device".
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace sluice::vhost {

static_assert(std::endian::native == std::endian::little, "virtio structures are used as they lie in guest memory");

// ---- Feature bits ("Reserved Feature Bits", legacy bits of "Legacy Interfaces") -------------------------------------

inline constexpr uint64_t kFeatureNotifyOnEmpty = uint64_t{1} << 24;  // legacy
inline constexpr uint64_t kFeatureAnyLayout = uint64_t{1} << 27;      // legacy; implied by VERSION_1
inline constexpr uint64_t kFeatureIndirectDesc = uint64_t{1} << 28;
inline constexpr uint64_t kFeatureEventIdx = uint64_t{1} << 29;
inline constexpr uint64_t kFeatureVersion1 = uint64_t{1} << 32;
inline constexpr uint64_t kFeatureAccessPlatform = uint64_t{1} << 33;
inline constexpr uint64_t kFeatureRingPacked = uint64_t{1} << 34;
inline constexpr uint64_t kFeatureInOrder = uint64_t{1} << 35;
inline constexpr uint64_t kFeatureOrderPlatform = uint64_t{1} << 36;
inline constexpr uint64_t kFeatureSrIov = uint64_t{1} << 37;
inline constexpr uint64_t kFeatureNotificationData = uint64_t{1} << 38;
inline constexpr uint64_t kFeatureNotifConfigData = uint64_t{1} << 39;
inline constexpr uint64_t kFeatureRingReset = uint64_t{1} << 40;

// "Block Device / Feature bits".
inline constexpr uint64_t kBlkFeatureSizeMax = uint64_t{1} << 1;
inline constexpr uint64_t kBlkFeatureSegMax = uint64_t{1} << 2;
inline constexpr uint64_t kBlkFeatureGeometry = uint64_t{1} << 4;
inline constexpr uint64_t kBlkFeatureRo = uint64_t{1} << 5;
inline constexpr uint64_t kBlkFeatureBlkSize = uint64_t{1} << 6;
inline constexpr uint64_t kBlkFeatureFlush = uint64_t{1} << 9;
inline constexpr uint64_t kBlkFeatureTopology = uint64_t{1} << 10;
inline constexpr uint64_t kBlkFeatureConfigWce = uint64_t{1} << 11;
inline constexpr uint64_t kBlkFeatureMq = uint64_t{1} << 12;
inline constexpr uint64_t kBlkFeatureDiscard = uint64_t{1} << 13;
inline constexpr uint64_t kBlkFeatureWriteZeroes = uint64_t{1} << 14;
inline constexpr uint64_t kBlkFeatureLifetime = uint64_t{1} << 15;
inline constexpr uint64_t kBlkFeatureSecureErase = uint64_t{1} << 16;
inline constexpr uint64_t kBlkFeatureZoned = uint64_t{1} << 17;

// ---- Split ring ("Split Virtqueues") --------------------------------------------------------------------------------

inline constexpr uint16_t kDescNext = 1;
inline constexpr uint16_t kDescWrite = 2;  // the device writes it; otherwise it only reads it
inline constexpr uint16_t kDescIndirect = 4;

inline constexpr uint32_t kMaxSplitQueueSize = 32768;

struct SplitDesc {
  uint64_t addr = 0;  // guest physical
  uint32_t len = 0;
  uint16_t flags = 0;
  uint16_t next = 0;
};
static_assert(sizeof(SplitDesc) == 16);

// The driver's area is this, `uint16_t ring[size]`, `uint16_t used_event` (EVENT_IDX).
struct SplitAvail {
  uint16_t flags = 0;
  uint16_t idx = 0;
};
static_assert(sizeof(SplitAvail) == 4);
inline constexpr uint16_t kAvailNoInterrupt = 1;

struct SplitUsedElem {
  uint32_t id = 0;   // the chain's first descriptor
  uint32_t len = 0;  // bytes written into the chain's device-writable part
};
static_assert(sizeof(SplitUsedElem) == 8);

// The device's area is this, `SplitUsedElem ring[size]`, `uint16_t avail_event` (EVENT_IDX).
struct SplitUsed {
  uint16_t flags = 0;
  uint16_t idx = 0;
};
static_assert(sizeof(SplitUsed) == 4);
inline constexpr uint16_t kUsedNoNotify = 1;

inline constexpr size_t kSplitDescAlignment = 16;
inline constexpr size_t kSplitAvailAlignment = 2;
inline constexpr size_t kSplitUsedAlignment = 4;

constexpr size_t split_desc_bytes(size_t queue_size) { return queue_size * sizeof(SplitDesc); }
// Both with their event field, which is there only with EVENT_IDX.
constexpr size_t split_avail_bytes(size_t queue_size) { return sizeof(SplitAvail) + 2 * queue_size + 2; }
constexpr size_t split_used_bytes(size_t queue_size) {
  return sizeof(SplitUsed) + sizeof(SplitUsedElem) * queue_size + 2;
}
constexpr size_t split_used_event_offset(size_t queue_size) { return sizeof(SplitAvail) + 2 * queue_size; }
constexpr size_t split_avail_event_offset(size_t queue_size) {
  return sizeof(SplitUsed) + sizeof(SplitUsedElem) * queue_size;
}
static_assert(split_avail_bytes(256) == 4 + 512 + 2 && split_used_bytes(256) == 4 + 2048 + 2);

// With EVENT_IDX: moving an index from `old_index` to `new_index` passes `event`, so the other side wants to know. All
// arithmetic wraps at 16 bits ("Used Buffer Notification Suppression").
constexpr bool need_event(uint16_t event, uint16_t new_index, uint16_t old_index) {
  return static_cast<uint16_t>(new_index - event - 1) < static_cast<uint16_t>(new_index - old_index);
}
static_assert(need_event(7, 8, 7) && !need_event(8, 8, 7) && need_event(0xffff, 0, 0xffff) && !need_event(3, 7, 7));

// ---- Packed ring ("Packed Virtqueues") ------------------------------------------------------------------------------

inline constexpr uint16_t kPackedDescAvail = 1U << 7;
inline constexpr uint16_t kPackedDescUsed = 1U << 15;

struct PackedDesc {
  uint64_t addr = 0;
  uint32_t len = 0;
  uint16_t id = 0;
  uint16_t flags = 0;  // kDescNext, kDescWrite, kDescIndirect, kPackedDescAvail, kPackedDescUsed
};
static_assert(sizeof(PackedDesc) == 16);

// "Event Suppression Structure Layout": one written by the driver, one by the device.
struct PackedEvent {
  uint16_t off_wrap = 0;  // bits 0-14 offset of a descriptor, bit 15 wrap counter; with kPackedEventDesc only
  uint16_t flags = 0;
};
static_assert(sizeof(PackedEvent) == 4);
inline constexpr uint16_t kPackedEventEnable = 0;
inline constexpr uint16_t kPackedEventDisable = 1;
inline constexpr uint16_t kPackedEventDesc = 2;
inline constexpr uint16_t kPackedEventFlagsMask = 3;
inline constexpr uint16_t kPackedWrapBit = 1U << 15;

inline constexpr size_t kPackedDescAlignment = 16;
inline constexpr size_t kPackedEventAlignment = 4;
inline constexpr uint32_t kMaxPackedQueueSize = 32768;

// ---- Block device ("Block Device") ----------------------------------------------------------------------------------

inline constexpr uint64_t kSectorSize = 512;  // of every sector number and count, whatever blk_size is
inline constexpr unsigned kSectorShift = 9;
static_assert(kSectorSize == uint64_t{1} << kSectorShift);

// "Device configuration layout". Packed because the 8-byte first member would otherwise pad it to 64.
struct [[gnu::packed]] BlkConfig {
  uint64_t capacity = 0;  // sectors
  uint32_t size_max = 0;
  uint32_t seg_max = 0;
  uint16_t cylinders = 0;
  uint8_t heads = 0;
  uint8_t sectors = 0;
  uint32_t blk_size = 0;
  uint8_t physical_block_exp = 0;
  uint8_t alignment_offset = 0;
  uint16_t min_io_size = 0;
  uint32_t opt_io_size = 0;
  uint8_t writeback = 0;
  uint8_t unused0 = 0;
  uint16_t num_queues = 0;
  uint32_t max_discard_sectors = 0;
  uint32_t max_discard_seg = 0;
  uint32_t discard_sector_alignment = 0;
  uint32_t max_write_zeroes_sectors = 0;
  uint32_t max_write_zeroes_seg = 0;
  uint8_t write_zeroes_may_unmap = 0;
  uint8_t unused1[3] = {};
};
static_assert(sizeof(BlkConfig) == 60);
static_assert(offsetof(BlkConfig, blk_size) == 20 && offsetof(BlkConfig, physical_block_exp) == 24);
static_assert(offsetof(BlkConfig, writeback) == 32 && offsetof(BlkConfig, num_queues) == 34);
static_assert(offsetof(BlkConfig, max_discard_sectors) == 36 && offsetof(BlkConfig, max_write_zeroes_sectors) == 48);
static_assert(offsetof(BlkConfig, write_zeroes_may_unmap) == 56);

// "Device Operation": header (device-readable), data, then one status byte (device-writable, the chain's last).
enum class BlkRequestType : uint32_t {
  kIn = 0,
  kOut = 1,
  kFlush = 4,
  kGetId = 8,
  kGetLifetime = 10,
  kDiscard = 11,
  kWriteZeroes = 13,
  kSecureErase = 14,
};

enum class BlkStatus : uint8_t {
  kOk = 0,
  kIoErr = 1,
  kUnsupp = 2,
};

struct BlkRequestHeader {
  uint32_t type = 0;
  uint32_t reserved = 0;  // legacy: ioprio
  uint64_t sector = 0;    // reads and writes only
};
static_assert(sizeof(BlkRequestHeader) == 16);

inline constexpr uint32_t kBlkIdSize = 20;  // of GET_ID's answer, zero padded, not terminated when full

// A segment of DISCARD, WRITE_ZEROES and SECURE_ERASE.
struct BlkDiscardSegment {
  uint64_t sector = 0;
  uint32_t num_sectors = 0;
  uint32_t flags = 0;  // bit 0 unmap (WRITE_ZEROES only); the others are reserved
};
static_assert(sizeof(BlkDiscardSegment) == 16);
inline constexpr uint32_t kBlkUnmapFlag = 1U << 0;

}  // namespace sluice::vhost
