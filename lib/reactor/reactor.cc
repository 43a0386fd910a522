#include "lib/reactor/reactor.h"

#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "lib/base/clock.h"
#include "lib/base/log.h"

namespace sluice {
namespace {

// Messages a reactor can hold before senders keep theirs. 128 KiB; a burst of two per device of a full host.
constexpr unsigned kRingCapacity = 16384;
constexpr size_t kMessageBurst = 64;
// About 2 us. A request in interrupt mode at depth 1 that finds its queue still hot takes a fifth of the processor time
// of one that wakes the core (docs/benchmarks/data-path.md).
constexpr uint32_t kMinVainPolls = 8;

}  // namespace

Result<std::unique_ptr<Reactor>> Reactor::create(uint32_t lcore, size_t index, size_t peers, uint64_t home_id) {
  auto sources = EpollSet::create();
  if (!sources) return std::unexpected(sources.error());
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return fail_errno("cannot create an eventfd");
  if (auto watched = sources->add_wake(wake.get()); !watched) return std::unexpected(watched.error());
  return std::unique_ptr<Reactor>(new Reactor(lcore, index, peers, home_id, std::move(*sources), std::move(wake)));
}

Reactor::Reactor(uint32_t lcore, size_t index, size_t peers, uint64_t home_id, EpollSet sources, UniqueFd wake)
    : ThreadHost(fmt::format("reactor_{}", lcore), home_id, lcore, Clock::kReal, std::move(sources)),
      lcore_(lcore),
      index_(index),
      wake_(std::move(wake)),
      ring_(kRingCapacity),
      outboxes_(peers),
      outbox_destinations_(peers) {
  set_min_vain_polls(kMinVainPolls);
}

Reactor::~Reactor() = default;

void Reactor::post(Message& message) {
  if (is_current()) {
    deliver(message);
  } else if (ThreadHost* sender = ThreadHost::current()) {
    static_cast<Reactor*>(sender)->forward(*this, message);
  } else {
    while (!ring_.push(message)) ::sched_yield();
    wake();
  }
}

void Reactor::forward(Reactor& destination, Message& message) {
  Fifo<Work>& outbox = outboxes_[destination.index_];
  if (outbox.empty() && destination.ring_.push(message)) {
    destination.wake();
    return;
  }
  if (outbox.empty()) ++outboxes_in_use_;
  outbox_destinations_[destination.index_] = &destination;
  outbox.push_back(message);
}

bool Reactor::flush_outboxes() {
  bool sent = false;
  for (size_t i = 0; i < outboxes_.size() && outboxes_in_use_ > 0; ++i) {
    Fifo<Work>& outbox = outboxes_[i];
    if (outbox.empty()) continue;
    Reactor& destination = *outbox_destinations_[i];
    // The link is taken out before the push: from then on the message is the destination's.
    while (Work* work = outbox.pop_front()) {
      if (!destination.ring_.push(static_cast<Message&>(*work))) {
        outbox.push_front(*work);
        break;
      }
      sent = true;
    }
    if (outbox.empty()) --outboxes_in_use_;
    destination.wake();
  }
  return sent;
}

// Pairs with sleep(): either this sees `sleeping_`, or the sleeper sees the message.
void Reactor::wake() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!sleeping_.load(std::memory_order_relaxed) || !sleeping_.exchange(false)) return;
  const uint64_t one = 1;
  // Cannot fail: the counter is never read, but it takes 2^64 - 2 wake-ups to fill.
  CHECK(::write(wake_.get(), &one, sizeof(one)) == sizeof(one));
}

bool Reactor::drain_ring() {
  Message* messages[kMessageBurst];
  const size_t count = ring_.pop(messages, kMessageBurst);
  for (size_t i = 0; i < count; ++i) deliver(*messages[i]);
  return count > 0;
}

bool Reactor::look(uint64_t timeout_ns) {
  sources_.wait(timeout_ns);
  now_ns_ = sluice::now_ns();
  last_look_ns_ = now_ns_;
  return sources_.dispatch();
}

bool Reactor::sleep() {
  sleeping_.store(true, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // pairs with wake()
  if (!ring_.empty() || stopping_.load(std::memory_order_relaxed)) {
    sleeping_.store(false, std::memory_order_relaxed);
    return false;
  }
  const uint64_t start_ns = now_ns_;
  const uint64_t deadline_ns = next_deadline_ns();
  uint64_t timeout_ns = UINT64_MAX;
  if (outboxes_in_use_ > 0) {
    timeout_ns = kLookIntervalNs;  // the destination's ring is full: nobody tells when it has room
  } else if (deadline_ns != UINT64_MAX) {
    timeout_ns = deadline_ns > start_ns ? deadline_ns - start_ns : 0;
  }
  // Dispatching follows at once and may take its time: senders need not wake us any more once the wait is over, but one
  // write too many is harmless, so the flag is cleared only after look().
  const bool worked = look(timeout_ns);
  sleeping_.store(false, std::memory_order_relaxed);
  stats_.asleep_ns += now_ns_ - start_ns;
  ++stats_.wakeups;
  end_sleep();
  return worked;
}

void Reactor::run() {
  tid_.store(::gettid(), std::memory_order_relaxed);
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(lcore_, &set);
  if (::pthread_setaffinity_np(::pthread_self(), sizeof(set), &set) != 0) {
    log(LogLevel::kWarning, LogFlag::kReactor, "reactor {} cannot be pinned to its core; it runs unpinned", lcore_);
  }
  ::pthread_setname_np(::pthread_self(), home().name().c_str());
  set_current(this);
  now_ns_ = sluice::now_ns();
  uint64_t accounted_ns = now_ns_;
  bool worked = false;
  while (!stopping_.load(std::memory_order_relaxed)) {
    worked |= drain_ring();
    if (outboxes_in_use_ > 0) worked |= flush_outboxes();
    worked |= run_threads();
    if (!has_runnable()) now_ns_ = sluice::now_ns();
    const uint64_t turn_ns = now_ns_ - accounted_ns;
    *(worked ? &stats_.busy_ns : &stats_.idle_ns) += turn_ns;
    end_turn(worked, turn_ns);
    accounted_ns = now_ns_;
    // What the sources' handlers do belongs to the next turn's account: now_ns_ is still the time before them.
    worked = false;
    if (!has_runnable() && mode() != PollMode::kPoll) {
      worked = sleep();
      accounted_ns = now_ns_;
    } else if (now_ns_ - last_look_ns_ >= kLookIntervalNs) {
      worked = look(0);
    }
  }
  destroy_locals();
  set_current(nullptr);
}

void Reactor::request_stop() {
  stopping_.store(true);
  const uint64_t one = 1;
  CHECK(::write(wake_.get(), &one, sizeof(one)) == sizeof(one));
}

ReactorStats Reactor::stats() {
  ReactorStats stats = stats_;
  for_each_thread([&](LwThread& thread) {
    stats.hot += thread.hot_count();
    stats.cold += thread.cold_count();
    stats.threads.push_back({.name = thread.name(),
                             .id = thread.id(),
                             .cpumask = thread.cpumask().to_string(),
                             .elapsed_ns = thread.busy_ns() + thread.idle_ns(),
                             .busy_ns = thread.busy_ns()});
  });
  return stats;
}

}  // namespace sluice
