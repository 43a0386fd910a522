#include "lib/bdev/uring/uring_group.h"

#include <algorithm>
#include <cerrno>

#include "lib/base/check.h"
#include "lib/bdev/file_bdev.h"
#include "lib/bdev/uring/uring_channel.h"
#include "lib/thread/lw_thread.h"

namespace sluice {

UringGroup::UringGroup(ThreadHost& host, const UringSystem& system, BlockingPool& pool)
    : FileQueue("uring", host, pool), ring_(system) {}

UringGroup::~UringGroup() {
  CHECK(prepared_ == 0);
  if (Poller::thread() != nullptr) host().home().remove_poller(*this);
}

UringGroup::Place UringGroup::add_file(const UringChannel& channel, const FileBackend& file) {
  // It has come back before its last requests were done.
  if (const auto left = std::ranges::find(leaving_, &channel, &Leaving::channel); left != leaving_.end()) {
    const Place place = left->place;
    leaving_.erase(left);
    return place;
  }
  // A block device that the kernel kept open a little longer could not be opened again meanwhile.
  if (file.is_block_device() && !ring_.lets_go_at_once()) return {.file = {.fd = file.fd()}};
  return {.file = ring_.add_file(file.fd())};
}

void UringGroup::release_file(const UringChannel& channel, const Place& place) {
  if (place.in_ring == 0) {
    ring_.remove_file(place.file);
  } else {
    leaving_.push_back({.channel = &channel, .place = place});
  }
}

void UringGroup::leave_ring(const BlockIo& io) {
  auto& channel = static_cast<UringChannel&>(*io.channel);
  const auto left = std::ranges::find(leaving_, &channel, &Leaving::channel);
  if (left == leaving_.end()) {
    channel.leave_ring();
  } else if (--left->place.in_ring == 0) {
    ring_.remove_file(left->place.file);
    leaving_.erase(left);
  }
}

Result<int> UringGroup::open() {
  if (auto opened = ring_.open(kSlots); !opened) return std::unexpected(opened.error());
  return ring_.notification_fd();
}

// Puts as many into the ring as it may hold. What is left follows when some of these complete.
void UringGroup::start_pending() {
  if (retrying()) return;
  Budget budget;
  while (in_flight_ + prepared_ < kSlots) {
    BlockIo* io = take_pending(budget);
    if (io == nullptr) break;
    ring_.prepare(UringChannel::enter_ring(*io), *io);
    ++prepared_;
  }
  if (prepared_ == 0) return;
  const int result = ring_.submit();
  if (result > 0) {
    prepared_ -= static_cast<uint32_t>(result);
    in_flight_ += static_cast<uint32_t>(result);
  }
  // The kernel has taken less than there was when it is short of memory; what it refuses otherwise, it completes.
  if (prepared_ > 0) retry_later();
}

size_t UringGroup::take_completions() {
  UringCompletion completions[kBatch];
  const size_t count = ring_.take_completions(completions);
  in_flight_ -= static_cast<uint32_t>(count);
  for (size_t i = 0; i < count; ++i) leave_ring(*completions[i].io);
  // The kernel was short of something, and nothing was done.
  const auto refused = [](int result) { return result == -EAGAIN || result == -EINTR; };
  for (size_t i = 0; i < count; ++i) {
    if (!refused(completions[i].result)) finish(*completions[i].io, completions[i].result);
  }
  // The last one first: each goes in front of all others.
  for (size_t i = count; i > 0; --i) {
    if (!refused(completions[i - 1].result)) continue;
    BlockIo& io = *completions[i - 1].io;
    if (io.target->runs_here()) {
      put_back(io);
      retry_later();
    } else {
      FileChannel::resubmit(io);
    }
  }
  return count;
}

bool UringGroup::try_sleep() {
  if (ring_.has_completions()) return false;
  ring_.set_notifications(true);
  if (!ring_.has_completions()) return true;
  ring_.set_notifications(false);
  return false;
}

}  // namespace sluice
