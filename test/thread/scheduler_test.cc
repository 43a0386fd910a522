#include "lib/thread/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "test/support/manual_host.h"

namespace sluice {
namespace {

constexpr uint64_t kPeriodNs = kNsPerSec;

// Manual hosts take no time: what threads cost is put into their accounts.
class SchedulerTest : public testing::Test {
 protected:
  ~SchedulerTest() override {
    hosts_.await(app_, scheduler_.stop());
    for (LwThread* thread : made_) hosts_.await(app_, threads_.destroy(*thread));
  }

  LwThread& create(size_t core, const char* cpumask = "0x7") {
    LwThread& thread = **hosts_.on(app_, [&] { return threads_.create("thread", hosts_.home(core).cpumask()); });
    made_.push_back(&thread);
    EXPECT_TRUE(hosts_.await(app_, threads_.set_cpumask(thread, *CpuMask::parse(cpumask))));
    return thread;
  }
  void set_options(const SchedulerOptions& options) {
    hosts_.on(app_, [&] { scheduler_.set_options(options); });
    hosts_.run_until_idle();
  }
  void start() { set_options({.kind = SchedulerKind::kDynamic, .period_ns = kPeriodNs, .limits = {}}); }

  struct Cost {
    LwThread& thread;
    uint64_t percent;
  };
  // Lets a period pass in which the threads cost so much.
  void pass(const std::vector<Cost>& costs) {
    for (const Cost& cost : costs) cost.thread.account(kPeriodNs * cost.percent / 100, true);
    hosts_.advance(kPeriodNs);
    hosts_.run_until_idle();
  }
  size_t core_of(const LwThread& thread) const { return static_cast<const ManualHost&>(thread.host()).index(); }

