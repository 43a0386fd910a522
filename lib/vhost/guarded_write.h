// guarded_write(): writes to a descriptor that a front end has given us, without ever blocking for long.
//
// A front end shares the open file's flags with us and can clear O_NONBLOCK, and it can fill an eventfd's counter or a
// pipe, so that a write blocks; no flag of a single write prevents that. While descriptors are being written to, a
// timer signals the OS thread every kGuardPeriodNs, so a write that blocks ends with EINTR. The timer stops by itself
// when nothing is written any more: an idle process has none.
//
// That costs everybody on this OS thread up to two such periods, and a front end may do it again and again. So for
// kCarefulNs after a write has blocked, all of the process write in ways that cannot block, at three times the price:
// an eventfd by way of a read of nothing with asynchronous I/O, whose completion the kernel signals without waiting for
// room; a pipe or socket by a call that takes the wish not to wait itself.
//
// Thread: any OS thread; each has a timer and an aio context of its own, made at its first write; the process's first
//         write takes a descriptor for good. Uses the signal SIGRTMIN.
// Source: timer_create(2), signal-safety(7), io_submit(2) (IOCB_FLAG_RESFD), vmsplice(2).
#pragma once

#include <cstdint>

namespace sluice::vhost {

inline constexpr uint64_t kGuardPeriodNs = 10'000'000;
inline constexpr uint64_t kCarefulNs = 60'000'000'000;

enum class GuardedWrite : uint8_t {
  kDone,     // written, or the descriptor was full and the other side has not looked yet, or has gone
  kBlocked,  // the descriptor blocks: it must not be used again
};

// Writes the eight bytes of the number 1.
GuardedWrite guarded_write(int fd);

// For tests: as if none had ever blocked.
void forget_blocked_writes();

}  // namespace sluice::vhost
