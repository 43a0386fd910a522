// The vhost-user wire format: message header, request numbers, feature bits, payloads and limits.
//
// A message is one Header, then `size` bytes of payload, on a UNIX stream socket; descriptors travel as ancillary data
// of the header's first byte. Every integer has the host's byte order. The structs are the bytes on the socket: none
// has padding that is not a named member, which the static_asserts prove. A payload in a receive buffer follows the
// 12-byte header and may therefore be unaligned: copy it out with memcpy, never cast.
//
// Names are the specification's without VHOST_USER_, VHOST_USER_BACKEND_ and VHOST_USER_PROTOCOL_F_.
//
// Source: Vhost-user Protocol (docs/interop/vhost-user.rst in QEMU): "Message Specification", "Protocol features",
// "Front-end message types", "Back-end message types".
#pragma once

#include <cstddef>
#include <cstdint>

namespace sluice::vhost {

// ---- Header ("Message Specification / Header") ----------------------------------------------------------------------

struct Header {
  uint32_t request = 0;
  uint32_t flags = 0;
  uint32_t size = 0;  // of the payload alone, in bytes
};
static_assert(sizeof(Header) == 12);

inline constexpr uint32_t kVersionMask = 0x3;
inline constexpr uint32_t kVersion = 0x1;
inline constexpr uint32_t kReplyFlag = 1U << 2;
inline constexpr uint32_t kNeedReplyFlag = 1U << 3;
// What the flags of every reply are. Front ends compare for equality, so need_reply is never echoed.
inline constexpr uint32_t kReplyFlags = kVersion | kReplyFlag;

// ---- Requests of the front end ("Front-end message types") ----------------------------------------------------------

enum class Request : uint32_t {
  kGetFeatures = 1,
  kSetFeatures = 2,
  kSetOwner = 3,
  kResetOwner = 4,  // deprecated; never sent by a current front end
  kSetMemTable = 5,
  kSetLogBase = 6,
  kSetLogFd = 7,
  kSetVringNum = 8,
  kSetVringAddr = 9,
  kSetVringBase = 10,
  kGetVringBase = 11,
  kSetVringKick = 12,
  kSetVringCall = 13,
  kSetVringErr = 14,
  kGetProtocolFeatures = 15,
  kSetProtocolFeatures = 16,
  kGetQueueNum = 17,
  kSetVringEnable = 18,
  kSendRarp = 19,
  kNetSetMtu = 20,
  kSetBackendReqFd = 21,
  kIotlbMsg = 22,
  kSetVringEndian = 23,
  kGetConfig = 24,
  kSetConfig = 25,
  kCreateCryptoSession = 26,
  kCloseCryptoSession = 27,
  kPostcopyAdvise = 28,
  kPostcopyListen = 29,
  kPostcopyEnd = 30,
  kGetInflightFd = 31,
  kSetInflightFd = 32,
  kGpuSetSocket = 33,
  kResetDevice = 34,
  kVringKick = 35,
  kGetMaxMemSlots = 36,
  kAddMemReg = 37,
  kRemMemReg = 38,
  kSetStatus = 39,
  kGetStatus = 40,
  kGetSharedObject = 41,
  kSetDeviceStateFd = 42,
  kCheckDeviceState = 43,
  kGetShmemConfig = 44,
  kGetVringBaseSkipDrain = 45,
};
inline constexpr uint32_t kMaxRequest = 45;

// ---- Requests of the back end ("Back-end message types"), on the SET_BACKEND_REQ_FD channel -------------------------

enum class BackendRequest : uint32_t {
  kIotlbMsg = 1,
  kConfigChangeMsg = 2,
  kVringHostNotifierMsg = 3,
  kVringCall = 4,
  kVringErr = 5,
  kSharedObjectAdd = 6,
  kSharedObjectRemove = 7,
  kSharedObjectLookup = 8,
  kShmemMap = 9,
  kShmemUnmap = 10,
};

// ---- Features -------------------------------------------------------------------------------------------------------

constexpr uint64_t feature_bit(unsigned number) { return uint64_t{1} << number; }

// Bits of GET/SET_FEATURES that belong to vhost, not to virtio.
inline constexpr uint64_t kFeatureLogAll = feature_bit(26);            // mark guest pages that are written
inline constexpr uint64_t kFeatureProtocolFeatures = feature_bit(30);  // GET/SET_PROTOCOL_FEATURES exist

// Bits of GET/SET_PROTOCOL_FEATURES ("Protocol features").
inline constexpr uint64_t kProtocolMq = feature_bit(0);
inline constexpr uint64_t kProtocolLogShmfd = feature_bit(1);
inline constexpr uint64_t kProtocolRarp = feature_bit(2);
inline constexpr uint64_t kProtocolReplyAck = feature_bit(3);
inline constexpr uint64_t kProtocolMtu = feature_bit(4);
inline constexpr uint64_t kProtocolBackendReq = feature_bit(5);
inline constexpr uint64_t kProtocolCrossEndian = feature_bit(6);
inline constexpr uint64_t kProtocolCryptoSession = feature_bit(7);
inline constexpr uint64_t kProtocolPagefault = feature_bit(8);
inline constexpr uint64_t kProtocolConfig = feature_bit(9);
inline constexpr uint64_t kProtocolBackendSendFd = feature_bit(10);
inline constexpr uint64_t kProtocolHostNotifier = feature_bit(11);
inline constexpr uint64_t kProtocolInflightShmfd = feature_bit(12);
inline constexpr uint64_t kProtocolResetDevice = feature_bit(13);
inline constexpr uint64_t kProtocolInbandNotifications = feature_bit(14);
inline constexpr uint64_t kProtocolConfigureMemSlots = feature_bit(15);
inline constexpr uint64_t kProtocolStatus = feature_bit(16);
inline constexpr uint64_t kProtocolXenMmap = feature_bit(17);
inline constexpr uint64_t kProtocolSharedObject = feature_bit(18);
inline constexpr uint64_t kProtocolDeviceState = feature_bit(19);
inline constexpr uint64_t kProtocolGetVringBaseInflight = feature_bit(20);
// Bit 21 is GPA_ADDRESSES in the specification and SHMEM in rust-vmm and crosvm: nobody can offer it safely.
inline constexpr uint64_t kProtocolGpaAddresses = feature_bit(21);
inline constexpr uint64_t kProtocolShmem = feature_bit(22);
inline constexpr uint64_t kProtocolGetVringBaseSkipDrain = feature_bit(23);

// ---- Limits ---------------------------------------------------------------------------------------------------------

inline constexpr uint32_t kMaxRegionsBaseline = 8;  // SET_MEM_TABLE without CONFIGURE_MEM_SLOTS
inline constexpr uint32_t kMaxRegions = 32;         // SET_MEM_TABLE with it (Cloud Hypervisor sends so many at once)
inline constexpr uint64_t kMaxMemSlots = 509;       // answer to GET_MAX_MEM_SLOTS: as many as KVM gives a guest
inline constexpr uint32_t kMaxConfigSize = 256;     // of the device configuration space
inline constexpr uint32_t kMaxPayloadSize = 4096;   // a header that announces more ends the session
inline constexpr size_t kMaxFds = kMaxRegions;      // that one message can carry

// ---- Payloads ("Message Specification / Payload") -------------------------------------------------------------------

struct U64Payload {
  uint64_t value = 0;
};
static_assert(sizeof(U64Payload) == 8);

// "A vring state description": SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_ENABLE, VRING_KICK.
struct VringState {
  uint32_t index = 0;
  uint32_t num = 0;
};
static_assert(sizeof(VringState) == 8);

// "A vring address description": SET_VRING_ADDR. desc, used and avail are front-end user addresses (I/O virtual
// addresses when an IOMMU is negotiated); log is a guest physical address and meant only with kVringLogFlag.
struct VringAddr {
  uint32_t index = 0;
  uint32_t flags = 0;
  uint64_t desc = 0;
  uint64_t used = 0;
  uint64_t avail = 0;
  uint64_t log = 0;
};
static_assert(sizeof(VringAddr) == 40 && offsetof(VringAddr, log) == 32);
inline constexpr uint32_t kVringLogFlag = 1U << 0;

// SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR pass a u64: the ring's index and whether a descriptor is missing.
inline constexpr uint64_t kVringIndexMask = 0xff;
inline constexpr uint64_t kVringNoFdFlag = uint64_t{1} << 8;

// "A memory region description".
struct MemoryRegion {
  uint64_t guest_address = 0;  // what descriptors hold
  uint64_t size = 0;
  uint64_t user_address = 0;  // what SET_VRING_ADDR holds
  uint64_t mmap_offset = 0;   // into the region's descriptor
};
static_assert(sizeof(MemoryRegion) == 32);

// "Multiple memory regions description": SET_MEM_TABLE is this, then num_regions times MemoryRegion, and as many
// descriptors in the same order. Bytes after the last region are allowed: UML always sends room for two.
struct MemTableHeader {
  uint32_t num_regions = 0;
  uint32_t padding = 0;
};
static_assert(sizeof(MemTableHeader) == 8);

// "Single memory region description": ADD_MEM_REG, REM_MEM_REG.
struct SingleMemoryRegion {
  uint64_t padding = 0;
  MemoryRegion region;
};
static_assert(sizeof(SingleMemoryRegion) == 40 && offsetof(SingleMemoryRegion, region) == 8);

// "Virtio device config space": GET_CONFIG and SET_CONFIG are this, then `size` bytes of data.
struct ConfigHeader {
  uint32_t offset = 0;
  uint32_t size = 0;
  uint32_t flags = 0;  // to be ignored in GET_CONFIG: some front ends set kConfigLiveMigration there
};
static_assert(sizeof(ConfigHeader) == 12);
inline constexpr uint32_t kConfigWritable = 0;       // SET_CONFIG by the driver: only fields it may write
inline constexpr uint32_t kConfigLiveMigration = 1;  // SET_CONFIG that restores a migrated device

// "Log description": SET_LOG_BASE.
struct LogDescription {
  uint64_t size = 0;
  uint64_t mmap_offset = 0;
};
static_assert(sizeof(LogDescription) == 16);
inline constexpr uint64_t kLogPageSize = 4096;  // guest physical bytes a bit of the log stands for

// "Inflight description": GET_INFLIGHT_FD, SET_INFLIGHT_FD. The specification counts 20 bytes; every implementation
// sends its C struct of 24 and refuses other sizes.
struct InflightDescription {
  uint64_t mmap_size = 0;
  uint64_t mmap_offset = 0;
  uint16_t num_queues = 0;
  uint16_t queue_size = 0;
  uint32_t padding = 0;
};
static_assert(sizeof(InflightDescription) == 24 && offsetof(InflightDescription, num_queues) == 16);

// "An IOTLB message".
struct IotlbMessage {
  uint64_t iova = 0;
  uint64_t size = 0;
  uint64_t user_address = 0;
  uint8_t permissions = 0;
  uint8_t type = 0;
  uint8_t padding[6] = {};
};
static_assert(sizeof(IotlbMessage) == 32);

// "Device state transfer parameters": SET_DEVICE_STATE_FD.
struct DeviceStateTransfer {
  uint32_t direction = 0;  // 0 save, 1 load
  uint32_t phase = 0;      // 0 stopped
};
static_assert(sizeof(DeviceStateTransfer) == 8);

// ---- Limits between the payloads ------------------------------------------------------------------------------------

constexpr size_t mem_table_size(size_t num_regions) {
  return sizeof(MemTableHeader) + num_regions * sizeof(MemoryRegion);
}
constexpr size_t config_message_size(size_t data_size) { return sizeof(ConfigHeader) + data_size; }

static_assert(mem_table_size(kMaxRegions) <= kMaxPayloadSize);
static_assert(config_message_size(kMaxConfigSize) <= kMaxPayloadSize);
static_assert(kMaxRegions <= kMaxMemSlots);

}  // namespace sluice::vhost
