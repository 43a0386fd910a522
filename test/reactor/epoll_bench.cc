// What a ready descriptor costs when it is registered in the reactor's epoll instance directly, and when it sits in an
// epoll instance of its thread's, which is registered in the reactor's. See docs/decisions/0003-flat-epoll.md.
#include <benchmark/benchmark.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <vector>

#include "lib/base/check.h"
#include "lib/base/unique_fd.h"

namespace sluice {
namespace {

void watch(int epoll, int fd) {
  epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.fd = fd}};
  CHECK(::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}

void signal_fd(int fd) {
  const uint64_t one = 1;
  CHECK(::write(fd, &one, sizeof(one)) == sizeof(one));
}

// The argument is how many of 64 threads have a ready descriptor.
void flat(benchmark::State& state) {
  const UniqueFd reactor(::epoll_create1(0));
  std::vector<UniqueFd> fds;
  for (int i = 0; i < 64; ++i) {
    fds.emplace_back(::eventfd(0, EFD_NONBLOCK));
    watch(reactor.get(), fds.back().get());
  }
  std::array<epoll_event, 64> events;
  for (auto _ : state) {
    for (int i = 0; i < state.range(0); ++i) signal_fd(fds[static_cast<size_t>(i)].get());
    benchmark::DoNotOptimize(::epoll_wait(reactor.get(), events.data(), 64, 0));
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(flat)->Arg(1)->Arg(8)->Arg(64);

void nested(benchmark::State& state) {
  const UniqueFd reactor(::epoll_create1(0));
  std::vector<UniqueFd> threads;
  std::vector<UniqueFd> fds;
  for (int i = 0; i < 64; ++i) {
    threads.emplace_back(::epoll_create1(0));
    fds.emplace_back(::eventfd(0, EFD_NONBLOCK));
    watch(threads.back().get(), fds.back().get());
    epoll_event event{.events = EPOLLIN, .data = {.fd = threads.back().get()}};
    CHECK(::epoll_ctl(reactor.get(), EPOLL_CTL_ADD, threads.back().get(), &event) == 0);
  }
  std::array<epoll_event, 64> events;
  std::array<epoll_event, 8> inner;
  for (auto _ : state) {
    for (int i = 0; i < state.range(0); ++i) signal_fd(fds[static_cast<size_t>(i)].get());
    const int ready = ::epoll_wait(reactor.get(), events.data(), 64, 0);
    for (int i = 0; i < ready; ++i)
      benchmark::DoNotOptimize(::epoll_wait(events[static_cast<size_t>(i)].data.fd, inner.data(), 8, 0));
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(nested)->Arg(1)->Arg(8)->Arg(64);

}  // namespace
}  // namespace sluice

BENCHMARK_MAIN();