  ManualHosts hosts_{3};
  LwThread& app_ = hosts_.home(0);
  ThreadDirectory threads_{hosts_};
  Scheduler scheduler_{threads_};
  std::vector<LwThread*> made_;
};

TEST_F(SchedulerTest, StaticLeavesThreadsWhereTheyAre) {
  LwThread& first = create(1);
  LwThread& second = create(1);
  for (int i = 0; i < 8; ++i) pass({{first, 50}, {second, 50}});
  EXPECT_EQ(core_of(first), 1U);
  EXPECT_EQ(core_of(second), 1U);
  EXPECT_EQ(scheduler_.rounds(), 0U) << "and costs nothing";
}

TEST_F(SchedulerTest, DynamicSpreadsBusyThreadsOverTheCores) {
  LwThread& first = create(1);
  LwThread& second = create(1);
  LwThread& third = create(1);
  start();
  pass({{first, 40}, {second, 30}, {third, 30}});
  EXPECT_EQ(core_of(first), 0U);
  EXPECT_EQ(core_of(second), 2U);
  EXPECT_EQ(core_of(third), 1U);
  EXPECT_EQ(scheduler_.moves(), 2U);
  for (int i = 0; i < 4; ++i) pass({{first, 40}, {second, 30}, {third, 30}});
  EXPECT_EQ(scheduler_.moves(), 2U) << "that is how they stay";
}

TEST_F(SchedulerTest, DynamicPacksThreadsThatHaveBecomeIdle) {
  LwThread& first = create(1);
  LwThread& second = create(2);
  start();
  pass({{first, 40}, {second, 40}});
  for (uint32_t i = 1; i < kQuietPeriods; ++i) pass({{first, 2}, {second, 2}});
  EXPECT_EQ(scheduler_.moves(), 0U) << "it may have been a pause";
  pass({{first, 2}, {second, 2}});
  EXPECT_EQ(core_of(first), 0U);
  EXPECT_EQ(core_of(second), 0U);
}

TEST_F(SchedulerTest, LoadsThatVaryAroundTheLimitMoveNothingToAndFro) {
  std::vector<LwThread*> threads;
  for (int i = 0; i < 4; ++i) threads.push_back(&create(1));
  start();
  std::mt19937_64 random(1);
  const auto pass_with_noise = [&] {
    std::vector<Cost> costs;
    for (LwThread* thread : threads) costs.push_back({*thread, 17 + random() % 7});
    pass(costs);
  };
  for (int i = 0; i < 50; ++i) pass_with_noise();
  const uint64_t moves = scheduler_.moves();
  EXPECT_GE(moves, 2U);
  for (int i = 0; i < 500; ++i) pass_with_noise();
  EXPECT_EQ(scheduler_.moves(), moves);
}

TEST_F(SchedulerTest, ThreadsStayWithinTheirMasks) {
  LwThread& first = create(1, "0x2");
  LwThread& second = create(1, "0x6");
  start();
  for (int i = 0; i < 3; ++i) pass({{first, 50}, {second, 50}});
  EXPECT_EQ(core_of(first), 1U);
  EXPECT_EQ(core_of(second), 2U);
}

// They take completions and talk to the kernel for the threads of their host.
TEST_F(SchedulerTest, WhatHomeThreadsDoCountsForTheThreadsOfTheirHost) {
  LwThread& first = create(1);
  LwThread& second = create(1);
  start();
  pass({{first, 15}, {second, 5}, {hosts_.home(1), 60}});
  ASSERT_EQ(scheduler_.cores().size(), 3U);
  EXPECT_DOUBLE_EQ(scheduler_.cores()[1].load, 80);
  EXPECT_EQ(scheduler_.cores()[1].threads, 2U);
  EXPECT_EQ(core_of(first), 0U) << "60 in truth";
  EXPECT_EQ(core_of(second), 1U);
}

TEST_F(SchedulerTest, WhatANewThreadHasCostBeforeDoesNotCount) {
  start();
  LwThread& old = create(1);
  LwThread& other = create(1);
  pass({{old, 100}, {other, 100}});
  EXPECT_EQ(core_of(old), 1U);
  EXPECT_EQ(core_of(other), 1U);
}

TEST_F(SchedulerTest, BackInStaticModeNothingMovesAnyMore) {
  LwThread& first = create(1);
  LwThread& second = create(1);
  start();
  set_options({});
  const uint64_t rounds = scheduler_.rounds();
  for (int i = 0; i < 4; ++i) pass({{first, 50}, {second, 50}});
  EXPECT_EQ(scheduler_.moves(), 0U);
  EXPECT_EQ(scheduler_.rounds(), rounds);
  EXPECT_TRUE(scheduler_.cores().empty());
}

TEST_F(SchedulerTest, LooksLessOftenWhileNothingHappens) {
  LwThread& thread = create(0);
  start();
  constexpr uint32_t kPeriods = 100;
  for (uint32_t i = 0; i < kPeriods; ++i) pass({{thread, 1}});
  EXPECT_LE(scheduler_.rounds(), kPeriods / Scheduler::kMaxStretch + 2 * kQuietPeriods);
  for (uint32_t i = 0; i < Scheduler::kMaxStretch; ++i) pass({{thread, 50}});
  const uint64_t rounds = scheduler_.rounds();
  for (uint32_t i = 0; i < kPeriods; ++i) pass({{thread, 50}});
  EXPECT_EQ(scheduler_.rounds(), rounds + kPeriods);
}

class Fixed : public IoDevice {
 public:
  struct Stay : Channel {
    using Channel::Channel;
    bool can_move() const override {
      ++static_cast<Fixed&>(device()).asked;
      return false;
    }
  };
  std::string_view device_name() const override { return "fixed"; }
  Result<std::unique_ptr<Channel>> create_channel() override { return std::make_unique<Stay>(*this); }
  int asked = 0;
};

TEST_F(SchedulerTest, LeavesAloneWhatCannotMove) {
  Fixed device;
  LwThread& fixed = create(1);
  LwThread& other = create(1);
  ChannelRef channel = hosts_.on(fixed, [&] { return std::move(*fixed.get_channel(device)); });
  start();
  pass({{fixed, 50}, {other, 40}});
  EXPECT_EQ(core_of(other), 1U);
  pass({{fixed, 50}, {other, 40}});
  EXPECT_EQ(core_of(other), 0U) << "in its place";
  for (int i = 0; i < 10; ++i) pass({{fixed, 50}, {other, 40}});
  EXPECT_EQ(core_of(fixed), 1U);
  EXPECT_EQ(device.asked, 1) << "and is not asked all the time";
  hosts_.on(fixed, [&] { channel.reset(); });
}

TEST_F(SchedulerTest, ThreadsMayEndWhileItMeasuresAndMoves) {
  for (int turns = 0; turns < 24; ++turns) {
    LwThread& first = create(1);
    LwThread& second = create(1);
    start();
    first.account(kPeriodNs / 2, true);
    second.account(kPeriodNs / 2, true);
    hosts_.advance(kPeriodNs);
    for (int i = 0; i < turns; ++i) hosts_.turn();
    while (!made_.empty()) {
      hosts_.await(app_, threads_.destroy(*made_.back()));
      made_.pop_back();
    }
    set_options({});
  }
}

TEST_F(SchedulerTest, EndsWhileItMoves) {
  LwThread& first = create(1);
  LwThread& second = create(1);
  start();
  first.account(kPeriodNs / 2, true);
  second.account(kPeriodNs / 2, true);
  hosts_.advance(kPeriodNs);
  for (int i = 0; i < 6; ++i) hosts_.turn();
}

}  // namespace
}  // namespace sluice
