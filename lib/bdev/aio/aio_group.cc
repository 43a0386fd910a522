#include "lib/bdev/aio/aio_group.h"

#include <libaio.h>

#include <cerrno>

#include "lib/bdev/file_bdev.h"
#include "lib/thread/lw_thread.h"

namespace sluice {

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
  Budget budget;
};

AioGroup::AioGroup(ThreadHost& host, const AioSystem& system, BlockingPool& pool)
    : FileQueue("aio", host, pool), context_(system) {}

AioGroup::~AioGroup() {
  if (Poller::thread() != nullptr) host().home().remove_poller(*this);
}

Result<int> AioGroup::open() {
  if (auto opened = context_.open(kSlots); !opened) return std::unexpected(opened.error());
  slots_ = std::make_unique<Slot[]>(kSlots);
  for (size_t i = 0; i < kSlots; ++i) take_back(slots_[i]);
  return context_.notification_fd();
}

void AioGroup::take_back(Slot& slot) {
  slot.next_free = free_slots_;
  free_slots_ = &slot;
}

void AioGroup::start_pending() {
  while (has_pending() && free_slots_ != nullptr) {
    Batch batch;
    fill(batch);
    const int result = context_.submit(batch.controls, batch.count);
    const size_t taken = result > 0 ? static_cast<size_t>(result) : 0;
    // What was not taken goes back to the front, in its order.
    for (size_t i = batch.count; i > taken; --i) {
      auto& slot = *static_cast<Slot*>(batch.controls[i - 1]->data);
      put_back(*slot.io);
      take_back(slot);
    }
    for (size_t i = 0; i < taken; ++i) {
      silent_in_flight_ += static_cast<Slot*>(batch.controls[i]->data)->silent ? 1U : 0U;
    }
    in_flight_ += static_cast<uint32_t>(taken);
    if (result == -EAGAIN || result == 0) {
      retry_later();
      return;
    }
    if (result < 0) refuse_first(-result);
    // The rest follows when these complete: they have already, so that is in the next turn.
    if (taken > 0 && batch.budget.spent()) return;
  }
}

// Takes slots for the first requests: as many as go into one system call.
void AioGroup::fill(Batch& batch) {
  while (batch.count < Batch::kMax && free_slots_ != nullptr) {
    BlockIo* io = take_pending(batch.budget);
    if (io == nullptr) return;
    Slot& slot = *free_slots_;
    free_slots_ = slot.next_free;
    prepare(slot, *io);
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
  // What goes through the page cache has completed by the time that the system call returns: nobody need be told.
  const bool synchronous = io.type != IoType::kFlush && !FileChannel::file_of(io).direct();
  slot.silent = synchronous || host().mode() == PollMode::kPoll;
  if (!slot.silent) ::io_set_eventfd(control, context_.notification_fd());
  control->data = &slot;
  slot.io = &io;
}

// The kernel did not even start the first request.
void AioGroup::refuse_first(int error) {
  Budget any;
  BlockIo& io = *take_pending(any);
  FileBackend& file = FileChannel::file_of(io);
  if (io.type == IoType::kFlush && error == EINVAL && file.has_async_flush()) {
    file.set_no_async_flush();
    jobs_.submit(io);
    return;
  }
  FileChannel::finish(io, io_status_from_errno(error));
}

size_t AioGroup::take_completions() {
  AioCompletion completions[kBatch];
  const size_t count = context_.take_completions(completions);
  for (size_t i = 0; i < count; ++i) on_completion(completions[i]);
  return count;
}

void AioGroup::on_completion(const AioCompletion& completion) {
  auto& slot = *static_cast<Slot*>(completion.data);
  --in_flight_;
  if (slot.silent) --silent_in_flight_;
  take_back(slot);
  finish(*slot.io, completion.result);
}

}  // namespace sluice
