#include "lib/bdev/blocking_pool.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <latch>
#include <memory>
#include <string>
#include <vector>

#include "test/support/manual_host.h"

namespace sluice {
namespace {

// Writes down what happens to it.
struct Recorded : BlockingJob {
  explicit Recorded(ManualHosts& hosts) {
    target = &hosts.home();
    execute = [](BlockingJob& job) {
      auto& self = static_cast<Recorded&>(job);
      self.executed_on = ::gettid();
      CPU_ZERO(&self.cpus);
      ::sched_getaffinity(0, sizeof(self.cpus), &self.cpus);
      if (self.meet != nullptr) self.meet->arrive_and_wait();
      if (self.trace != nullptr) self.trace->push_back(self.name);
      return --self.parts <= 0;
    };
    run = [](Work& work) {
      auto& self = static_cast<Recorded&>(work);
      self.done_on = ::gettid();
      self.done = true;
    };
  }

  int parts = 1;
  char name = 0;
  std::latch* meet = nullptr;
  std::vector<char>* trace = nullptr;
  pid_t executed_on = 0;
  pid_t done_on = 0;
  cpu_set_t cpus{};
  bool done = false;
};

TEST(BlockingPool, RunsAJobElsewhereAndReportsOnItsThread) {
  ManualHosts hosts;
  BlockingPool pool;
  EXPECT_EQ(pool.thread_count(), 0U);
  Recorded job(hosts);
  pool.submit(job);
  EXPECT_TRUE(hosts.run_until([&] { return job.done; }));
  EXPECT_NE(job.executed_on, ::gettid());
  EXPECT_EQ(job.done_on, ::gettid());
  EXPECT_EQ(job.pool_error, 0);
  EXPECT_EQ(pool.thread_count(), 1U);
}

TEST(BlockingPool, RunsTwoJobsAtTheSameTimeAndNoMore) {
  ManualHosts hosts;
  BlockingPool pool;
  std::latch meet(2);
  Recorded first(hosts);
  Recorded second(hosts);
  first.meet = second.meet = &meet;
  pool.submit(first);
  pool.submit(second);
  EXPECT_TRUE(hosts.run_until([&] { return first.done && second.done; }));
  EXPECT_NE(first.executed_on, second.executed_on);
  std::vector<std::unique_ptr<Recorded>> more;
  for (int i = 0; i < 200; ++i) pool.submit(*more.emplace_back(std::make_unique<Recorded>(hosts)));
  EXPECT_TRUE(hosts.run_until([&] { return std::ranges::all_of(more, [](const auto& job) { return job->done; }); }));
  EXPECT_LE(pool.thread_count(), BlockingPool::kMaxThreads);
}

TEST(BlockingPool, LongJobLetsOthersInBetweenItsParts) {
  ManualHosts hosts;
  BlockingPool pool;
  // One thread is kept busy, so that the other one's order shows.
  std::latch meet(2);
  Recorded blocker(hosts);
  blocker.meet = &meet;
  pool.submit(blocker);
  std::vector<char> trace;
  std::latch ready(2);
  Recorded gate(hosts);
  gate.meet = &ready;
  pool.submit(gate);
  Recorded long_job(hosts);
  long_job.name = 'L';
  long_job.parts = 3;
  Recorded short_job(hosts);
  short_job.name = 's';
  long_job.trace = short_job.trace = &trace;
  pool.submit(long_job);
  pool.submit(short_job);
  ready.arrive_and_wait();
  EXPECT_TRUE(hosts.run_until([&] { return long_job.done && short_job.done; }));
  meet.arrive_and_wait();
  EXPECT_TRUE(hosts.run_until([&] { return blocker.done && gate.done; }));
  EXPECT_EQ(std::string(trace.begin(), trace.end()), "LsLL");
}

TEST(BlockingPool, HostMayEndOnceThePoolHasSettled) {
  BlockingPool pool;
  for (int i = 0; i < 200; ++i) {
    ManualHosts hosts;
    Recorded job(hosts);
    pool.submit(job);
    EXPECT_TRUE(hosts.run_until([&] { return job.done; }));
    pool.settle();
  }
}

TEST(BlockingPool, ThreadsEndWhenIdleAndStartAgain) {
  ManualHosts hosts;
  BlockingPool pool(std::chrono::milliseconds(1));
  for (int i = 0; i < 3; ++i) {
    Recorded job(hosts);
    pool.submit(job);
    EXPECT_TRUE(hosts.run_until([&] { return job.done; }));
    // Nobody is told when a thread ends.
    const uint64_t limit_ns = now_ns() + ManualHosts::kPatienceNs;
    while (pool.thread_count() > 0 && now_ns() < limit_ns) ::sched_yield();
    EXPECT_EQ(pool.thread_count(), 0U);
  }
}

TEST(BlockingPool, ThreadsDoNotInheritTheCoreOfAReactor) {
  cpu_set_t all;
  CPU_ZERO(&all);
  ASSERT_EQ(::sched_getaffinity(0, sizeof(all), &all), 0);
  if (CPU_COUNT(&all) < 2) GTEST_SKIP() << "needs two cores";
  ManualHosts hosts;
  BlockingPool pool;
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; CPU_COUNT(&one) == 0; ++cpu) {
    if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
  }
  ASSERT_EQ(::sched_setaffinity(0, sizeof(one), &one), 0);
  Recorded job(hosts);
  pool.submit(job);
  EXPECT_TRUE(hosts.run_until([&] { return job.done; }));
  EXPECT_TRUE(CPU_EQUAL(&job.cpus, &all));
  ASSERT_EQ(::sched_setaffinity(0, sizeof(all), &all), 0);
}

}  // namespace
}  // namespace sluice
