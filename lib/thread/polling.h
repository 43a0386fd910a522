// How eagerly a host polls, and how it learns when that pays: modes, settings, and the two things that learn.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lib/base/clock.h"

namespace sluice {

enum class PollMode : uint8_t {
  kPoll,       // every poller stays hot; the core never sleeps
  kInterrupt,  // a poller goes cold as soon as its core finds nothing to do (ThreadHost::min_vain_polls())
  kAdaptive,   // a poller goes cold after a window without work, which it learns
};

// Of adaptive mode. Source: the halt polling of Linux's KVM (Documentation/virt/kvm/halt-polling.rst), whose words
// these are.
struct PollingOptions {
  uint64_t max_poll_ns = 50 * kNsPerUs;    // no window is longer; 0: never polls in vain
  uint32_t grow = 2;                       // a window is multiplied by this when work came soon after it
  uint64_t grow_start_ns = 10 * kNsPerUs;  // the first window
  uint32_t shrink = 2;                     // and divided by this when none came for long; 0: becomes 0 at once
  // How much polling in vain may add to what the host's work costs, in percent. Polling that saved a sleep counts less
  // what that would have cost.
  uint32_t idle_poll_budget = 25;

  bool operator==(const PollingOptions&) const = default;
};

// PollWindow: how long one poller polls on in vain before it goes cold.
class PollWindow {
 public:
  uint64_t ns() const { return window_ns_; }

  // The poller went cold, and work came when nothing had been found for `gap_ns`.
  void learn(uint64_t gap_ns, const PollingOptions& options) {
    if (gap_ns > options.max_poll_ns) {
      window_ns_ = options.shrink == 0 ? 0 : window_ns_ / options.shrink;
      if (window_ns_ < options.grow_start_ns) window_ns_ = 0;
    } else {
      window_ns_ = std::min(std::max(window_ns_ * options.grow, options.grow_start_ns), options.max_poll_ns);
    }
  }

 private:
  uint64_t window_ns_ = 0;
};

// VainBudget: what polling in vain may cost a host. Work earns a share of its own cost; polling in vain costs what it
// takes, less what the sleep would have cost that it saved. So adaptive mode never costs much more than interrupt mode
// would, and nothing where polling is the cheaper of the two.
class VainBudget {
 public:
  // What going to sleep and waking up costs in processor time, taken low: a request in interrupt mode cost 2.7 us where
  // the next one came 10 us later, 6.6 at 33 us, 10 at 100 us, as caches cool down (docs/benchmarks/density.md).
  static constexpr int64_t kSleepCostNs = 4'000;
  // How far it goes up and down: some hundred windows of saving, and of debt.
  static constexpr int64_t kMaxNs = 2'000'000;

  bool left() const { return left_ns_ > 0; }

  void add_work(uint64_t ns, uint32_t percent) {
    // Whoever polled in vain until then would have slept instead.
    add(std::min(vain_ns_, kSleepCostNs) + static_cast<int64_t>(ns) * percent / 100);
    vain_ns_ = 0;
  }
  void add_vain(uint64_t ns) {
    vain_ns_ += static_cast<int64_t>(ns);
    add(-static_cast<int64_t>(ns));
  }
  // Going to sleep and waking up is work as well; and what was polled in vain before it has saved nothing.
  void add_sleep(uint32_t percent) {
    vain_ns_ = 0;
    add(kSleepCostNs * percent / 100);
  }

 private:
  void add(int64_t ns) { left_ns_ = std::clamp(left_ns_ + ns, -kMaxNs, kMaxNs); }

  int64_t left_ns_ = kMaxNs;
  int64_t vain_ns_ = 0;  // polled in vain since there was work, or a sleep
};

}  // namespace sluice
