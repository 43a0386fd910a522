#include "lib/vhost/dirty_log.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>

#include "lib/vhost/limits.h"

namespace sluice::vhost {
namespace {

constexpr uint64_t kPagesPerByte = 8;

}  // namespace

Result<std::shared_ptr<DirtyLog>> DirtyLog::map(const UniqueFd& fd, const LogDescription& description) {
  if (description.size == 0) return fail(EINVAL, "a dirty log is empty");
  if (description.size > kMaxDirtyLogBytes) return fail(EFBIG, "a dirty log is larger than any guest's memory needs");
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return fail_errno("cannot look at a dirty log's descriptor");
  if (!S_ISREG(info.st_mode)) return fail(EINVAL, "a dirty log is not a file");
  const auto file_bytes = static_cast<uint64_t>(info.st_size);
  if (description.size > file_bytes || description.mmap_offset > file_bytes - description.size)
    return fail(EINVAL, "a dirty log is larger than its file");
  // The block size of a hugetlbfs file is its page size.
  const uint64_t page = std::max<uint64_t>(4096, static_cast<uint64_t>(info.st_blksize));
  UniqueFd file(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  if (!file) return fail_errno("cannot keep a dirty log");
  const uint64_t lead = description.mmap_offset % page;
  const uint64_t bytes = (lead + description.size + page - 1) / page * page;
  void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(),
                         static_cast<off_t>(description.mmap_offset - lead));
  if (address == MAP_FAILED) return fail_errno("cannot map a dirty log");
  return std::make_shared<DirtyLog>(Passkey(), address, bytes, lead, description, std::move(file));
}

DirtyLog::DirtyLog(Passkey, void* address, size_t mapped_bytes, size_t lead_bytes, const LogDescription& description,
                   UniqueFd file)
    : address_(address),
      mapped_bytes_(mapped_bytes),
      bits_(static_cast<uint8_t*>(address) + lead_bytes),
      description_(description),
      file_(std::move(file)),
      guard_(std::make_unique<MemoryGuard>(address, mapped_bytes)) {}

DirtyLog::~DirtyLog() {
  guard_.reset();
  ::munmap(address_, mapped_bytes_);
}

void DirtyLog::mark(uint64_t guest_address, uint64_t length_bytes) {
  if (length_bytes == 0) return;
  uint64_t page = guest_address / kLogPageSize;
  uint64_t end = page + (guest_address % kLogPageSize + length_bytes - 1) / kLogPageSize + 1;
  if (end > description_.size * kPagesPerByte) {
    overrun_.store(true, std::memory_order_relaxed);
    end = description_.size * kPagesPerByte;
  }
  while (page < end) {  // the bits of a byte at a time
    const uint64_t first = page % kPagesPerByte;
    const uint64_t count = std::min(kPagesPerByte - first, end - page);
    const auto bits = static_cast<uint8_t>(((1U << count) - 1) << first);
    // Also where they are set: the front end may be about to clear them and copy the page, and must see what was
    // written before.
    __atomic_fetch_or(&bits_[page / kPagesPerByte], bits, __ATOMIC_SEQ_CST);
    page += count;
  }
}

}  // namespace sluice::vhost
