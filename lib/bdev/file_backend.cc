#include "lib/bdev/file_backend.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/stat.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>

#include "lib/base/log.h"

namespace sluice {
namespace {

constexpr uint32_t kMaxBlockBytes = 64U << 10;
// A direct request pins its pages while it is submitted, a buffered one is copied then: neither may take long.
constexpr uint64_t kMaxDirectBytes = 4U << 20;
constexpr uint64_t kMaxBufferedBytes = 1U << 20;

// Never written: a source of zeroes, aligned for any device.
alignas(4096) std::byte zeroes[256U << 10];

}  // namespace

Result<std::unique_ptr<FileBackend>> FileBackend::open(const std::string& filename, uint32_t block_size_bytes,
                                                       bool readonly) {
  std::unique_ptr<FileBackend> file(new FileBackend);
  if (auto opened = file->open_fd(filename, readonly); !opened) return std::unexpected(opened.error());
  if (auto locked = file->lock(filename, readonly); !locked) return std::unexpected(locked.error());
  if (auto found = file->find_limits(block_size_bytes); !found) return std::unexpected(found.error());
  const Result<uint64_t> size_bytes = file->size_bytes();
  if (!size_bytes) return std::unexpected(size_bytes.error());
  file->opened_size_bytes_ = *size_bytes;
  // Otherwise the first read after a write makes the file system note the time, in its journal. Only the owner of the
  // file, or root, may ask for this.
  if (const int flags = ::fcntl(file->fd(), F_GETFL); flags >= 0) ::fcntl(file->fd(), F_SETFL, flags | O_NOATIME);
  file->find_discard(readonly);
  if (!file->direct_) {
    log(LogLevel::kNotice, LogFlag::kBdev, "{}: no direct I/O to this file; it goes through the page cache", filename);
  }
  return file;
}

FileBackend::~FileBackend() {
  // The kernel may hold the open file a little longer than we do (as a registered file of an io_uring, up to a second
  // on Linux 6.1), and with it the lock.
  struct flock whole{};
  whole.l_type = F_UNLCK;
  whole.l_whence = SEEK_SET;
  if (fd_ && !block_device_) ::fcntl(fd_.get(), F_OFD_SETLK, &whole);
}

Result<> FileBackend::open_fd(const std::string& filename, bool readonly) {
  // Looks before it opens, as opening a FIFO waits and opening a tape winds it, and again at what was opened.
  struct stat status{};
  if (::stat(filename.c_str(), &status) != 0) return fail_errno("cannot find the file");
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
    return fail(EINVAL, "the file is neither a block device nor a regular file");
  }
  int flags = O_CLOEXEC | (readonly ? O_RDONLY : O_RDWR);
  // Keeps mounted file systems and other exclusive openers away; only a reader may share the device.
  if (S_ISBLK(status.st_mode) && !readonly) flags |= O_EXCL;
  fd_.reset(::open(filename.c_str(), flags | O_DIRECT));
  direct_ = static_cast<bool>(fd_);
  if (!fd_ && errno == EINVAL) fd_.reset(::open(filename.c_str(), flags));
  if (!fd_) {
    if (errno == EBUSY) return fail(EBUSY, "the block device is in use (mounted, or opened by another program)");
    return fail_errno("cannot open the file");
  }
  if (::fstat(fd_.get(), &status) != 0) return fail_errno("cannot examine the file");
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
    return fail(EINVAL, "the file is neither a block device nor a regular file");
  }
  block_device_ = S_ISBLK(status.st_mode);
  device_number_ = status.st_rdev;
  preferred_bytes_ = static_cast<uint32_t>(status.st_blksize);
  return {};
}

// Of the open file, not of the process: so that two bdevs of one daemon are kept apart as well, and closing one of
// several descriptors does not unlock.
Result<> FileBackend::lock(const std::string& filename, bool readonly) const {
  if (block_device_) return {};
  struct flock whole{};
  whole.l_type = readonly ? F_RDLCK : F_WRLCK;
  whole.l_whence = SEEK_SET;
  if (::fcntl(fd_.get(), F_OFD_SETLK, &whole) == 0) return {};
  if (errno == EAGAIN || errno == EACCES) return fail(EBUSY, "the file is in use by another bdev or another program");
  log(LogLevel::kWarning, LogFlag::kBdev, "{}: cannot be locked against use by others (errno {})", filename, errno);
  return {};
}

Result<> FileBackend::find_limits(uint32_t block_size_bytes) {
  uint32_t least_bytes = 512;
  uint32_t memory_alignment_bytes = 0;
  uint32_t physical_bytes = 0;
  if (block_device_) {
    int logical = 0;
    unsigned physical = 0;
    if (::ioctl(fd_.get(), BLKSSZGET, &logical) != 0) return fail_errno("cannot get the block size of the device");
    if (::ioctl(fd_.get(), BLKPBSZGET, &physical) != 0) return fail_errno("cannot get the block size of the device");
    least_bytes = static_cast<uint32_t>(logical);
    physical_bytes = physical;
  }
  if (direct_) {
    memory_alignment_bytes = least_bytes;
    struct statx direct_io{};
    if (::statx(fd_.get(), "", AT_EMPTY_PATH, STATX_DIOALIGN, &direct_io) == 0 &&
        (direct_io.stx_mask & STATX_DIOALIGN) != 0 && direct_io.stx_dio_offset_align != 0) {
      least_bytes = std::max(least_bytes, direct_io.stx_dio_offset_align);
      memory_alignment_bytes = direct_io.stx_dio_mem_align;
    } else if ((direct_io.stx_mask & STATX_DIOALIGN) != 0 || is_in_memory()) {
      // This file cannot, although its file system can (compressed or encrypted, for example); or it is on a tmpfs,
      // which since Linux 6.6 takes the flag and ignores it.
      direct_ = ::fcntl(fd_.get(), F_SETFL, 0) != 0;
    }
  }
  const uint32_t block_bytes = block_size_bytes == 0 ? std::max(least_bytes, 512U) : block_size_bytes;
  if (!std::has_single_bit(block_bytes) || block_bytes < 512 || block_bytes > kMaxBlockBytes) {
    return fail(EINVAL, "the block size is a power of two from 512 to 65536");
  }
  if (block_bytes < least_bytes) {
    return fail(EINVAL, "the block size is smaller than that of the device, or than direct I/O to this file takes");
  }
  limits_ = {
      .block_size_bytes = block_bytes,
      .physical_block_size_bytes = std::max(block_bytes, physical_bytes),
      // Of addresses the first would do; of lengths, as each buffer becomes a segment of its own, the second.
      .buffer_alignment_bytes = direct_ ? std::max(memory_alignment_bytes, least_bytes) : 1,
      .max_transfer_bytes = direct_ ? kMaxDirectBytes : kMaxBufferedBytes,
  };
  return {};
}

