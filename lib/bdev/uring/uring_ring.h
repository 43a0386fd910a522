// UringRing: one io_uring: requests are put into it one by one and reach the kernel with one system call; completions
// are read from the memory it shares with us.
//
// The kernel finishes requests only when we ask for that (IORING_SETUP_DEFER_TASKRUN): it interrupts nobody, and a
// completion on another core costs no interrupt between cores. That there is something to finish shows in shared
// memory, without a system call.
//
// Thread: one OS thread, the one that opens it, for its whole life.
// Source: io_uring(7), io_uring_setup(2), io_uring_enter(2).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"
#include "lib/bdev/block_io.h"

// Of <liburing.h>.
struct io_uring;
struct io_uring_params;

namespace sluice {

// The system calls that can fail for reasons of the system's state. They return a negative errno, as liburing does.
struct UringSystem {
  int (*setup)(unsigned entries, io_uring* ring, io_uring_params* params);
  // How many of the requests the kernel has taken; it finishes what there is to finish as well.
  int (*submit)(io_uring* ring);
  // Those of liburing.
  static const UringSystem& kernel();
};

// How a ring knows a file.
struct UringFile {
  int fd = -1;     // the descriptor, or
  int index = -1;  // if not negative, the place in the ring's table
};

struct UringCompletion {
  BlockIo* io;
  int result;  // bytes, or a negative errno
};

class UringRing {
 public:
  // Files that a ring knows in advance, so that a request need not look its descriptor up; beyond that, it does.
  static constexpr unsigned kMaxFiles = 1024;

  explicit UringRing(const UringSystem& system) : system_(system) {}
  UringRing(const UringRing&) = delete;
  UringRing& operator=(const UringRing&) = delete;
  // Requires: nothing is in flight.
  ~UringRing();

  bool is_open() const { return ring_ != nullptr; }
  // For so many requests in flight, a power of two. Errors: ENOSYS (no io_uring, or one older than Linux 6.1);
  // EPERM (disabled); ENOMEM; EMFILE. May be tried again.
  Result<> open(unsigned entries);

  // Never fails: a file that does not fit into the table is known by its descriptor.
  UringFile add_file(int fd);
  void remove_file(const UringFile& file);
  // Whether the kernel closes a file within remove_file(). Otherwise it may take a second, or until requests that are
  // older, also of other files, have completed (up to Linux 6.12).
  bool lets_go_at_once() const;

  // Puts a read, write or flush into the ring. Requires: fewer requests are in flight than open() was told (checked).
  void prepare(const UringFile& file, BlockIo& io);
  // Hands over what has been prepared: how many were taken, in order, or a negative errno. The rest stays prepared.
  int submit() { return system_.submit(ring_.get()); }

  // Whether there is a completion to take, or to be finished by the kernel.
  bool has_completions() const;
  // Takes as many as there are and fit; returns how many.
  size_t take_completions(std::span<UringCompletion> completions);

  // Becomes readable, and sends an edge, when has_completions() turns true, while notifications are on. Off at first.
  int notification_fd() const { return notification_.get(); }
  void set_notifications(bool on);

 private:
  struct Close {
    void operator()(io_uring* ring) const;
  };

  void make_file_table();

  const UringSystem& system_;
  std::unique_ptr<io_uring, Close> ring_;
  UniqueFd notification_;
  std::vector<int> free_indices_;
};

}  // namespace sluice
