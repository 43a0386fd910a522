#include "lib/reactor/reactor.h"

#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

#include "lib/base/clock.h"
#include "lib/base/log.h"

namespace sluice {
namespace {

// Messages a reactor can hold before senders keep theirs. 128 KiB; a burst of two per device of a full host.
constexpr unsigned kRingCapacity = 16384;
constexpr size_t kMessageBurst = 64;
constexpr int kEventBatch = 64;

}  // namespace

Result<std::unique_ptr<Reactor>> Reactor::create(uint32_t lcore, size_t index, size_t peers, uint64_t home_id) {
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll) return fail_errno("cannot create an epoll instance");
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return fail_errno("cannot create an eventfd");
  // Edge-triggered and never read: each write is an edge of its own.
  epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.ptr = nullptr}};
  if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, wake.get(), &event) != 0) return fail_errno("cannot watch an eventfd");
  return std::unique_ptr<Reactor>(new Reactor(lcore, index, peers, home_id, std::move(epoll), std::move(wake)));
}

Reactor::Reactor(uint32_t lcore, size_t index, size_t peers, uint64_t home_id, UniqueFd epoll, UniqueFd wake)
    : lcore_(lcore),
      index_(index),
      epoll_(std::move(epoll)),
      wake_(std::move(wake)),
      ring_(kRingCapacity),
      outboxes_(peers),
      outbox_destinations_(peers) {
  CpuMask mask;
  mask.set(lcore);
  home_ = std::make_unique<LwThread>(fmt::format("reactor_{}", lcore), home_id, mask, *this);
  attached_.push_back(*home_);
}

Reactor::~Reactor() {
  // Only its home thread is left: whoever made the others has ended them.
  while (LwThread* thread = attached_.pop_front()) CHECK(thread == home_.get());
  while (LwThread* thread = runnable_.pop_front()) CHECK(thread == home_.get());
}

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

void Reactor::deliver(Message& message) {
  LwThread& target = *message.target;
  if (&target.host() != this) {  // it has moved since the message was sent
    target.host().post(message);
    return;
  }
  if (!target.ListHook<AttachTag>::linked()) attached_.push_back(target);
  target.defer(message);
}

bool Reactor::drain_ring() {
  Message* messages[kMessageBurst];
  const size_t count = ring_.pop(messages, kMessageBurst);
  for (size_t i = 0; i < count; ++i) deliver(*messages[i]);
  return count > 0;
}

void Reactor::make_runnable(LwThread& thread) {
  if (thread.ListHook<RunTag>::linked()) return;
  runnable_.push_back(thread);
  ++runnable_count_;
}

void Reactor::deadline_changed(LwThread& thread) {
  const uint64_t deadline_ns = thread.next_deadline_ns();
  if (deadline_ns == UINT64_MAX) {
    deadlines_.remove(thread);
  } else {
    deadlines_.set(thread, deadline_ns);
  }
}

void Reactor::wake_due_threads() {
  while (deadlines_.earliest_deadline_ns() <= now_ns_) {
    LwThread& thread = deadlines_.earliest();
    deadlines_.remove(thread);  // put back after its turn
    make_runnable(thread);
  }
}

bool Reactor::run_threads() {
  bool any_worked = false;
  for (size_t turns = runnable_count_; turns > 0 && !runnable_.empty(); --turns) {
    LwThread& thread = runnable_.front();
    if (runnable_count_ > 1) {
      thread.ListHook<RunTag>::unlink();
      runnable_.push_back(thread);
    }
    const auto [worked, runnable] = thread.run();
    any_worked |= worked;
    const uint64_t end_ns = sluice::now_ns();
    thread.account(end_ns - now_ns_, worked);
    now_ns_ = end_ns;
    if (!thread.HeapEntry::in_heap() && thread.next_deadline_ns() != UINT64_MAX)
      deadlines_.set(thread, thread.next_deadline_ns());
    if (!runnable || thread.exit_message() != nullptr) {
      thread.ListHook<RunTag>::unlink();
      --runnable_count_;
    }
    if (thread.exit_message() != nullptr) detach(thread);
  }
  return any_worked;
}

