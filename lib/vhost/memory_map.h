// MemoryMap: a guest's memory as the front end has shared it, and the translation of its two address spaces.
//
// Thread:    immutable once built: any thread. Building: the session's.
// Ownership: regions share their mapping with the maps they were copied from, so memory stays mapped as long as any map
//            that requests in flight refer to.
// Source:    Vhost-user Protocol, "Memory access" and "Memory region description".
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"
#include "lib/virtio/wire.h"

namespace sluice::vhost {

class MemoryMap {
 public:
  // An empty map.
  MemoryMap() = default;

  // This map with one region more. Regions of `reuse` that show the same part of the same file are not mapped again.
  // A file has to be one that the kernel keeps in memory (memfd, tmpfs, hugetlbfs) unless `any_file`: a page of another
  // one comes from a disk, or from a file system that the front end itself may be, and whoever touches it waits.
  // Errors: EINVAL (empty, wraps, overlaps, not backed by the file, not such a file), ENOSPC (too many, or too large),
  // ENOMEM (of all guests together), those of fstat and mmap.
  Result<MemoryMap> with(const MemoryRegion& region, const UniqueFd& fd, const MemoryMap& reuse,
                         bool any_file = false) const;
  // This map without the region of these addresses and size. Errors: ENOENT.
  Result<MemoryMap> without(const MemoryRegion& region) const;

  // What with() was given, for another process to map; the descriptors are this map's.
  struct Part {
    MemoryRegion region;
    int fd = -1;
  };
  std::vector<Part> parts() const;

  // Appends the pieces of guest physical [address, address + length) to `out`: several where it crosses regions that
  // adjoin. False, with `out` in any state, when a byte of it is not mapped, or `out` would exceed kMaxSegments.
  bool translate(uint64_t guest_address, uint64_t length, std::vector<iovec>& out) const;
  // The whole of the region that an address lies in; of size 0 if it is not mapped.
  struct Window {
    uint64_t guest_address = 0;
    uint64_t size = 0;
    std::byte* host = nullptr;
  };
  Window window_at(uint64_t guest_address) const {
    const Region* region = find(guest_address);
    return region == nullptr ? Window{} : Window{region->guest_address, region->size, region->host};
  }
  // The address of [address, address + length) of the front end's own address space; nullptr unless within one region.
  std::byte* translate_user(uint64_t user_address, uint64_t length) const;

  // Where in guest physical memory a byte of the front end's own address space is. Requires: translate_user() finds it.
  uint64_t guest_address_of(uint64_t user_address) const;

  // Runs fn(guest address, length) for each place at which the guest has these bytes, which translate() has given: one,
  // unless the front end has put the same part of its file into several regions.
  template <typename Fn>
  void for_each_guest_place(const void* host, uint64_t length, Fn fn) const {
    for (const Region& region : regions_) {
      const uint64_t offset = reinterpret_cast<uintptr_t>(host) - reinterpret_cast<uintptr_t>(region.host);
      if (offset < region.size) fn(region.guest_address + offset, std::min(length, region.size - offset));
    }
  }

  // Whether the front end has taken a part of the memory away under its mapping (see MemoryGuard).
  bool lost() const;

 private:
  class Mapping;
  struct Region {
    uint64_t guest_address;
    uint64_t size;
    uint64_t user_address;
    std::byte* host;
    std::shared_ptr<const Mapping> mapping;
  };

  const Region* find(uint64_t guest_address) const {
    // The last region that begins at or before the address.
    const auto after = std::ranges::upper_bound(regions_, guest_address, {}, &Region::guest_address);
    if (after == regions_.begin()) return nullptr;
    const Region& region = *std::prev(after);
    return guest_address - region.guest_address < region.size ? &region : nullptr;
  }

  const Region* find_user(uint64_t user_address) const {
    const auto found = std::ranges::find_if(
        regions_, [user_address](const Region& region) { return user_address - region.user_address < region.size; });
    return found == regions_.end() ? nullptr : &*found;
  }

  std::vector<Region> regions_;  // by guest address
};

}  // namespace sluice::vhost
