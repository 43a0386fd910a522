#include "app/conformance/guest_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace sluice::test {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::abort();
}

}  // namespace

std::vector<vhost::MemoryRegion> GuestMemory::default_layout() {
  return {
      {.guest_address = 0, .size = 640 << 10, .user_address = 0x7f55'0000'0000, .mmap_offset = 16 * kMiB},
      {.guest_address = 1 * kMiB, .size = 4 * kMiB, .user_address = 0x7f66'0000'0000, .mmap_offset = 8 * kMiB},
      {.guest_address = 5 * kMiB, .size = 4 * kMiB, .user_address = 0x7f44'0000'0000, .mmap_offset = 2 * kMiB},
      {.guest_address = 0x1'0000'0000, .size = 8 * kMiB, .user_address = 0x7f77'0000'0000, .mmap_offset = 20 * kMiB},
  };
}

std::vector<vhost::MemoryRegion> GuestMemory::many_regions(size_t count, uint64_t size) {
  std::vector<vhost::MemoryRegion> regions;
  for (size_t i = 0; i < count; i++) {
    regions.push_back({.guest_address = (2 * i + 1) * size,
                       .size = size,
                       .user_address = 0x7f00'0000'0000 + 3 * (count - i) * size,
                       .mmap_offset = i * size});
  }
  return regions;
}

GuestMemory::GuestMemory(std::vector<vhost::MemoryRegion> layout) : regions_(std::move(layout)) {
  uint64_t size = 0;
  for (const auto& region : regions_) size = std::max(size, region.mmap_offset + region.size);
  map(size);
  allocated_.resize(regions_.size());
}

GuestMemory::GuestMemory(Mapped, uint64_t size) {
  map(size);
  auto own = reinterpret_cast<uint64_t>(base_);
  regions_.push_back({.guest_address = own, .size = size, .user_address = own, .mmap_offset = 0});
  allocated_.resize(1);
}

GuestMemory GuestMemory::identity(uint64_t size) { return GuestMemory(Mapped{}, size); }

GuestMemory::GuestMemory(GuestMemory&& other) noexcept
    : fd_(std::move(other.fd_)),
      file_size_(std::exchange(other.file_size_, 0)),
      base_(std::exchange(other.base_, nullptr)),
      regions_(std::move(other.regions_)),
      allocated_(std::move(other.allocated_)) {}

GuestMemory::~GuestMemory() {
  if (base_ != nullptr) ::munmap(base_, file_size_);
}

void GuestMemory::map(uint64_t size) {
  fd_.reset(::memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd_ || ::ftruncate(fd_.get(), static_cast<off_t>(size)) != 0) die("memfd");
  void* address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
  if (address == MAP_FAILED) die("mmap");
  base_ = static_cast<uint8_t*>(address);
  file_size_ = size;
}

uint8_t* GuestMemory::at(uint64_t gpa, size_t size) const {
  for (const auto& region : regions_) {
    if (gpa < region.guest_address || gpa - region.guest_address >= region.size) continue;
    uint64_t offset = gpa - region.guest_address;
    return size <= region.size - offset ? base_ + region.mmap_offset + offset : nullptr;
  }
  return nullptr;
}

uint64_t GuestMemory::user_address(uint64_t gpa) const {
  for (const auto& region : regions_) {
    if (gpa >= region.guest_address && gpa - region.guest_address < region.size)
      return region.user_address + (gpa - region.guest_address);
  }
  return ~uint64_t{0};
}

void GuestMemory::write(uint64_t gpa, std::span<const uint8_t> data) const {
  for (size_t i = 0; i < data.size(); i++) *at(gpa + i) = data[i];
}

Bytes GuestMemory::read(uint64_t gpa, size_t size) const {
  Bytes data(size);
  for (size_t i = 0; i < size; i++) data[i] = *at(gpa + i);
  return data;
}

uint64_t GuestMemory::allocate(size_t region, size_t size, size_t alignment) {
  const auto& place = regions_[region];
  uint64_t offset = (allocated_[region] + alignment - 1) / alignment * alignment;
  if (offset > place.size || size > place.size - offset) die("the test's guest memory is full");
  allocated_[region] = offset + size;
  return place.guest_address + offset;
}

}  // namespace sluice::test