void Reactor::detach(LwThread& thread) {
  thread.ListHook<AttachTag>::unlink();
  deadlines_.remove(thread);
  Message& done = *thread.exit_message();
  done.target->send(done);  // from here on the thread may be freed
}

Result<> Reactor::watch(EventSource& source) {
  epoll_event event{.events = source.events(), .data = {.ptr = &source}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, source.fd(), &event) != 0)
    return fail_errno("cannot watch a file descriptor");
  return {};
}

void Reactor::unwatch(EventSource& source) {
  // By hand, although we shall close the descriptor: its open file may live on in another process.
  CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, source.fd(), nullptr) == 0);
  for (int i = 0; i < batch_size_; ++i) {
    if (batch_[i].data.ptr == &source) batch_[i].data.ptr = nullptr;
  }
}

bool Reactor::look(uint64_t timeout_ns) {
  epoll_event events[kEventBatch];
  const timespec timeout{.tv_sec = static_cast<time_t>(timeout_ns / kNsPerSec),
                         .tv_nsec = static_cast<long>(timeout_ns % kNsPerSec)};
  const int count =
      ::epoll_pwait2(epoll_.get(), events, kEventBatch, timeout_ns == UINT64_MAX ? nullptr : &timeout, nullptr);
  now_ns_ = sluice::now_ns();
  last_look_ns_ = now_ns_;
  CHECK(count >= 0 || errno == EINTR);
  batch_ = events;
  batch_size_ = count;
  bool worked = false;
  for (int i = 0; i < count; ++i) {
    auto* source = static_cast<EventSource*>(events[i].data.ptr);
    if (source == nullptr) continue;
    source->thread()->dispatch(*source, events[i].events);
    worked = true;
  }
  batch_ = nullptr;
  batch_size_ = 0;
  return worked;
}

bool Reactor::sleep() {
  sleeping_.store(true, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // pairs with wake()
  if (!ring_.empty() || stopping_.load(std::memory_order_relaxed)) {
    sleeping_.store(false, std::memory_order_relaxed);
    return false;
  }
  const uint64_t start_ns = now_ns_;
  const uint64_t deadline_ns = deadlines_.earliest_deadline_ns();
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
  ::pthread_setname_np(::pthread_self(), home_->name().c_str());
  set_current(this);
  now_ns_ = sluice::now_ns();
  uint64_t accounted_ns = now_ns_;
  bool worked = false;
  while (!stopping_.load(std::memory_order_relaxed)) {
    worked |= drain_ring();
    if (outboxes_in_use_ > 0) worked |= flush_outboxes();
    wake_due_threads();
    worked |= run_threads();
    if (runnable_.empty()) now_ns_ = sluice::now_ns();
    *(worked ? &stats_.busy_ns : &stats_.idle_ns) += now_ns_ - accounted_ns;
    accounted_ns = now_ns_;
    // What the sources' handlers do belongs to the next turn's account: now_ns_ is still the time before them.
    worked = false;
    if (runnable_.empty() && mode_ != PollMode::kPoll) {
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

void Reactor::set_mode(PollMode mode, uint64_t window_ns) {
  mode_ = mode;
  window_ns_ = mode == PollMode::kAdaptive ? window_ns : 0;
  if (mode == PollMode::kPoll) attached_.for_each([](LwThread& thread) { thread.make_all_hot(); });
}

ReactorStats Reactor::stats() {
  ReactorStats stats = stats_;
  attached_.for_each([&](LwThread& thread) {
    stats.threads.push_back(
        {thread.name(), thread.id(), thread.cpumask().to_string(), thread.busy_ns() + thread.idle_ns()});
  });
  return stats;
}

}  // namespace sluice
