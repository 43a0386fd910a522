// EventSource: a file descriptor whose readiness a lightweight thread reacts to.
// Thread:    the lightweight thread it is added to; on_event() runs there.
// Ownership: borrows the descriptor, which must stay open until remove_source(). Removes itself when destroyed; a class
//            that owns its descriptor does so in its own destructor, as its members go before this base.
#pragma once

#include <cstdint>

#include "lib/base/intrusive_list.h"

namespace sluice {

class LwThread;
struct SourceTag;

class EventSource : public ListHook<SourceTag> {
 public:
  EventSource() = default;
  virtual ~EventSource();

  // `events` as epoll reports them. May remove or destroy this source or any other one.
  virtual void on_event(uint32_t events) = 0;

  int fd() const { return fd_; }
  uint32_t events() const { return events_; }
  LwThread* thread() const { return thread_; }

 private:
  friend class LwThread;
  int fd_ = -1;
  uint32_t events_ = 0;
  LwThread* thread_ = nullptr;
};

}  // namespace sluice
