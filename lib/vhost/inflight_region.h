// InflightRegion: the buffer in which a back end notes which requests it has taken, so that the next one, after a
// crash, takes up what was in flight. The front end keeps it meanwhile, and hands it back with its next connection.
//
// Its layout is the specification's, and that of libvhost-user and DPDK: a part for each queue, one after the other.
// What is in it is the front end's to change at any time: see SplitInflight and PackedInflight, which read it once.
//
// Thread:     any; each queue's part belongs to the queue's thread.
// Ownership:  shared by the session and its queues. The file is the front end's too.
// Source:     Vhost-user Protocol, "Inflight I/O tracking", "Inflight description".
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"
#include "lib/vhost/memory_guard.h"
#include "lib/virtio/virtio.h"
#include "lib/virtio/wire.h"

namespace sluice::vhost {

inline constexpr uint16_t kInflightVersion = 1;  // 0: nobody has used this part yet
inline constexpr size_t kInflightAlignment = 64;

// --- Of a split ring: this, then an entry for each descriptor ---
struct SplitInflightHeader {
  uint64_t features = 0;
  uint16_t version = 0;
  uint16_t desc_num = 0;  // entries
  uint16_t last_batch_head = 0;
  uint16_t used_idx = 0;
};
static_assert(sizeof(SplitInflightHeader) == 16 && offsetof(SplitInflightHeader, used_idx) == 14);

struct SplitInflightEntry {
  uint8_t inflight = 0;  // of a chain's first descriptor
  uint8_t padding[5] = {};
  uint16_t next = 0;  // in the list of the last batch
  uint64_t counter = 0;
};
static_assert(sizeof(SplitInflightEntry) == 16 && offsetof(SplitInflightEntry, next) == 6);

// --- Of a packed ring: this, then as many entries as there are descriptors ---
// Places in the ring. They have a word of their own, which is written as a whole.
struct PackedInflightPlaces {
  uint16_t used_idx = 0;
  uint16_t old_used_idx = 0;
  uint8_t used_wrap_counter = 0;
  uint8_t old_used_wrap_counter = 0;
  uint8_t padding[2] = {};
};
static_assert(sizeof(PackedInflightPlaces) == 8);

struct PackedInflightHeader {
  uint64_t features = 0;
  uint16_t version = 0;
  uint16_t desc_num = 0;  // entries
  uint16_t free_head = 0;
  uint16_t old_free_head = 0;
  alignas(8) PackedInflightPlaces places;
  uint8_t padding[8] = {};  // the specification's structure ends 3 bytes before; the entries begin here all the same
};
static_assert(sizeof(PackedInflightHeader) == 32 && offsetof(PackedInflightHeader, places) == 16);

struct PackedInflightEntry {
  uint8_t inflight = 0;  // of a chain's first entry, as are last, num and counter
  uint8_t padding = 0;
  uint16_t next = 0;  // of a chain, or of the free entries; desc_num is the end of these
  uint16_t last = 0;
  uint16_t num = 0;
  uint64_t counter = 0;
  uint16_t id = 0;
  uint16_t flags = 0;
  uint32_t len = 0;
  uint64_t addr = 0;
};
static_assert(sizeof(PackedInflightEntry) == 32 && offsetof(PackedInflightEntry, addr) == 24);

class InflightRegion {
 public:
  // A queue's part, aligned: DPDK counts three bytes less of the packed header, which comes to the same.
  static uint64_t queue_bytes(bool packed, uint32_t queue_size);

  // A new buffer, as GET_INFLIGHT_FD wants it: a file of zeros that nobody can shrink.
  struct File {
    UniqueFd fd;
    InflightDescription description;
  };
  // Errors: EINVAL (no queues or no descriptors, or more than there can be), those of memfd_create and ftruncate.
  static Result<File> make_file(const InflightDescription& wanted, bool packed);

  // The buffer that SET_INFLIGHT_FD brings. Errors: EINVAL (the description cannot be, or the file is no file, or is
  // too small for it), those of fstat and mmap.
  static Result<std::shared_ptr<const InflightRegion>> map(const InflightDescription& description, bool packed,
                                                           const UniqueFd& fd);
  InflightRegion(const InflightRegion&) = delete;
  InflightRegion& operator=(const InflightRegion&) = delete;
  ~InflightRegion();

  // The part of a queue, if its rings are of this kind; nullptr if there is none.
  std::byte* queue_area(uint32_t index, bool packed) const;
  uint16_t queue_size() const { return description_.queue_size; }
  // What it was made from, for another process.
  const InflightDescription& description() const { return description_; }
  const UniqueFd& file() const { return file_; }
  // Whether the front end has taken a part of it away under the mapping (see MemoryGuard).
  bool lost() const { return guard_->lost(); }

 private:
  InflightRegion(std::byte* address, size_t mapped_bytes, size_t lead, const InflightDescription& description,
                 UniqueFd file);

  std::byte* const address_;
  const size_t mapped_bytes_;
  std::byte* const start_;
  const InflightDescription description_;
  const UniqueFd file_;
  std::unique_ptr<MemoryGuard> guard_;
};

// A chain that was in flight when the last back end ended.
struct UnfinishedChain {
  uint64_t counter = 0;
  uint16_t head = 0;              // split
  std::vector<PackedDesc> descs;  // packed: as they were in the ring
};
// In the order in which they were taken; `next` is the counter of those to come. False if the counters tell no order.
bool sort_by_counter(std::vector<UnfinishedChain>& chains, uint64_t& next);

// Copies what the front end may change at any time, so that it is checked and used as it was at one moment.
template <typename T>
std::vector<T> read_shared(const T* from, size_t count) {
  std::vector<T> copy(count);
  std::memcpy(copy.data(), from, count * sizeof(T));
  // Without this the compiler may read the buffer again instead of keeping the copy.
  asm volatile("" : : "r"(copy.data()) : "memory");
  return copy;
}

// Stores into the buffer, one after the other: what kills this process comes between two of them, or after all.
template <typename T>
void note(T& field, T value) {
  __atomic_store_n(&field, value, __ATOMIC_RELEASE);
}

}  // namespace sluice::vhost
