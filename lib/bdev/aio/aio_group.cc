#include "lib/bdev/aio/aio_group.h"

#include <libaio.h>

#include <cerrno>
#include <iterator>

#include "lib/base/check.h"
#include "lib/base/clock.h"
#include "lib/bdev/file_bdev.h"
#include "lib/thread/lw_thread.h"

namespace sluice {
namespace {

// Buffered requests are carried out within io_submit: more than this would hold up the reactor.
constexpr uint64_t kMaxSynchronousBytes = 1U << 20;
// How soon to try again when the kernel is short of something.
constexpr uint64_t kRetryNs = 100 * kNsPerUs;

}  // namespace

struct AioGroup::Slot {
  iocb control;
  BlockIo* io;
  bool silent;  // the kernel does not notify of it
  Slot* next_free;
};

// What goes into one system call.
struct AioGroup::Batch {
  static constexpr size_t kMax = 64;
  iocb* controls[kMax];
  size_t count = 0;
  uint64_t synchronous_bytes = 0;
};

AioGroup::AioGroup(ThreadHost& host, const AioSystem& system, BlockingPool& pool)
    : Poller("aio"), host_(host), jobs_(host, pool), context_(system), retry_("aio_retry", [this] {
        submit_pending();
      }) {
  submit_work_.group = this;
  submit_work_.run = [](Work& work) {
    AioGroup& group = *static_cast<SubmitWork&>(work).group;
    group.submit_queued_ = false;
    group.submit_pending();
  };
}

AioGroup::~AioGroup() {
  CHECK(in_flight_ == 0);
  CHECK(pending_.empty());
  if (Poller::thread() != nullptr) host_.home().remove_poller(*this);
}

void AioGroup::submit(BlockIo& io) {
  const bool blocks = io.type == IoType::kDiscard || io.type == IoType::kWriteZeroes ||
                      (io.type == IoType::kFlush && !FileChannel::file_of(io).has_async_flush());
  if (blocks) {
    jobs_.submit(io);
    return;
  }
  pending_.push_back(io);
  if (submit_queued_) return;
  submit_queued_ = true;
  // On the home thread, whose turn comes once all that are runnable now have had theirs: one system call for all.
  host_.home().defer(submit_work_);
}

bool AioGroup::open_context() {
  if (context_.is_open()) return true;
  if (const auto opened = context_.open(kSlots); !opened) {
    if (uint64_t held_back = 0; open_failures_.allow(host_.now_ns(), held_back)) {
      log(LogLevel::kError, LogFlag::kAio, "{}: errno {}; I/O fails until it succeeds", opened.error().what,
          opened.error().code);
    }
    return false;
  }
  slots_ = std::make_unique<Slot[]>(kSlots);
  for (size_t i = 0; i < kSlots; ++i) take_back(slots_[i]);
  set_notification(context_.notification_fd());
  host_.home().add_poller(*this);
  return true;
}

void AioGroup::take_back(Slot& slot) {
  slot.next_free = free_slots_;
  free_slots_ = &slot;
}

void AioGroup::submit_pending() {
  if (pending_.empty()) return;
  if (!open_context()) {
    while (Work* work = pending_.pop_front()) FileChannel::finish(static_cast<BlockIo&>(*work), IoStatus::kFailed);
    return;
  }
  while (!pending_.empty() && free_slots_ != nullptr) {
    Batch batch;
    fill(batch);
    const int result = context_.submit(batch.controls, batch.count);
    const size_t taken = result > 0 ? static_cast<size_t>(result) : 0;
    // What was not taken goes back to the front, in its order.
    for (size_t i = batch.count; i > taken; --i) {
      auto& slot = *static_cast<Slot*>(batch.controls[i - 1]->data);
      pending_.push_front(*slot.io);
      take_back(slot);
    }
    for (size_t i = 0; i < taken; ++i) {
      silent_in_flight_ += static_cast<Slot*>(batch.controls[i]->data)->silent ? 1U : 0U;
    }
    in_flight_ += static_cast<uint32_t>(taken);
    if (taken > 0) make_hot();
    if (result == -EAGAIN || result == 0) {
      if (!retry_.armed()) retry_.arm_at(host_.home(), host_.now_ns() + kRetryNs);
      return;
    }
    if (result < 0) refuse_first(-result);
    // The rest follows when these complete: they have already, so that is in the next turn.
    if (taken > 0 && batch.synchronous_bytes >= kMaxSynchronousBytes) return;
  }
}

// Takes slots for the first requests: as many as go into one system call.
void AioGroup::fill(Batch& batch) {
  while (batch.count < Batch::kMax && free_slots_ != nullptr && !pending_.empty()) {
    auto& io = static_cast<BlockIo&>(*pending_.front());
    if (io.type != IoType::kFlush && !FileChannel::file_of(io).direct()) {
      if (batch.synchronous_bytes >= kMaxSynchronousBytes) return;
      batch.synchronous_bytes += io.length_bytes;
    }
    pending_.pop_front();
    Slot& slot = *free_slots_;
    free_slots_ = slot.next_free;
    prepare(slot, io);
    batch.controls[batch.count++] = &slot.control;
  }
}

void AioGroup::prepare(Slot& slot, BlockIo& io) const {
  iocb* control = &slot.control;
  const int fd = FileChannel::file_of(io).fd();
  const auto offset = static_cast<long long>(io.offset_bytes);
  // One buffer goes the shorter way through the kernel.
  const bool single = io.iov_count == 1;
  if (io.type == IoType::kFlush) {
    ::io_prep_fdsync(control, fd);
  } else if (io.type == IoType::kRead && single) {
    ::io_prep_pread(control, fd, io.iov->iov_base, io.iov->iov_len, offset);
  } else if (io.type == IoType::kRead) {
    ::io_prep_preadv(control, fd, io.iov, static_cast<int>(io.iov_count), offset);
  } else if (single) {
    ::io_prep_pwrite(control, fd, io.iov->iov_base, io.iov->iov_len, offset);
  } else {
    ::io_prep_pwritev(control, fd, io.iov, static_cast<int>(io.iov_count), offset);
  }
  slot.silent = host_.mode() == PollMode::kPoll;
  if (!slot.silent) ::io_set_eventfd(control, context_.notification_fd());
  control->data = &slot;
  slot.io = &io;
}

// The kernel did not even start the first request.
void AioGroup::refuse_first(int error) {
  auto& io = static_cast<BlockIo&>(*pending_.pop_front());
  FileBackend& file = FileChannel::file_of(io);
  if (io.type == IoType::kFlush && error == EINVAL && file.has_async_flush()) {
    file.set_no_async_flush();
    jobs_.submit(io);
    return;
  }
  FileChannel::finish(io, io_status_from_errno(error));
}

bool AioGroup::poll() {
  AioCompletion completions[64];
  bool any = false;
  for (size_t count = std::size(completions); count == std::size(completions);) {
    count = context_.take_completions(completions);
    for (size_t i = 0; i < count; ++i) on_completion(completions[i]);
    any |= count > 0;
  }
  if (any) submit_pending();
  // In adaptive mode also on an edge that tells of what was found long ago.
  if (in_flight_ == 0) make_cold();
  return any;
}

void AioGroup::on_completion(const AioCompletion& completion) {
  auto& slot = *static_cast<Slot*>(completion.data);
  BlockIo& io = *slot.io;
  --in_flight_;
  if (slot.silent) --silent_in_flight_;
  take_back(slot);
  const int64_t result = completion.result;
  const uint64_t expected_bytes = io.type == IoType::kFlush ? 0 : io.length_bytes;
  IoStatus status = IoStatus::kOk;
  if (result < 0) {
    status = io_status_from_errno(static_cast<int>(-result));
  } else if (static_cast<uint64_t>(result) != expected_bytes) {
    status = IoStatus::kFailed;  // the file has become shorter, or met a limit
  }
  FileChannel::finish(io, status);
}

}  // namespace sluice
