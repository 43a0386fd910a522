// AioContext: a kernel context for asynchronous I/O, whose completions are read from the ring it shares with us,
// without a system call. Thread: one OS thread at a time. Source: fs/aio.c of Linux (struct aio_ring), io_submit(2),
// io_setup(2).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"

// Of <libaio.h>.
struct io_context;
struct iocb;

namespace sluice {

// The system calls that can fail for reasons of the system's state. They return a negative errno, as libaio does.
struct AioSystem {
  int (*setup)(int max_events, io_context** context);
  int (*submit)(io_context* context, long count, iocb** controls);
  // Those of libaio.
  static const AioSystem& kernel();
};

struct AioCompletion {
  void* data;      // of the control
  int64_t result;  // bytes, or a negative errno
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

  // Takes as many as there are and fit; returns how many.
  size_t take_completions(std::span<AioCompletion> completions);

  // Becomes readable, and sends an edge, with each completion of a control with this descriptor (io_set_eventfd()).
  int notification_fd() const { return notification_.get(); }

 private:
  struct Ring;

  size_t ask_kernel(std::span<AioCompletion> completions) const;

  const AioSystem& system_;
  io_context* context_ = nullptr;
  Ring* ring_ = nullptr;  // nullptr: unknown form
  UniqueFd notification_;
};

}  // namespace sluice
