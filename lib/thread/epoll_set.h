// EpollSet: the event sources of one host, in one epoll instance.
// Thread:    the host's OS thread.
// Ownership: owns the epoll instance; borrows the sources.
#pragma once

#include <sys/epoll.h>

#include <array>
#include <cstdint>

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"

namespace sluice {

class EventSource;

class EpollSet {
 public:
  // Errors: those of epoll_create1(2).
  static Result<EpollSet> create();
  EpollSet(EpollSet&&) = default;

  // Errors: those of epoll_ctl(2), such as EPERM for a regular file.
  Result<> add(EventSource& source);
  // Also out of the events that are still to be dispatched.
  void remove(EventSource& source);
  // An eventfd that ends a wait with each write to it: edge-triggered, so it is never read.
  Result<> add_wake(int fd);

  // Waits until something is ready, UINT64_MAX ns for ever, a signal comes, or the time is over; 0 only looks.
  void wait(uint64_t timeout_ns);
  // Calls the handlers of what wait() has found. True if there was any.
  bool dispatch();

  int fd() const { return epoll_.get(); }

 private:
  explicit EpollSet(UniqueFd epoll) : epoll_(std::move(epoll)) {}

  UniqueFd epoll_;
  std::array<epoll_event, 64> batch_{};
  int batch_size_ = 0;
};

}  // namespace sluice
