#include "test/support/manual_host.h"

#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

namespace sluice {
namespace {

// The clock does not begin at 0, where "an hour ago" would not exist.
constexpr uint64_t kStartNs = 3600 * kNsPerSec;
// Home threads take their ids from the top, out of the way of those that ThreadDirectory counts from 1.
constexpr uint64_t kFirstHomeId = uint64_t{1} << 32;
constexpr int kEventBatch = 64;
// Work that makes work for ever is a bug: end there, and say so.
constexpr uint64_t kMaxTurns = 10'000'000;

CpuMask mask_of(uint32_t index) {
  CpuMask mask;
  mask.set(index);
  return mask;
}

}  // namespace

ManualHost::ManualHost(uint32_t index, PollMode mode, uint64_t now_ns)
    : index_(index), epoll_(::epoll_create1(EPOLL_CLOEXEC)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  CHECK(epoll_);
  CHECK(wake_);
  // Edge-triggered and never read: each write is an edge of its own.
  epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.ptr = nullptr}};
  CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) == 0);
  mode_ = mode;
  now_ns_ = now_ns;
  home_ = std::make_unique<LwThread>(fmt::format("host_{}", index), kFirstHomeId + index, mask_of(index), *this);
  attached_.push_back(*home_);
}

ManualHost::~ManualHost() {
  const Entered entered(*this);
  destroy_locals();
  CHECK(inbox_.empty());
  while (LwThread* thread = attached_.pop_front()) CHECK(thread == home_.get());
  while (LwThread* thread = runnable_.pop_front()) CHECK(thread == home_.get());
}

void ManualHost::set_mode(PollMode mode, uint64_t window_ns) {
  const Entered entered(*this);
  mode_ = mode;
  window_ns_ = mode == PollMode::kAdaptive ? window_ns : 0;
  if (mode == PollMode::kPoll) attached_.for_each([](LwThread& thread) { thread.make_all_hot(); });
}

bool ManualHost::turn() {
  const Entered entered(*this);
  // Looks before it drains: a message that comes in between leaves an edge, so that wait() returns.
  bool worked = look();
  worked |= drain_inbox();
  wake_due_threads();
  worked |= run_threads();
  return worked;
}

void ManualHost::post(Message& message) {
  if (is_current()) {
    deliver(message);
    return;
  }
  {
    const std::lock_guard lock(inbox_mutex_);
    inbox_.push_back(message);
  }
  const uint64_t one = 1;
  CHECK(::write(wake_.get(), &one, sizeof(one)) == sizeof(one));
}

void ManualHost::deliver(Message& message) {
  LwThread& target = *message.target;
  if (&target.host() != this) {  // it has moved since the message was sent
    target.host().post(message);
    return;
  }
  attach(target);
  target.defer(message);
}

bool ManualHost::drain_inbox() {
  Fifo<Work> messages = [this] {
    const std::lock_guard lock(inbox_mutex_);
    return std::move(inbox_);
  }();
  bool any = false;
  while (Work* work = messages.pop_front()) {
    deliver(static_cast<Message&>(*work));
    any = true;
  }
  return any;
}

void ManualHost::attach(LwThread& thread) {
  if (!thread.ListHook<AttachTag>::linked()) attached_.push_back(thread);
}

void ManualHost::detach(LwThread& thread) {
  thread.ListHook<AttachTag>::unlink();
  deadlines_.remove(thread);
  Message& done = *thread.exit_message();
  done.target->send(done);  // from here on the thread may be freed
}

void ManualHost::make_runnable(LwThread& thread) {
  attach(thread);
  if (thread.ListHook<RunTag>::linked()) return;
  runnable_.push_back(thread);
  ++runnable_count_;
}

void ManualHost::deadline_changed(LwThread& thread) {
  const uint64_t deadline_ns = thread.next_deadline_ns();
  if (deadline_ns == UINT64_MAX) {
    deadlines_.remove(thread);
  } else {
    deadlines_.set(thread, deadline_ns);
  }
}

void ManualHost::wake_due_threads() {
  while (deadlines_.earliest_deadline_ns() <= now_ns_) {
    LwThread& thread = deadlines_.earliest();
    deadlines_.remove(thread);  // put back after its turn
    make_runnable(thread);
  }
}

