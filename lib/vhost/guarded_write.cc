#include "lib/vhost/guarded_write.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <mutex>

#include "lib/base/check.h"

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

}  // namespace

GuardedWrite guarded_write(int fd) {
  if (!guard.made) make_timer();
  guard.used.store(true, std::memory_order_relaxed);
  guard.writing.store(true, std::memory_order_relaxed);
  if (!guard.armed.load(std::memory_order_relaxed)) {
    guard.armed.store(true, std::memory_order_relaxed);
    guard.set(kGuardPeriodNs);
  }
  const uint64_t one = 1;
  // EAGAIN: it is full, so the other side has been told often enough. Other errors are the front end's own.
  const bool blocked = ::write(fd, &one, sizeof(one)) < 0 && errno == EINTR;
  guard.writing.store(false, std::memory_order_relaxed);
  return blocked ? GuardedWrite::kBlocked : GuardedWrite::kDone;
}

}  // namespace sluice::vhost
