// AioContext: a kernel context for asynchronous I/O, whose completions are read from the ring it shares with us,
// without a system call. Thread: one OS thread at a time. Source: fs/aio.c of Linux (struct aio_ring), io_submit(2),
// io_setup(2).
#pragma once

#include <libaio.h>

#include <cstddef>
#include <cstdint>

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"

namespace sluice {

// The system calls that can fail for reasons of the system's state. Negative errno, as libaio.
struct AioSystem {
  int (*setup)(int max_events, io_context_t* context);
  int (*submit)(io_context_t context, long count, iocb** controls);
  // Of <libaio.h>.
  static const AioSystem& kernel();
};

class AioContext {
 public:
  explicit AioContext(const AioSystem& system) : system_(system) {}
  AioContext(const AioContext&) = delete;
  AioContext& operator=(const AioContext&) = delete;
  // Waits for what is in flight.
  ~AioContext();

  bool is_open() const { return context_ != nullptr; }
  // Errors: EAGAIN (fs.aio-max-nr is used up); ENOMEM; EMFILE. May be tried again.
  Result<> open(int max_in_flight);

  // How many of the controls, from the first on, were taken; the errno, negative, if the first was refused.
  int submit(iocb** controls, size_t count) const {
    return system_.submit(context_, static_cast<long>(count), controls);
  }

  // Whether there is a completion to take. False when only the kernel knows (the ring has an unknown form).
  bool has_completions() const;

  // Calls fn(const io_event&) for each completion there is, and returns how many.
  template <typename Fn>
  size_t take_completions(Fn&& fn);

  // Becomes readable, and sends an edge, with each completion of a control that io_set_eventfd() was given it for.
  int notification_fd() const { return notification_.get(); }

 private:
  // The kernel's, mapped where io_context_t points to.
  struct Ring {
    uint32_t id;
    uint32_t capacity;
    uint32_t head;  // ours
    uint32_t tail;  // the kernel's
    uint32_t magic;
    uint32_t compatible_features;
    uint32_t incompatible_features;
    uint32_t header_bytes;
    io_event events[];
  };
  static constexpr uint32_t kRingMagic = 0xa10a10a1;
  static_assert(offsetof(Ring, events) == 32 && sizeof(io_event) == 32);

  size_t ask_kernel(io_event* events, size_t max) const;

  const AioSystem& system_;
  io_context_t context_ = nullptr;
  Ring* ring_ = nullptr;  // nullptr: unknown form
  UniqueFd notification_;
};

inline bool AioContext::has_completions() const {
  return ring_ != nullptr && ring_->head != __atomic_load_n(&ring_->tail, __ATOMIC_ACQUIRE);
}

template <typename Fn>
size_t AioContext::take_completions(Fn&& fn) {
  if (ring_ == nullptr) {
    io_event events[64];
    const size_t count = ask_kernel(events, 64);
    for (size_t i = 0; i < count; ++i) fn(events[i]);
    return count;
  }
  // The acquire pairs with the kernel's barrier between an event and the tail that covers it.
  const uint32_t tail = __atomic_load_n(&ring_->tail, __ATOMIC_ACQUIRE);
  uint32_t head = ring_->head;
  size_t count = 0;
  for (; head != tail; ++count) {
    fn(static_cast<const io_event&>(ring_->events[head]));
    if (++head == ring_->capacity) head = 0;
  }
  // The release: the kernel may write over the events from here on.
  if (count > 0) __atomic_store_n(&ring_->head, head, __ATOMIC_RELEASE);
  return count;
}

}  // namespace sluice
