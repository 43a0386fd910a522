#include "lib/thread/epoll_set.h"

#include <cerrno>
#include <ctime>

#include "lib/base/check.h"
#include "lib/base/clock.h"
#include "lib/thread/lw_thread.h"

namespace sluice {

Result<EpollSet> EpollSet::create() {
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll) return fail_errno("cannot create an epoll instance");
  return EpollSet(std::move(epoll));
}

Result<> EpollSet::add(EventSource& source) {
  epoll_event event{.events = source.events(), .data = {.ptr = &source}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, source.fd(), &event) != 0)
    return fail_errno("cannot watch a file descriptor");
  return {};
}

void EpollSet::remove(EventSource& source) {
  // By hand, although the descriptor will be closed: its open file may live on in another process.
  CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, source.fd(), nullptr) == 0);
  for (int i = 0; i < batch_size_; ++i) {
    epoll_event& event = batch_[static_cast<size_t>(i)];
    if (event.data.ptr == &source) event.data.ptr = nullptr;
  }
}

Result<> EpollSet::add_wake(int fd) {
  epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.ptr = nullptr}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) return fail_errno("cannot watch an eventfd");
  return {};
}

void EpollSet::wait(uint64_t timeout_ns) {
  const timespec timeout{.tv_sec = static_cast<time_t>(timeout_ns / kNsPerSec),
                         .tv_nsec = static_cast<long>(timeout_ns % kNsPerSec)};
  batch_size_ = ::epoll_pwait2(epoll_.get(), batch_.data(), static_cast<int>(batch_.size()),
                               timeout_ns == UINT64_MAX ? nullptr : &timeout, nullptr);
  CHECK(batch_size_ >= 0 || errno == EINTR);
}

bool EpollSet::dispatch() {
  bool any = false;
  for (int i = 0; i < batch_size_; ++i) {
    const epoll_event& event = batch_[static_cast<size_t>(i)];
    auto* source = static_cast<EventSource*>(event.data.ptr);
    if (source == nullptr) continue;
    source->thread()->dispatch(*source, event.events);
    any = true;
  }
  batch_size_ = 0;
  return any;
}

}  // namespace sluice
