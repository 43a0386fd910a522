#include "lib/bdev/virtio/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <iterator>

#include "lib/base/check.h"

namespace sluice::virtio {
namespace {

constexpr uint64_t kPage = 4096;

uint64_t whole_pages(uint64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

}  // namespace

Result<std::shared_ptr<SharedMemory>> SharedMemory::create(uint64_t size_bytes) {
  CHECK(size_bytes > 0 && size_bytes % kPage == 0);
  UniqueFd fd(::memfd_create("virtio-bdev", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return fail_errno("cannot make a file in memory");
  if (::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) return fail_errno("cannot size a file in memory");
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return fail_errno("cannot seal a file in memory");
  }
  void* data = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd.get(), 0);
  if (data == MAP_FAILED) return fail_errno("cannot map a file in memory");
  // Only costs speed where the system does not allow it.
  ::madvise(data, size_bytes, MADV_HUGEPAGE);
  ::madvise(data, size_bytes, MADV_DONTDUMP);
  return std::shared_ptr<SharedMemory>(new SharedMemory(std::move(fd), static_cast<std::byte*>(data), size_bytes));
}

SharedMemory::~SharedMemory() { ::munmap(data_, size_); }

Result<std::span<std::byte>> SharedMemory::allocate(size_t bytes) {
  const uint64_t wanted = whole_pages(bytes);
  if (wanted < bytes || wanted == 0) return fail(ENOMEM, "this is no size for shared memory");
  const std::lock_guard lock(mutex_);
  for (auto place = free_.begin(); place != free_.end(); ++place) {
    const auto [offset, size] = *place;
    if (size < wanted) continue;
    free_.erase(place);
    if (size > wanted) free_[offset + wanted] = size - wanted;
    return std::span(data_ + offset, bytes);
  }
  return fail(ENOMEM, "the memory that is shared with the back end is used up");
}

void SharedMemory::free(std::span<std::byte> bytes) {
  uint64_t offset = static_cast<uint64_t>(bytes.data() - data_);
  uint64_t size = whole_pages(bytes.size());
  // Gives the pages back; the next user finds zeroes. Where that fails it zeroes them itself.
  if (::madvise(data_ + offset, size, MADV_REMOVE) != 0) __builtin_memset(data_ + offset, 0, size);
  const std::lock_guard lock(mutex_);
  const auto after = free_.lower_bound(offset);
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    CHECK(before->first + before->second <= offset);
    if (before->first + before->second == offset) {
      offset = before->first;
      size += before->second;
      free_.erase(before);
    }
  }
  if (after != free_.end() && offset + size == after->first) {
    size += after->second;
    free_.erase(after);
  }
  free_[offset] = size;
}

}  // namespace sluice::virtio
