// GuestMemory: a guest's RAM in one memfd, cut into regions whose guest physical and front-end user addresses differ,
// so that a back end which mixes up the two address spaces cannot work by accident.
//
// Thread:    any one at a time.
// Ownership: the file lives as long as the object or a receiver of its descriptor; local mappings as long as the
// object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "lib/base/unique_fd.h"
#include "lib/virtio/wire.h"

namespace sluice::test {

using Bytes = std::vector<uint8_t>;

// Where the regions of the default layout are. kHigh lies above 4 GiB; kMiddle and kNext are adjacent in guest physical
// addresses and in nothing else.
enum DefaultRegion : size_t { kLow = 0, kMiddle = 1, kNext = 2, kHigh = 3 };

class GuestMemory {
 public:
  static std::vector<vhost::MemoryRegion> default_layout();
  // `count` regions of `size` each, with gaps between them in all three spaces.
  static std::vector<vhost::MemoryRegion> many_regions(size_t count, uint64_t size);

  // Maps the memory that `layout` describes; the mmap_offsets say where each region lies in the file.
  explicit GuestMemory(std::vector<vhost::MemoryRegion> layout = default_layout());
  // One region whose guest and user addresses are this process's own pointers, as libblkio's.
  static GuestMemory identity(uint64_t size);
  GuestMemory(GuestMemory&& other) noexcept;
  GuestMemory& operator=(GuestMemory&&) = delete;
  ~GuestMemory();

  int fd() const { return fd_.get(); }
  uint64_t file_size() const { return file_size_; }
  const std::vector<vhost::MemoryRegion>& regions() const { return regions_; }

  // The bytes at a guest physical address, which must lie in one region; null if not.
  uint8_t* at(uint64_t gpa, size_t size = 1) const;
  template <typename T>
  T* as(uint64_t gpa) const {
    return reinterpret_cast<T*>(at(gpa, sizeof(T)));
  }
  uint64_t user_address(uint64_t gpa) const;

  // These may cross adjacent regions.
  void write(uint64_t gpa, std::span<const uint8_t> data) const;
  Bytes read(uint64_t gpa, size_t size) const;

  // Guest physical address of fresh memory in a region. Memory comes back only all at once, by release().
  uint64_t allocate(size_t region, size_t size, size_t alignment = 16);
  using Mark = std::vector<uint64_t>;
  Mark mark() const { return allocated_; }
  void release(const Mark& mark) { allocated_ = mark; }

 private:
  struct Mapped {};
  GuestMemory(Mapped, uint64_t size);
  void map(uint64_t size);

  UniqueFd fd_;
  uint64_t file_size_ = 0;
  uint8_t* base_ = nullptr;
  std::vector<vhost::MemoryRegion> regions_;
  std::vector<uint64_t> allocated_;  // bytes, per region
};

}  // namespace sluice::test
