#include "lib/reactor/reactor_group.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <future>
#include <memory>
#include <string>

#include "lib/thread/await.h"

namespace sluice {
namespace {

CpuMask mask_of(uint32_t cpu) {
  CpuMask mask;
  mask.set(cpu);
  return mask;
}

int refusal(const CpuMask& mask) {
  const auto made = ReactorGroup::create(mask, PollMode::kInterrupt);
  return made ? 0 : made.error().code;
}

// Runs fn() on the thread and waits for it.
template <typename Fn>
void run_there(LwThread& thread, Fn fn) {
  std::promise<void> done;
  post_to(thread, [&] {
    fn();
    done.set_value();
  });
  done.get_future().get();
}

TEST(ReactorGroup, RefusesAMaskWithoutCores) { EXPECT_EQ(refusal(CpuMask()), EINVAL); }

TEST(ReactorGroup, RefusesACoreThatTheProcessMayNotUse) {
  CpuMask mask = CpuMask::available();
  uint32_t missing = 0;
  while (mask.test(missing)) ++missing;
  if (missing == CpuMask::kMaxCpus) GTEST_SKIP() << "this process may use every core there can be";
  EXPECT_EQ(refusal(mask_of(missing)), EINVAL);
  mask.set(missing);
  EXPECT_EQ(refusal(mask), EINVAL) << "not even together with others";
}

TEST(ReactorGroup, RunsOneReactorPerCorePinnedToIt) {
  const CpuMask mask = CpuMask::available();
  const auto group = *ReactorGroup::create(mask, PollMode::kInterrupt);
  EXPECT_EQ(group->reactors().size(), mask.count());
  EXPECT_EQ(group->all_cpus(), mask);
  group->start();
  for (const auto& reactor : group->reactors()) {
    EXPECT_EQ(group->find(reactor->lcore()), reactor.get());
    run_there(reactor->home(), [&reactor] {
      EXPECT_EQ(CpuMask::available(), mask_of(reactor->lcore()));
      EXPECT_EQ(reactor->tid(), ::gettid());
    });
  }
  EXPECT_EQ(group->find(CpuMask::kMaxCpus - 1),
            mask.test(CpuMask::kMaxCpus - 1) ? group->reactors().back().get() : nullptr);
}

TEST(ReactorGroup, PlacesThreadsByTurnsWithinTheirMask) {
  const CpuMask mask = CpuMask::available();
  const auto group = *ReactorGroup::create(mask, PollMode::kInterrupt);
  for (const auto& reactor : group->reactors()) {
    EXPECT_EQ(*group->place(mask_of(reactor->lcore())), reactor.get());
  }
  std::vector<int> placed(group->reactors().size(), 0);
  for (size_t i = 0; i < 3 * placed.size(); ++i) {
    const ThreadHost* host = *group->place(mask);
    for (size_t index = 0; index < placed.size(); ++index)
      placed[index] += group->reactors()[index].get() == host ? 1 : 0;
  }
  for (const int count : placed) EXPECT_EQ(count, 3);
  const Result<ThreadHost*> nowhere = group->place(CpuMask());
  ASSERT_FALSE(nowhere.has_value());
  EXPECT_EQ(nowhere.error().code, EINVAL);
}

TEST(ReactorGroup, MayBeDestroyedWithoutHavingRun) {
  const auto group = *ReactorGroup::create(CpuMask::available(), PollMode::kPoll);
  EXPECT_EQ(group->reactors().front()->tid(), 0);
}

TEST(ReactorGroup, StopsWhenItIsAskedAndWhenItIsDestroyed) {
  for (const PollMode mode : {PollMode::kPoll, PollMode::kInterrupt, PollMode::kAdaptive}) {
    auto group = *ReactorGroup::create(CpuMask::available(), mode);
    group->start();
    group->request_stop();
    group->request_stop();
    group->join();
    group->join();
    group = *ReactorGroup::create(CpuMask::available(), mode);
    group->start();
  }
}

TEST(ReactorGroup, StopsWhenALightweightThreadAsksForIt) {
  const auto group = *ReactorGroup::create(CpuMask::available(), PollMode::kInterrupt);
  group->start();
  post_to(group->reactors().back()->home(), [&group] { group->request_stop(); });
  group->join();
}

Task<> make_use_and_end(ThreadDirectory& threads, const ReactorGroup& group, int& visited) {
  std::vector<LwThread*> made;
  for (int i = 0; i < 20; ++i) made.push_back(*threads.create("worker_" + std::to_string(i), group.all_cpus()));
  co_await threads.for_each([&visited](const LwThread& thread) {
    EXPECT_EQ(LwThread::current(), &thread);
    ++visited;
  });
  for (LwThread* thread : made) co_await threads.destroy(*thread);
}

TEST(ReactorGroup, CarriesAThreadDirectory) {
  const auto group = *ReactorGroup::create(CpuMask::available(), PollMode::kInterrupt);
  ThreadDirectory threads(*group);
  for (const auto& reactor : group->reactors()) threads.list(reactor->home());
  group->start();
  int visited = 0;
  std::promise<void> done;
  post_to(group->reactors().front()->home(),
          [&] { start(make_use_and_end(threads, *group, visited), [&done] { done.set_value(); }); });
  done.get_future().get();
  EXPECT_EQ(visited, 20 + static_cast<int>(group->reactors().size()));
}

}  // namespace
}  // namespace sluice
