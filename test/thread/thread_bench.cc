// What a lightweight thread's own machinery costs: deferred work, messages, pollers, timers, tasks. On ManualHost, so
// without a reactor's clock and epoll; one core.
#include <benchmark/benchmark.h>

#include <memory>
#include <vector>

#include "lib/thread/await.h"
#include "test/support/manual_host.h"

namespace sluice {
namespace {

// Work that defers itself again until it has run `left` times.
struct Chain : Work {
  LwThread* thread = nullptr;
  int64_t left = 0;
};

void deferred_work(benchmark::State& state) {
  ManualHosts hosts(1, PollMode::kPoll);
  Chain chain;
  chain.thread = &hosts.home();
  chain.run = [](Work& work) {
    auto& self = static_cast<Chain&>(work);
    if (--self.left > 0) self.thread->defer(self);
  };
  constexpr int64_t kRounds = 4096;
  for (auto _ : state) {
    chain.left = kRounds;
    hosts.on(*chain.thread, [&] { chain.thread->defer(chain); });
    while (chain.left > 0) hosts.turn();
  }
  state.SetItemsProcessed(state.iterations() * kRounds);
}
BENCHMARK(deferred_work);

// From one lightweight thread to another of the same host, and back.
void message_round_trip(benchmark::State& state) {
  ManualHosts hosts(1, PollMode::kPoll);
  ThreadDirectory threads(hosts);
  LwThread* other = hosts.on(hosts.home(), [&] { return threads.create("other", hosts.all_cpus()).value(); });
  struct Ball : Message {
    LwThread* sides[2] = {};
    int64_t left = 0;
  } ball;
  ball.sides[0] = &hosts.home();
  ball.sides[1] = other;
  ball.run = [](Work& work) {
    auto& self = static_cast<Ball&>(work);
    if (--self.left > 0) self.sides[self.left & 1]->send(self);
  };
  constexpr int64_t kRounds = 4096;
  for (auto _ : state) {
    ball.left = 2 * kRounds;
    hosts.on(hosts.home(), [&] { other->send(ball); });
    while (ball.left > 0) hosts.turn();
  }
  state.SetItemsProcessed(state.iterations() * kRounds);
  hosts.await(hosts.home(), threads.destroy(*other));
}
BENCHMARK(message_round_trip);

class IdlePoller final : public Poller {
 public:
  IdlePoller() : Poller("idle") {}
  bool poll() override { return false; }
  bool pure_poll() override { return false; }
  bool try_sleep() override { return true; }
  void wake_up() override {}
};

// One turn with so many hot pollers that find nothing.
void poller_turn(benchmark::State& state) {
  ManualHosts hosts(1, PollMode::kPoll);
  std::vector<std::unique_ptr<IdlePoller>> pollers(static_cast<size_t>(state.range(0)));
  hosts.on(hosts.home(), [&] {
    for (auto& poller : pollers) {
      poller = std::make_unique<IdlePoller>();
      hosts.home().add_poller(*poller);
    }
  });
  for (auto _ : state) hosts.home().run();
  state.SetItemsProcessed(state.iterations() * state.range(0));
  hosts.on(hosts.home(), [&] {
    for (auto& poller : pollers) hosts.home().remove_poller(*poller);
  });
}
BENCHMARK(poller_turn)->Arg(1)->Arg(64)->Arg(4096);

// Arms and cancels a timer among so many others.
void timer_arm_cancel(benchmark::State& state) {
  ManualHosts hosts(1, PollMode::kPoll);
  LwThread& home = hosts.home();
  std::vector<std::unique_ptr<Timer>> others;
  hosts.on(home, [&] {
    for (int64_t i = 0; i < state.range(0); ++i) {
      others.push_back(std::make_unique<Timer>("other", [] {}));
      others.back()->arm_at(home, home.now_ns() + kNsPerSec + static_cast<uint64_t>(i * 7919 % 1000));
    }
    Timer timer("measured", [] {});
    for (auto _ : state) {
      timer.arm_at(home, home.now_ns() + kNsPerSec + 500);
      timer.cancel();
    }
    others.clear();
  });
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(timer_arm_cancel)->Arg(0)->Arg(1000);

Task<int64_t> one() { co_return 1; }

// A task awaited by a task: a frame made, resumed, freed.
void task_await(benchmark::State& state) {
  ManualHosts hosts(1, PollMode::kPoll);
  constexpr int64_t kRounds = 4096;
  for (auto _ : state) {
    benchmark::DoNotOptimize(hosts.await(hosts.home(), []() -> Task<int64_t> {
      int64_t sum = 0;
      for (int64_t i = 0; i < kRounds; ++i) sum += co_await one();
      co_return sum;
    }()));
  }
  state.SetItemsProcessed(state.iterations() * kRounds);
}
BENCHMARK(task_await);

}  // namespace
}  // namespace sluice

BENCHMARK_MAIN();
