#include "lib/bdev/uring/uring_group.h"

#include <cerrno>
#include <iterator>

#include "lib/base/check.h"
#include "lib/base/clock.h"
#include "lib/bdev/file_bdev.h"
#include "lib/bdev/uring/uring_channel.h"
#include "lib/thread/lw_thread.h"

namespace sluice {
namespace {

// Buffered requests may be carried out while they are submitted: more than this would hold up the reactor.
constexpr uint64_t kMaxSynchronousBytes = 1U << 20;
// How soon to try again when the kernel is short of something.
constexpr uint64_t kRetryNs = 100 * kNsPerUs;

}  // namespace

UringGroup::UringGroup(ThreadHost& host, const UringSystem& system, BlockingPool& pool)
    : Poller("uring"), host_(host), jobs_(host, pool), ring_(system), retry_("uring_retry", [this] {
        submit_pending();
      }) {
  submit_work_.group = this;
  submit_work_.run = [](Work& work) {
    UringGroup& group = *static_cast<SubmitWork&>(work).group;
    group.submit_queued_ = false;
    group.submit_pending();
  };
}

UringGroup::~UringGroup() {
  CHECK(in_flight_ == 0 && prepared_ == 0);
  CHECK(pending_.empty());
  if (Poller::thread() != nullptr) host_.home().remove_poller(*this);
}

void UringGroup::submit(BlockIo& io) {
  if (io.type == IoType::kDiscard || io.type == IoType::kWriteZeroes) {
    jobs_.submit(io);
    return;
  }
  pending_.push_back(io);
  if (submit_queued_) return;
  submit_queued_ = true;
  // On the home thread, whose turn comes once all that are runnable now have had theirs: one system call for all.
  host_.home().defer(submit_work_);
}

UringFile UringGroup::add_file(const FileBackend& file) {
  // A block device that the kernel kept open a little longer could not be opened again meanwhile.
  if (file.is_block_device() && !ring_.lets_go_at_once()) return {.fd = file.fd()};
  return ring_.add_file(file.fd());
}

bool UringGroup::open_ring() {
  if (ring_.is_open()) return true;
  if (const auto opened = ring_.open(kSlots); !opened) {
    if (uint64_t held_back = 0; open_failures_.allow(host_.now_ns(), held_back)) {
      log(LogLevel::kError, LogFlag::kBdev, "{}: errno {}; I/O to uring bdevs fails until it succeeds",
          opened.error().what, opened.error().code);
    }
    return false;
  }
  set_notification(ring_.notification_fd());
  host_.home().add_poller(*this);
  return true;
}

void UringGroup::submit_pending() {
  if ((pending_.empty() && prepared_ == 0) || retry_.armed()) return;
  if (!open_ring()) {
    while (Work* work = pending_.pop_front()) FileChannel::finish(static_cast<BlockIo&>(*work), IoStatus::kFailed);
    return;
  }
  fill();
  if (prepared_ == 0) return;
  const int result = ring_.submit();
  if (result > 0) {
    prepared_ -= static_cast<uint32_t>(result);
    in_flight_ += static_cast<uint32_t>(result);
  }
  if (in_flight_ > 0) make_hot();
  // The kernel has taken less than there was when it is short of memory; what it refuses otherwise, it completes.
  if (prepared_ > 0) retry_later();
}

// Puts the first requests into the ring: as many as it may hold. What is left follows when some of these complete.
void UringGroup::fill() {
  uint64_t synchronous_bytes = 0;
  while (in_flight_ + prepared_ < kSlots && !pending_.empty()) {
    auto& io = static_cast<BlockIo&>(*pending_.front());
    if (io.type != IoType::kFlush && !FileChannel::file_of(io).direct()) {
      if (synchronous_bytes >= kMaxSynchronousBytes) return;
      synchronous_bytes += io.length_bytes;
    }
    pending_.pop_front();
    ring_.prepare(UringChannel::target_of(io), io);
    ++prepared_;
  }
}

void UringGroup::retry_later() {
  if (!retry_.armed()) retry_.arm_at(host_.home(), host_.now_ns() + kRetryNs);
}

bool UringGroup::poll() {
  UringCompletion completions[64];
  bool any = false;
  for (size_t count = std::size(completions); count == std::size(completions);) {
    count = ring_.take_completions(completions);
    for (size_t i = 0; i < count; ++i) on_completion(completions[i]);
    any |= count > 0;
  }
  if (any) submit_pending();
  if (in_flight_ == 0) make_cold();
  return any;
}

bool UringGroup::try_sleep() {
  if (ring_.has_completions()) return false;
  ring_.set_notifications(true);
  if (!ring_.has_completions()) return true;
  ring_.set_notifications(false);
  return false;
}

void UringGroup::on_completion(const UringCompletion& completion) {
  BlockIo& io = *completion.io;
  --in_flight_;
  const int result = completion.result;
  if (result == -EAGAIN || result == -EINTR) {  // short of something, and nothing was done
    pending_.push_back(io);
    retry_later();
    return;
  }
  const uint64_t expected_bytes = io.type == IoType::kFlush ? 0 : io.length_bytes;
  IoStatus status = IoStatus::kOk;
  if (result < 0) {
    status = io_status_from_errno(-result);
  } else if (static_cast<uint64_t>(result) != expected_bytes) {
    status = IoStatus::kFailed;  // the file has become shorter, or met a limit
  }
  FileChannel::finish(io, status);
}

}  // namespace sluice
