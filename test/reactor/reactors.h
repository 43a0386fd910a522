// Two real reactors on OS threads of their own, for tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "lib/base/clock.h"
#include "lib/base/cpu_mask.h"
#include "lib/reactor/reactor.h"
#include "lib/thread/await.h"

namespace sluice {

inline constexpr PollMode kModes[] = {PollMode::kPoll, PollMode::kInterrupt, PollMode::kAdaptive};

// Two reactors, on a core each if the process has two; on one otherwise, where they take turns.
class Reactors {
 public:
  explicit Reactors(PollMode mode = PollMode::kInterrupt) {
    const CpuMask available = CpuMask::available();
    std::vector<uint32_t> cores;
    for (uint32_t core = 0; core < CpuMask::kMaxCpus && cores.size() < 2; ++core) {
      if (available.test(core)) cores.push_back(core);
    }
    for (size_t i = 0; i < 2; ++i) {
      reactors_.push_back(*Reactor::create(cores[i % cores.size()], i, 2, 100 + i));
      reactors_.back()->set_mode(mode);
    }
    for (const auto& reactor : reactors_) os_threads_.emplace_back([&reactor = *reactor] { reactor.run(); });
  }
  ~Reactors() { stop(); }

  void stop() {
    for (const auto& reactor : reactors_) reactor->request_stop();
    for (std::thread& thread : os_threads_) thread.join();
    os_threads_.clear();
  }

  Reactor& operator[](size_t index) { return *reactors_[index]; }
  LwThread& home(size_t index) { return reactors_[index]->home(); }

  // Runs fn() as the home thread of the reactor, and waits for it.
  void on(size_t index, const std::function<void()>& fn) {
    std::promise<void> done;
    post_to(home(index), [&] {
      fn();
      done.set_value();
    });
    done.get_future().get();
  }
  ReactorStats stats(size_t index) {
    ReactorStats stats;
    on(index, [&] { stats = reactors_[index]->stats(); });
    return stats;
  }

 private:
  std::vector<std::unique_ptr<Reactor>> reactors_;
  std::vector<std::thread> os_threads_;
};

// Waits for `ns` by a timer on the reactor.
inline void wait_on_reactor(Reactors& reactors, size_t index, uint64_t ns) {
  std::promise<void> due;
  Timer timer("test", [&due] { due.set_value(); });
  reactors.on(index, [&] { timer.arm_at(reactors.home(index), reactors.home(index).now_ns() + ns); });
  due.get_future().get();
}

}  // namespace sluice
