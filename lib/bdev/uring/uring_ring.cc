#include "lib/bdev/uring/uring_ring.h"

#include <liburing.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "lib/base/check.h"

namespace sluice {
namespace {

constexpr unsigned kSetupFlags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
                                 IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE;

// IORING_FEAT_RW_ATTR of Linux 6.14, newer than our <liburing.h>: the first feature of kernels that close files at
// once.
constexpr unsigned kFeatureOfLinux614 = 1U << 16;

std::unexpected<Error> fail_setup(int error) {
  switch (error) {
    case ENOSYS:
      return fail(ENOSYS, "this kernel has no io_uring; use bdev_aio_create instead");
    case EINVAL:
      return fail(ENOSYS, "io_uring needs Linux 6.1 or newer here; use bdev_aio_create instead");
    case EPERM:
    case EACCES:
      return fail(EPERM,
                  "io_uring is disabled (see the setting kernel.io_uring_disabled, or the container's system call "
                  "filter); use bdev_aio_create instead");
    case ENOMEM:
      return fail(ENOMEM, "no memory for an io_uring (see the limit of locked memory); use bdev_aio_create instead");
    default:
      return fail(error, "cannot set up io_uring; use bdev_aio_create instead");
  }
}

}  // namespace

const UringSystem& UringSystem::kernel() {
  static constexpr UringSystem kKernel{.setup = ::io_uring_queue_init_params,
                                       .submit = ::io_uring_submit_and_get_events};
  return kKernel;
}

void UringRing::Close::operator()(io_uring* ring) const {
  ::io_uring_queue_exit(ring);
  delete ring;
}

UringRing::~UringRing() = default;

Result<> UringRing::open(unsigned entries) {
  UniqueFd notification(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!notification) return fail_errno("cannot create an eventfd");
  io_uring_params params{};
  params.flags = kSetupFlags;
  // As many as can be in flight, so that it never overflows.
  params.cq_entries = entries;
  auto made = std::make_unique<io_uring>();
  if (const int error = system_.setup(entries, made.get(), &params); error != 0) return fail_setup(-error);
  std::unique_ptr<io_uring, Close> ring(made.release());
  if (const int error = ::io_uring_register_eventfd(ring.get(), notification.get()); error != 0) {
    return fail(-error, "cannot make an io_uring notify");
  }
  // Only saves the kernel looking the ring's own descriptor up.
  ::io_uring_register_ring_fd(ring.get());
  ring_ = std::move(ring);
  notification_ = std::move(notification);
  set_notifications(false);
  return {};
}

// --- Files ---

void UringRing::make_file_table() {
  rlimit limit{};
  const bool known = ::getrlimit(RLIMIT_NOFILE, &limit) == 0;
  // The kernel counts the table against this limit, full or not.
  const auto size = known ? static_cast<unsigned>(std::min<rlim_t>(limit.rlim_cur, kMaxFiles)) : 0;
  free_indices_.reserve(kMaxFiles);
  if (size == 0 || ::io_uring_register_files_sparse(ring_.get(), size) != 0) return;
  for (unsigned i = size; i > 0; --i) free_indices_.push_back(static_cast<int>(i - 1));
}

UringFile UringRing::add_file(int fd) {
  if (free_indices_.capacity() == 0) make_file_table();
  UringFile file{.fd = fd};
  if (free_indices_.empty()) return file;
  const int index = free_indices_.back();
  if (::io_uring_register_files_update(ring_.get(), static_cast<unsigned>(index), &fd, 1) != 1) return file;
  free_indices_.pop_back();
  file.index = index;
  return file;
}

void UringRing::remove_file(const UringFile& file) {
  if (file.index < 0) return;
  const int none = -1;
  CHECK(::io_uring_register_files_update(ring_.get(), static_cast<unsigned>(file.index), &none, 1) == 1);
  free_indices_.push_back(file.index);
}

bool UringRing::lets_go_at_once() const { return (ring_->features & kFeatureOfLinux614) != 0; }

// --- Requests ---

void UringRing::prepare(const UringFile& file, BlockIo& io) {
  io_uring_sqe* entry = ::io_uring_get_sqe(ring_.get());
  CHECK(entry != nullptr);
  const bool known = file.index >= 0;
  const int fd = known ? file.index : file.fd;
  // One buffer goes the shorter way through the kernel. Lengths fit: a transfer is at most 4 MiB.
  const bool single = io.iov_count == 1;
  if (io.type == IoType::kFlush) {
    ::io_uring_prep_fsync(entry, fd, IORING_FSYNC_DATASYNC);
  } else if (io.type == IoType::kRead && single) {
    ::io_uring_prep_read(entry, fd, io.iov->iov_base, static_cast<unsigned>(io.iov->iov_len), io.offset_bytes);
  } else if (io.type == IoType::kRead) {
    ::io_uring_prep_readv(entry, fd, io.iov, io.iov_count, io.offset_bytes);
  } else if (single) {
    ::io_uring_prep_write(entry, fd, io.iov->iov_base, static_cast<unsigned>(io.iov->iov_len), io.offset_bytes);
  } else {
    ::io_uring_prep_writev(entry, fd, io.iov, io.iov_count, io.offset_bytes);
  }
  if (known) entry->flags |= IOSQE_FIXED_FILE;
  ::io_uring_sqe_set_data(entry, &io);
}

// --- Completions ---

bool UringRing::has_completions() const {
  return ::io_uring_cq_ready(ring_.get()) > 0 ||
         (__atomic_load_n(ring_->sq.kflags, __ATOMIC_RELAXED) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

size_t UringRing::take_completions(std::span<UringCompletion> completions) {
  if (::io_uring_cq_ready(ring_.get()) == 0) {
    if (!has_completions()) return 0;
    ::io_uring_get_events(ring_.get());
  }
  size_t count = 0;
  unsigned head = 0;
  io_uring_cqe* entry = nullptr;
  io_uring_for_each_cqe(ring_.get(), head, entry) {
    if (count == completions.size()) break;
    completions[count++] = {.io = static_cast<BlockIo*>(::io_uring_cqe_get_data(entry)), .result = entry->res};
  }
  ::io_uring_cq_advance(ring_.get(), static_cast<unsigned>(count));
  return count;
}

void UringRing::set_notifications(bool on) {
  // Cannot fail: the field exists since Linux 5.8.
  CHECK(::io_uring_cq_eventfd_toggle(ring_.get(), on) == 0);
  // Whoever turns them on looks for completions next: the kernel sees the flag, or we see the completion.
  if (on) std::atomic_thread_fence(std::memory_order_seq_cst);
}

}  // namespace sluice
