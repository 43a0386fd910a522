#include "lib/vhost/memory_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>

#include <algorithm>
#include <atomic>
#include <fstream>

#include "lib/base/check.h"
#include "lib/base/descriptor_room.h"
#include "lib/vhost/limits.h"
#include "lib/vhost/memory_guard.h"

namespace sluice::vhost {

namespace {

// How many mappings guests may have. The process has a limit of them, which its own memory must not meet: a quarter is
// left.
uint64_t max_mappings() {
  static const uint64_t limit = [] {
    uint64_t of_process = 65530;
    std::ifstream("/proc/sys/vm/max_map_count") >> of_process;
    return of_process / 4 * 3;
  }();
  return limit;
}

}  // namespace

// One mmap of a part of a file.
class MemoryMap::Mapping {
 public:
  struct Key {
    dev_t device;
    ino_t inode;
    uint64_t offset;
    uint64_t size;
    bool operator==(const Key&) const = default;
  };

  Mapping(const Key& key, std::shared_ptr<const UniqueFd> file, void* address, size_t mapped_bytes, std::byte* start)
      : key_(key),
        file_(std::move(file)),
        address_(address),
        mapped_bytes_(mapped_bytes),
        start_(start),
        guard_(std::make_unique<MemoryGuard>(address, mapped_bytes)) {}
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    guard_.reset();
    ::munmap(address_, mapped_bytes_);
    mapped_total -= mapped_bytes_;
    --mappings_total;
  }

  const Key& key() const { return key_; }
  const std::shared_ptr<const UniqueFd>& file() const { return file_; }
  bool is_of(const struct stat& info) const { return key_.device == info.st_dev && key_.inode == info.st_ino; }
  std::byte* start() const { return start_; }
  bool lost() const { return guard_->lost(); }

  // `much`: for a guest that has more than a small one needs.
  static Result<std::shared_ptr<const Mapping>> make(const Key& key, const struct stat& info,
                                                     std::shared_ptr<const UniqueFd> file, bool much) {
    if (S_ISREG(info.st_mode) && (key.size > static_cast<uint64_t>(info.st_size) ||
                                  key.offset > static_cast<uint64_t>(info.st_size) - key.size)) {
      return fail(EINVAL, "the memory region is larger than its file");
    }
    // The block size of a hugetlbfs file is its page size, which offset and length of a mapping are multiples of.
    const uint64_t page = std::max<uint64_t>(4096, static_cast<uint64_t>(info.st_blksize));
    const uint64_t lead = key.offset % page;
    const uint64_t bytes = (lead + key.size + page - 1) / page * page;
    const auto give_back = [bytes] {
      mapped_total -= bytes;
      --mappings_total;
    };
    const bool room = mapped_total.fetch_add(bytes) + bytes <= (much ? kMaxMappedBytesOfLarge : kMaxMappedBytes);
    if (mappings_total.fetch_add(1) >= (much ? max_mappings() / 2 : max_mappings()) || !room) {
      give_back();
      return fail(ENOMEM, room ? "all guests together have too many regions mapped (sysctl vm.max_map_count)"
                               : "all guests together have too much memory mapped");
    }
    void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file->get(),
                           static_cast<off_t>(key.offset - lead));
    if (address == MAP_FAILED) {
      const int code = errno;
      give_back();
      return fail(code, "cannot map a memory region");
    }
    // A guest's memory in a core dump is the guest's secret, and large.
    ::madvise(address, bytes, MADV_DONTDUMP);
    return std::make_shared<const Mapping>(key, std::move(file), address, bytes,
                                           static_cast<std::byte*>(address) + lead);
  }

 private:
  const Key key_;
  const std::shared_ptr<const UniqueFd> file_;  // to hand it over
  void* const address_;
  const size_t mapped_bytes_;
  std::byte* const start_;
  std::unique_ptr<MemoryGuard> guard_;
  // Of all sessions.
  static inline std::atomic<uint64_t> mapped_total{0};  // bytes
  static inline std::atomic<uint64_t> mappings_total{0};
};

namespace {

bool wraps(uint64_t start, uint64_t size) { return start + size < start; }
bool overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size) { return a < b + b_size && b < a + a_size; }

}  // namespace