bool FileBackend::is_in_memory() const {
  struct statfs system{};
  return ::fstatfs(fd_.get(), &system) == 0 && (system.f_type == TMPFS_MAGIC || system.f_type == RAMFS_MAGIC);
}

Result<uint64_t> FileBackend::size_bytes() const {
  uint64_t size = 0;
  if (block_device_) {
    if (::ioctl(fd_.get(), BLKGETSIZE64, &size) != 0) return fail_errno("cannot get the size of the device");
  } else {
    struct stat status{};
    if (::fstat(fd_.get(), &status) != 0) return fail_errno("cannot get the size of the file");
    size = static_cast<uint64_t>(status.st_size);
  }
  if (size == 0) return fail(EINVAL, "the file is empty");
  if (size % limits_.block_size_bytes != 0)
    return fail(EINVAL, "the size of the file is not a multiple of the block size");
  return size;
}

// Without changing what the file holds: by asking the device's queue, or punching a hole behind the file's end.
void FileBackend::find_discard(bool readonly) {
  if (readonly) return;
  if (block_device_) {
    can_discard_ = queue_limit("discard_max_bytes") > 0;
    limits_.discard_granularity_bytes = static_cast<uint32_t>(queue_limit("discard_granularity"));
    return;
  }
  const Result<uint64_t> size = size_bytes();
  const int error = size ? zero_by_fallocate(FALLOC_FL_PUNCH_HOLE, *size, limits_.block_size_bytes) : EINVAL;
  can_discard_ = error != EOPNOTSUPP && error != ENOSYS;
  limits_.discard_granularity_bytes = std::max(preferred_bytes_, limits_.block_size_bytes);
}

// A number of /sys/block/*/queue; 0 if there is none. A partition's queue is that of its disk, the folder above.
uint64_t FileBackend::queue_limit(const char* name) const {
  for (const char* folder : {"queue", "../queue"}) {
    const std::string path =
        fmt::format("/sys/dev/block/{}:{}/{}/{}", major(device_number_), minor(device_number_), folder, name);
    std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "re"), std::fclose);
    unsigned long long value = 0;
    if (file && std::fscanf(file.get(), "%llu", &value) == 1) return value;
  }
  return 0;
}

int FileBackend::flush() const { return ::fdatasync(fd_.get()) == 0 ? 0 : errno; }

int FileBackend::discard(uint64_t offset_bytes, uint64_t length_bytes) const {
  if (!block_device_) return zero_by_fallocate(FALLOC_FL_PUNCH_HOLE, offset_bytes, length_bytes);
  uint64_t range[2] = {offset_bytes, length_bytes};
  return ::ioctl(fd_.get(), BLKDISCARD, range) == 0 ? 0 : errno;
}

int FileBackend::write_zeroes(uint64_t offset_bytes, uint64_t length_bytes, bool may_unmap) {
  if (block_device_) {
    uint64_t range[2] = {offset_bytes, length_bytes};
    return ::ioctl(fd_.get(), BLKZEROOUT, range) == 0 ? 0 : errno;
  }
  if (may_unmap && can_discard_) return zero_by_fallocate(FALLOC_FL_PUNCH_HOLE, offset_bytes, length_bytes);
  if (has_zero_range_.load(std::memory_order_relaxed)) {
    const int error = zero_by_fallocate(FALLOC_FL_ZERO_RANGE, offset_bytes, length_bytes);
    if (error != EOPNOTSUPP && error != ENOSYS) return error;
    has_zero_range_.store(false, std::memory_order_relaxed);
  }
  return zero_by_writing(offset_bytes, length_bytes);
}

int FileBackend::zero_by_fallocate(int mode, uint64_t offset_bytes, uint64_t length_bytes) const {
  const int done = ::fallocate(fd_.get(), mode | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset_bytes),
                               static_cast<off_t>(length_bytes));
  return done == 0 ? 0 : errno;
}

int FileBackend::zero_by_writing(uint64_t offset_bytes, uint64_t length_bytes) const {
  while (length_bytes > 0) {
    const size_t piece_bytes = std::min<uint64_t>(length_bytes, sizeof(zeroes));
    const ssize_t written = ::pwrite(fd_.get(), zeroes, piece_bytes, static_cast<off_t>(offset_bytes));
    if (written < 0) return errno;
    // What is left of a short one, at a limit or a full disk, gets its own errno with the next try, unless the rest is
    // no longer aligned.
    if (written == 0 || written % 512 != 0) return EIO;
    offset_bytes += static_cast<uint64_t>(written);
    length_bytes -= static_cast<uint64_t>(written);
  }
  return 0;
}

}  // namespace sluice
