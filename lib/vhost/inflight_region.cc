#include "lib/vhost/inflight_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>

#include "lib/vhost/limits.h"

namespace sluice::vhost {
namespace {

Result<> check_queues(const InflightDescription& description) {
  if (description.num_queues == 0 || description.num_queues > kMaxQueues)
    return fail(EINVAL, "a buffer for requests in flight is for 1 to 64 queues");
  if (description.queue_size == 0 || description.queue_size > kMaxQueueSize)
    return fail(EINVAL, "a buffer for requests in flight is for queues of 1 to 1024 descriptors");
  return {};
}

uint64_t bytes_needed(const InflightDescription& description, bool packed) {
  return description.num_queues * InflightRegion::queue_bytes(packed, description.queue_size);
}

}  // namespace

uint64_t InflightRegion::queue_bytes(bool packed, uint32_t queue_size) {
  const uint64_t bytes = packed ? sizeof(PackedInflightHeader) + uint64_t{queue_size} * sizeof(PackedInflightEntry)
                                : sizeof(SplitInflightHeader) + uint64_t{queue_size} * sizeof(SplitInflightEntry);
  return (bytes + kInflightAlignment - 1) / kInflightAlignment * kInflightAlignment;
}

Result<InflightRegion::File> InflightRegion::make_file(const InflightDescription& wanted, bool packed) {
  if (auto checked = check_queues(wanted); !checked) return std::unexpected(checked.error());
  File file{
      .fd = UniqueFd(::memfd_create("sluice-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING)),
      .description = {
          .mmap_size = bytes_needed(wanted, packed), .num_queues = wanted.num_queues, .queue_size = wanted.queue_size}};
  if (!file.fd) return fail_errno("cannot make a buffer for requests in flight");
  if (::ftruncate(file.fd.get(), static_cast<off_t>(file.description.mmap_size)) != 0 ||
      ::fcntl(file.fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return fail_errno("cannot size and seal a buffer for requests in flight");
  }
  return file;
}

Result<std::shared_ptr<const InflightRegion>> InflightRegion::map(const InflightDescription& description, bool packed,
                                                                  const UniqueFd& fd) {
  if (auto checked = check_queues(description); !checked) return std::unexpected(checked.error());
  if (description.mmap_size < bytes_needed(description, packed))
    return fail(EINVAL, "a buffer for requests in flight is too small for its queues");
  if (description.mmap_offset % kInflightAlignment != 0)
    return fail(EINVAL, "a buffer for requests in flight does not begin at a multiple of 64");
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return fail_errno("cannot look at the buffer for requests in flight");
  if (!S_ISREG(info.st_mode)) return fail(EINVAL, "a buffer for requests in flight is not a file");
  const auto file_bytes = static_cast<uint64_t>(info.st_size);
  if (description.mmap_offset > file_bytes || description.mmap_size > file_bytes - description.mmap_offset)
    return fail(EINVAL, "a buffer for requests in flight is larger than its file");
  // Of more than any queues need, the rest is of no use.
  InflightDescription used = description;
  used.mmap_size = std::min(description.mmap_size, bytes_needed(description, true));
  // The block size of a hugetlbfs file is its page size, which offset and length of a mapping are multiples of.
  UniqueFd file(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  if (!file) return fail_errno("cannot keep the buffer for requests in flight");
  const uint64_t page = std::max<uint64_t>(4096, static_cast<uint64_t>(info.st_blksize));
  const uint64_t lead = used.mmap_offset % page;
  const uint64_t bytes = (lead + used.mmap_size + page - 1) / page * page;
  void* address =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), static_cast<off_t>(used.mmap_offset - lead));
  if (address == MAP_FAILED) return fail_errno("cannot map the buffer for requests in flight");
  ::madvise(address, bytes, MADV_DONTDUMP);
  return std::shared_ptr<const InflightRegion>(
      new InflightRegion(static_cast<std::byte*>(address), bytes, lead, used, std::move(file)));
}

InflightRegion::InflightRegion(std::byte* address, size_t mapped_bytes, size_t lead,
                               const InflightDescription& description, UniqueFd file)
    : address_(address),
      mapped_bytes_(mapped_bytes),
      start_(address + lead),
      description_(description),
      file_(std::move(file)),
      guard_(std::make_unique<MemoryGuard>(address, mapped_bytes)) {}

InflightRegion::~InflightRegion() {
  guard_.reset();
  ::munmap(address_, mapped_bytes_);
}

std::byte* InflightRegion::queue_area(uint32_t index, bool packed) const {
  const uint64_t each = queue_bytes(packed, description_.queue_size);
  const bool there = index < description_.num_queues && (index + 1) * each <= description_.mmap_size;
  return there ? start_ + index * each : nullptr;
}

bool sort_by_counter(std::vector<UnfinishedChain>& chains, uint64_t& next) {
  std::ranges::sort(chains, {}, &UnfinishedChain::counter);
  if (std::ranges::adjacent_find(chains, {}, &UnfinishedChain::counter) != chains.end()) return false;
  next = chains.empty() ? 0 : chains.back().counter + 1;
  return chains.empty() || next != 0;
}

}  // namespace sluice::vhost