Result<MemoryMap> MemoryMap::with(const MemoryRegion& region, const UniqueFd& fd, const MemoryMap& reuse,
                                  bool any_file) const {
  if (region.size == 0) return fail(EINVAL, "a memory region is empty");
  if (wraps(region.guest_address, region.size) || wraps(region.user_address, region.size) ||
      wraps(region.mmap_offset, region.size)) {
    return fail(EINVAL, "a memory region wraps around");
  }
  if (regions_.size() >= kMaxMemSlots) return fail(ENOSPC, "there are too many memory regions");
  uint64_t total_bytes = region.size;
  for (const Region& other : regions_) {
    total_bytes += other.size;
    if (overlap(region.guest_address, region.size, other.guest_address, other.size) ||
        overlap(region.user_address, region.size, other.user_address, other.size)) {
      return fail(EINVAL, "memory regions overlap");
    }
  }
  if (region.size > kMaxGuestBytes || total_bytes > kMaxGuestBytes) {
    return fail(ENOSPC, "the guest's memory is too large");
  }
  // Only files in memory know seals. Asked first: this cannot wait for a file system, as the others can.
  if (!any_file && ::fcntl(fd.get(), F_GET_SEALS) < 0)
    return fail(EINVAL, "a guest's memory is to be a memfd, or a file on tmpfs or hugetlbfs (or set any_memory_file)");
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return fail_errno("cannot look at a memory region's descriptor");
  const Mapping::Key key{
      .device = info.st_dev, .inode = info.st_ino, .offset = region.mmap_offset, .size = region.size};
  std::shared_ptr<const Mapping> mapping;
  std::shared_ptr<const UniqueFd> file;  // one for all regions in it
  for (const std::vector<Region>* others : {&reuse.regions_, &regions_}) {
    for (const Region& other : *others) {
      if (other.mapping->is_of(info)) file = other.mapping->file();
      if (others == &reuse.regions_ && other.mapping->key() == key && !other.mapping->lost()) mapping = other.mapping;
    }
  }
  if (mapping == nullptr) {
    const bool many = regions_.size() >= kFewRegions;
    if (file == nullptr) {
      file = std::make_shared<const UniqueFd>(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
      if (!*file) return fail_errno("cannot keep a memory region's descriptor");
      if (many && descriptor_room(file->get()) != DescriptorRoom::kPlenty)
        return fail(EMFILE, "descriptors are scarce, and this guest's memory is in many files (ulimit -n)");
    }
    auto made = Mapping::make(key, info, std::move(file), many || total_bytes > kSmallGuestBytes);
    if (!made) return std::unexpected(made.error());
    mapping = std::move(*made);
  }
  MemoryMap map = *this;
  const auto place = std::ranges::upper_bound(map.regions_, region.guest_address, {}, &Region::guest_address);
  std::byte* const start = mapping->start();
  map.regions_.insert(place, {region.guest_address, region.size, region.user_address, start, std::move(mapping)});
  return map;
}

Result<MemoryMap> MemoryMap::without(const MemoryRegion& region) const {
  MemoryMap map = *this;
  const size_t removed = std::erase_if(map.regions_, [&region](const Region& other) {
    return other.guest_address == region.guest_address && other.user_address == region.user_address &&
           other.size == region.size;
  });
  if (removed == 0) return fail(ENOENT, "there is no such memory region");
  return map;
}

std::vector<MemoryMap::Part> MemoryMap::parts() const {
  std::vector<Part> parts;
  for (const Region& region : regions_) {
    parts.push_back({.region = {.guest_address = region.guest_address,
                                .size = region.size,
                                .user_address = region.user_address,
                                .mmap_offset = region.mapping->key().offset},
                     .fd = region.mapping->file()->get()});
  }
  return parts;
}

bool MemoryMap::translate(uint64_t guest_address, uint64_t length, std::vector<iovec>& out) const {
  while (length > 0) {
    const Region* region = find(guest_address);
    if (region == nullptr || out.size() >= kMaxSegments) return false;
    const uint64_t offset = guest_address - region->guest_address;
    const uint64_t piece = std::min(length, region->size - offset);
    out.push_back({.iov_base = region->host + offset, .iov_len = piece});
    guest_address += piece;
    length -= piece;
  }
  return true;
}

bool MemoryMap::lost() const {
  return std::ranges::any_of(regions_, [](const Region& region) { return region.mapping->lost(); });
}

std::byte* MemoryMap::translate_user(uint64_t user_address, uint64_t length) const {
  const Region* region = find_user(user_address);
  if (region == nullptr) return nullptr;
  const uint64_t offset = user_address - region->user_address;
  return length <= region->size - offset ? region->host + offset : nullptr;
}

uint64_t MemoryMap::guest_address_of(uint64_t user_address) const {
  const Region* region = find_user(user_address);
  CHECK(region != nullptr);
  return region->guest_address + (user_address - region->user_address);
}

}  // namespace sluice::vhost
