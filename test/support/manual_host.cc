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
// Work that makes work for ever is a bug: end there, and say so.
constexpr uint64_t kMaxTurns = 10'000'000;

EpollSet make_sources() {
  auto sources = EpollSet::create();
  CHECK(sources.has_value());
  return std::move(*sources);
}

}  // namespace

ManualHost::ManualHost(uint32_t index, PollMode mode, uint64_t now_ns)
    : ThreadHost(fmt::format("host_{}", index), kFirstHomeId + index, index, Clock::kManual, make_sources()),
      index_(index),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      turn_ns_(now_ns) {
  CHECK(wake_);
  CHECK(sources_.add_wake(wake_.get()));
  now_ns_ = now_ns;
  const Entered entered(*this);
  set_mode(mode);
}

ManualHost::~ManualHost() {
  const Entered entered(*this);
  destroy_locals();
  CHECK(inbox_.empty());
}

bool ManualHost::turn() {
  const Entered entered(*this);
  // What has passed since the last turn it spent polling, unless there was nothing to poll.
  const uint64_t passed_ns = runnable() ? now_ns_ - turn_ns_ : 0;
  if (!runnable()) end_sleep();
  turn_ns_ = now_ns_;
  // Looks before it drains: a message that comes in between leaves an edge, so that wait() returns.
  sources_.wait(0);
  bool worked = sources_.dispatch();
  worked |= drain_inbox();
  worked |= run_threads();
  end_turn(worked, passed_ns);
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

bool ManualHost::has_mail() {
  const std::lock_guard lock(inbox_mutex_);
  return !inbox_.empty();
}

bool ManualHost::drain_inbox() {
  bool any = false;
  for (;;) {
    Work* work = nullptr;
    if (random_ == nullptr || (*random_)() % 4 != 0) {
      const std::lock_guard lock(inbox_mutex_);
      work = inbox_.pop_front();
    }
    if (work == nullptr) return any;
    deliver(static_cast<Message&>(*work));
    any = true;
  }
}

// --- ManualHosts ---

ManualHosts::ManualHosts(size_t count, PollMode mode) {
  CHECK(count > 0);
  for (uint32_t i = 0; i < count; ++i) hosts_.push_back(std::make_unique<ManualHost>(i, mode, kStartNs));
}

void ManualHosts::set_mode(PollMode mode) {
  for (const auto& host : hosts_) {
    const ManualHost::Entered entered(*host);
    host->set_mode(mode);
  }
}

void ManualHosts::set_polling(const PollingOptions& options) {
  for (const auto& host : hosts_) host->set_polling(options);
}

void ManualHosts::set_seed(uint64_t seed) {
  random_.emplace(seed);
  for (const auto& host : hosts_) host->random_ = &*random_;
}

void ManualHosts::advance(uint64_t ns) {
  for (const auto& host : hosts_) host->advance(ns);
}

uint64_t ManualHosts::next_deadline_ns() const {
  uint64_t earliest = UINT64_MAX;
  for (const auto& host : hosts_) earliest = std::min(earliest, host->next_deadline_ns());
  return earliest;
}

bool ManualHosts::turn() {
  bool worked = false;
  if (!random_) {
    for (const auto& host : hosts_) worked |= host->turn();
    return worked;
  }
  std::vector<ManualHost*> order;
  for (const auto& host : hosts_) order.push_back(host.get());
  std::ranges::shuffle(order, *random_);
  for (ManualHost* host : order) {
    // One that has no turn may have something to do.
    worked |= (*random_)() % 4 == 0 || host->turn();
  }
  return worked || std::ranges::any_of(hosts_, [](const auto& host) { return host->has_mail(); });
}

void ManualHosts::run_until_idle() {
  // Pollers go cold in the turn after one that found nothing.
  int vain = 0;
  for (uint64_t turns = 0; vain < 2; ++turns) {
    CHECK(turns < kMaxTurns);
    vain = turn() ? 0 : vain + 1;
  }
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

std::vector<ThreadHost*> ManualHosts::hosts() const {
  std::vector<ThreadHost*> hosts;
  for (const auto& host : hosts_) hosts.push_back(host.get());
  return hosts;
}

CpuMask ManualHosts::all_cpus() const {
  CpuMask mask;
  for (const auto& host : hosts_) mask.set(host->index());
  return mask;
}

}  // namespace sluice