bool ManualHost::run_threads() {
  bool any_worked = false;
  for (size_t turns = runnable_count_; turns > 0 && !runnable_.empty(); --turns) {
    LwThread& thread = runnable_.front();
    // To the back first: while it runs it must be linked, so that what it defers does not add it again.
    thread.ListHook<RunTag>::unlink();
    runnable_.push_back(thread);
    const auto [worked, runnable] = thread.run();
    any_worked |= worked;
    if (!thread.HeapEntry::in_heap() && thread.next_deadline_ns() != UINT64_MAX) {
      deadlines_.set(thread, thread.next_deadline_ns());
    }
    if (!runnable || thread.exit_message() != nullptr) {
      thread.ListHook<RunTag>::unlink();
      --runnable_count_;
    }
    if (thread.exit_message() != nullptr) detach(thread);
  }
  return any_worked;
}

Result<> ManualHost::watch(EventSource& source) {
  epoll_event event{.events = source.events(), .data = {.ptr = &source}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, source.fd(), &event) != 0) {
    return fail_errno("cannot watch a file descriptor");
  }
  return {};
}

void ManualHost::unwatch(EventSource& source) {
  CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, source.fd(), nullptr) == 0);
  for (int i = 0; i < batch_size_; ++i) {
    if (batch_[i].data.ptr == &source) batch_[i].data.ptr = nullptr;
  }
}

bool ManualHost::look() {
  epoll_event events[kEventBatch];
  const int count = ::epoll_wait(epoll_.get(), events, kEventBatch, 0);
  CHECK(count >= 0 || errno == EINTR);
  batch_ = events;
  batch_size_ = std::max(count, 0);
  bool any = false;
  for (int i = 0; i < batch_size_; ++i) {
    auto* source = static_cast<EventSource*>(events[i].data.ptr);
    if (source == nullptr) continue;
    source->thread()->dispatch(*source, events[i].events);
    any = true;
  }
  batch_ = nullptr;
  batch_size_ = 0;
  return any;
}

// --- ManualHosts ---

ManualHosts::ManualHosts(size_t count, PollMode mode) {
  CHECK(count > 0);
  for (uint32_t i = 0; i < count; ++i) hosts_.push_back(std::make_unique<ManualHost>(i, mode, kStartNs));
}

void ManualHosts::set_mode(PollMode mode, uint64_t window_ns) {
  for (const auto& host : hosts_) host->set_mode(mode, window_ns);
}

void ManualHosts::advance(uint64_t ns) {
  for (const auto& host : hosts_) host->advance(ns);
}

bool ManualHosts::turn() {
  bool worked = false;
  for (const auto& host : hosts_) worked |= host->turn();
  return worked;
}

void ManualHosts::run_until_idle() {
  for (uint64_t turns = 0; turn(); ++turns) CHECK(turns < kMaxTurns);
}

bool ManualHosts::run_until(const std::function<bool()>& reached, uint64_t patience_ns) {
  const uint64_t limit_ns = sluice::now_ns() + patience_ns;
  while (!reached()) {
    if (turn()) continue;
    const uint64_t now = sluice::now_ns();
    if (now >= limit_ns) return reached();
    wait(limit_ns - now);
  }
  return true;
}

void ManualHosts::wait(uint64_t timeout_ns) {
  // Hot pollers do not notify: they must be polled on.
  if (std::ranges::any_of(hosts_, [](const auto& host) { return host->runnable(); })) {
    ::sched_yield();
    return;
  }
  std::vector<pollfd> fds;
  for (const auto& host : hosts_) fds.push_back({.fd = host->epoll_fd(), .events = POLLIN, .revents = 0});
  const uint64_t timeout_ms = std::min<uint64_t>(timeout_ns / kNsPerMs + 1, INT_MAX);
  CHECK(::poll(fds.data(), fds.size(), static_cast<int>(timeout_ms)) >= 0 || errno == EINTR);
}

Result<ThreadHost*> ManualHosts::place(const CpuMask& cpumask) {
  for (size_t tried = 0; tried < hosts_.size(); ++tried) {
    ManualHost& host = *hosts_[next_];
    next_ = (next_ + 1) % hosts_.size();
    if (cpumask.test(host.index())) return &host;
  }
  return fail(EINVAL, "no host stands for a core of this mask");
}

CpuMask ManualHosts::all_cpus() const {
  CpuMask mask;
  for (const auto& host : hosts_) mask.set(host->index());
  return mask;
}

}  // namespace sluice
