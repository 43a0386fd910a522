#include "lib/vhost/guarded_write.h"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <mutex>

#include "lib/base/check.h"
#include "lib/base/clock.h"
#include "lib/base/unique_fd.h"

namespace sluice::vhost {
namespace {

// One OS thread's timer. The signal handler runs on the same thread.
struct Guard {
  timer_t timer{};
  bool made = false;
  std::atomic<bool> armed = false;
  std::atomic<bool> used = false;     // since the last tick
  std::atomic<bool> writing = false;  // now

  void set(uint64_t period_ns) const {
    const timespec period{.tv_sec = 0, .tv_nsec = static_cast<long>(period_ns)};
    const itimerspec spec{.it_interval = period, .it_value = period};
    ::timer_settime(timer, 0, &spec, nullptr);
  }

  ~Guard() {
    if (made) ::timer_delete(timer);
  }
};

thread_local Guard guard;

// That it interrupts a system call is all it is for. Without writes since the last tick it ends the ticking, but never
// during a write: ticks may come before the thread, preempted, gets to where it blocks.
void on_tick(int /*signal*/, siginfo_t* info, void* /*context*/) {
  auto& self = *static_cast<Guard*>(info->si_value.sival_ptr);
  if (self.used.exchange(false, std::memory_order_relaxed) || self.writing.load(std::memory_order_relaxed)) return;
  self.armed.store(false, std::memory_order_relaxed);
  // A last tick may come when the thread ends and its timer is gone; what was interrupted must not see the error.
  const int interrupted_errno = errno;
  self.set(0);
  errno = interrupted_errno;
}

void make_timer() {
  static std::once_flag installed;
  std::call_once(installed, [] {
    struct sigaction action{};
    action.sa_sigaction = on_tick;
    action.sa_flags = SA_SIGINFO;  // not SA_RESTART: a write that blocks is to end
    sigemptyset(&action.sa_mask);
    CHECK(::sigaction(SIGRTMIN, &action, nullptr) == 0);
  });
  sigset_t tick;
  sigemptyset(&tick);
  sigaddset(&tick, SIGRTMIN);
  CHECK(::pthread_sigmask(SIG_UNBLOCK, &tick, nullptr) == 0);
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = SIGRTMIN;
  event._sigev_un._tid = ::gettid();
  event.sigev_value.sival_ptr = &guard;
  CHECK(::timer_create(CLOCK_MONOTONIC, &event, &guard.timer) == 0);
  guard.made = true;
}

const uint64_t kOne = 1;
std::atomic<uint64_t> careful_until_ns{0};

// One OS thread's reads of nothing, from a file that has nothing.
class Signaller {
 public:
  ~Signaller() {
    if (context_ != 0) ::syscall(SYS_io_destroy, context_);
  }

  // Before descriptors are scarce: who attacks may see to that.
  void make() {
    static const UniqueFd nothing(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    nothing_ = nothing.get();
    if (::syscall(SYS_io_setup, kEvents, &context_) != 0) context_ = 0;
  }

  // Adds 1 to an eventfd, or leaves it full. False: it is none, or the system has no asynchronous I/O for us.
  bool signal(int eventfd) {
    if (nothing_ < 0 || context_ == 0) return false;
    iocb read{};
    read.aio_lio_opcode = IOCB_CMD_PREAD;
    read.aio_fildes = static_cast<uint32_t>(nothing_);
    read.aio_flags = IOCB_FLAG_RESFD;
    read.aio_resfd = static_cast<uint32_t>(eventfd);
    iocb* reads = &read;
    if (::syscall(SYS_io_submit, context_, 1, &reads) != 1) return false;
    std::array<io_event, kEvents> done{};
    ::syscall(SYS_io_getevents, context_, 0, done.size(), done.data(), nullptr);
    return true;
  }

 private:
  static constexpr size_t kEvents = 8;
  int nothing_ = -1;  // the process's
  aio_context_t context_ = 0;
};

thread_local Signaller signaller;

// False: only a plain write is left.
bool careful_write(int fd) {
  if (signaller.signal(fd) || ::send(fd, &kOne, sizeof(kOne), MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return true;
  if (errno != ENOTSOCK) return true;
  const iovec one{.iov_base = const_cast<uint64_t*>(&kOne), .iov_len = sizeof(kOne)};
  return ::vmsplice(fd, &one, 1, SPLICE_F_NONBLOCK) >= 0 || errno != EBADF;  // that is: not a pipe
}

}  // namespace

GuardedWrite guarded_write(int fd) {
  if (!guard.made) {
    make_timer();
    signaller.make();
  }
  if (const uint64_t until = careful_until_ns.load(std::memory_order_relaxed);
      until != 0 && now_ns() < until && careful_write(fd)) {
    return GuardedWrite::kDone;
  }
  guard.used.store(true, std::memory_order_relaxed);
  guard.writing.store(true, std::memory_order_relaxed);
  if (!guard.armed.load(std::memory_order_relaxed)) {
    guard.armed.store(true, std::memory_order_relaxed);
    guard.set(kGuardPeriodNs);
  }
  // EAGAIN: it is full, so the other side has been told often enough. Other errors are the front end's own.
  const bool blocked = ::write(fd, &kOne, sizeof(kOne)) < 0 && errno == EINTR;
  guard.writing.store(false, std::memory_order_relaxed);
  if (blocked) careful_until_ns.store(now_ns() + kCarefulNs, std::memory_order_relaxed);
  return blocked ? GuardedWrite::kBlocked : GuardedWrite::kDone;
}

void forget_blocked_writes() { careful_until_ns.store(0, std::memory_order_relaxed); }

}  // namespace sluice::vhost
