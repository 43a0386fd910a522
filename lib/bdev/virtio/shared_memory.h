// SharedMemory: the memory that a controller shares with its back end: rings, requests, buffers.
//
// One file in memory, sealed so that nobody can cut it off, in one mapping, and one region to the back end. It is large
// and sparse: pages become memory when they are first used, and buffers that are given back return theirs.
//
// Thread:    any.
// Ownership: shared by the controller and the buffers that were handed out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"
#include "lib/virtio/wire.h"

namespace sluice::virtio {

class SharedMemory {
 public:
  // `size_bytes` is a multiple of the page size. Errors: those of memfd_create, ftruncate and mmap.
  static Result<std::shared_ptr<SharedMemory>> create(uint64_t size_bytes);
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory();

  int fd() const { return fd_.get(); }
  // As SET_MEM_TABLE says it.
  vhost::MemoryRegion region() const {
    return {.guest_address = kAddress, .size = size_, .user_address = kAddress, .mmap_offset = 0};
  }
  bool contains(const void* start, size_t bytes) const {
    const auto offset = static_cast<uint64_t>(static_cast<const std::byte*>(start) - data_);
    return offset < size_ && bytes <= size_ - offset;
  }
  // What the back end calls this place: an address of its own kind, which tells nothing of our address space.
  uint64_t address_of(const void* place) const {
    return kAddress + static_cast<uint64_t>(static_cast<const std::byte*>(place) - data_);
  }

  // Whole pages, zeroed. Errors: ENOMEM.
  Result<std::span<std::byte>> allocate(size_t bytes);
  void free(std::span<std::byte> bytes);

 private:
  static constexpr uint64_t kAddress = uint64_t{1} << 32;

  SharedMemory(UniqueFd fd, std::byte* data, uint64_t size) : fd_(std::move(fd)), data_(data), size_(size) {
    free_[0] = size;
  }

  const UniqueFd fd_;
  std::byte* const data_;
  const uint64_t size_;

  std::mutex mutex_;
  std::map<uint64_t, uint64_t> free_;  // offset and size, neighbours merged
};

}  // namespace sluice::virtio
