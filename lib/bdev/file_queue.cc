#include "lib/bdev/file_queue.h"

#include "lib/base/check.h"
#include "lib/base/clock.h"
#include "lib/bdev/file_bdev.h"
#include "lib/thread/lw_thread.h"

namespace sluice {
namespace {

// How soon to try again when the kernel is short of something.
constexpr uint64_t kRetryNs = 100 * kNsPerUs;

}  // namespace

FileQueue::FileQueue(const char* name, ThreadHost& host, BlockingPool& pool)
    : Poller(name), jobs_(host, pool), host_(host), retry_("file_retry", [this] { start(); }) {
  start_work_.queue = this;
  start_work_.run = [](Work& work) {
    FileQueue& queue = *static_cast<StartWork&>(work).queue;
    queue.start_queued_ = false;
    queue.start();
  };
}

FileQueue::~FileQueue() {
  CHECK(in_flight_ == 0);
  CHECK(pending_.empty());
}

void FileQueue::submit(BlockIo& io) {
  const bool blocks = io.type == IoType::kDiscard || io.type == IoType::kWriteZeroes ||
                      (io.type == IoType::kFlush && !FileChannel::file_of(io).has_async_flush());
  if (blocks) {
    jobs_.submit(io);
    return;
  }
  pending_.push_back(io);
  if (start_queued_) return;
  start_queued_ = true;
  // On the home thread, whose turn comes once all that are runnable now have had theirs: one system call for all.
  host_.home().defer(start_work_);
}

void FileQueue::withdraw(const BdevChannel& channel, Fifo<Work>& withdrawn) {
  Fifo<Work> all = std::move(pending_);
  while (Work* work = all.pop_front()) {
    (static_cast<BlockIo&>(*work).channel == &channel ? withdrawn : pending_).push_back(*work);
  }
}

void FileQueue::start() {
  if (!is_open()) {
    const Result<int> notification = open();
    if (!notification) {
      if (uint64_t held_back = 0; open_failures_.allow(host_.now_ns(), held_back)) {
        log(LogLevel::kError, LogFlag::kBdev, "{}: {}: errno {}; I/O fails until it succeeds", name(),
            notification.error().what, notification.error().code);
      }
      while (Work* work = pending_.pop_front()) FileChannel::finish(static_cast<BlockIo&>(*work), IoStatus::kFailed);
      return;
    }
    set_notification(*notification);
    host_.home().add_poller(*this);
  }
  start_pending();
  if (in_flight_ > 0) make_hot();
}

BlockIo* FileQueue::take_pending(Budget& budget) {
  if (pending_.empty()) return nullptr;
  auto& io = static_cast<BlockIo&>(*pending_.front());
  if (io.type != IoType::kFlush && !FileChannel::file_of(io).direct()) {
    if (budget.spent()) return nullptr;
    budget.bytes_ += io.length_bytes;
  }
  pending_.pop_front();
  return &io;
}

void FileQueue::retry_later() {
  if (!retry_.armed()) retry_.arm_at(host_.home(), host_.now_ns() + kRetryNs);
}

bool FileQueue::poll() {
  bool any = false;
  for (size_t count = kBatch; count == kBatch;) {
    count = take_completions();
    any |= count > 0;
  }
  if (any) start();
  // In adaptive mode also on an edge that tells of what was found long ago.
  if (in_flight_ == 0) make_cold();
  return any;
}

void FileQueue::finish(BlockIo& io, int64_t result) {
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
