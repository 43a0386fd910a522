#include "lib/thread/polling.h"

#include <gtest/gtest.h>

namespace sluice {
namespace {

// Source: the rules of KVM's halt polling.
TEST(PollWindow, GrowsWhenWorkCameSoonAndShrinksWhenItDidNot) {
  const PollingOptions options{.max_poll_ns = 50'000, .grow = 2, .grow_start_ns = 10'000, .shrink = 2};
  PollWindow window;
  EXPECT_EQ(window.ns(), 0U);
  for (const uint64_t expected : {10'000U, 20'000U, 40'000U, 50'000U, 50'000U}) {
    window.learn(50'000, options);
    EXPECT_EQ(window.ns(), expected);
  }
  for (const uint64_t expected : {25'000U, 12'500U, 0U, 0U}) {
    window.learn(50'001, options);
    EXPECT_EQ(window.ns(), expected);
  }
}

TEST(PollWindow, ShrinkOfZeroForgetsAtOnceAndMaximumOfZeroNeverPolls) {
  PollingOptions options{.grow = 4, .grow_start_ns = 20'000, .shrink = 0};
  PollWindow window;
  window.learn(1'000, options);
  window.learn(1'000, options);
  EXPECT_EQ(window.ns(), 50'000U);
  window.learn(kNsPerMs, options);
  EXPECT_EQ(window.ns(), 0U);
  options.max_poll_ns = 0;
  window.learn(0, options);
  EXPECT_EQ(window.ns(), 0U);
}

TEST(VainBudget, WorkEarnsAShareOfItsCost) {
  VainBudget budget;
  budget.add_vain(VainBudget::kMaxNs);
  EXPECT_FALSE(budget.left());
  budget.add_sleep(0);
  budget.add_work(400'000, 25);
  EXPECT_TRUE(budget.left());
  budget.add_vain(99'999);
  EXPECT_TRUE(budget.left());
  budget.add_vain(1);
  EXPECT_FALSE(budget.left());
}

TEST(VainBudget, PollingThatIsCheaperThanSleepingIsFree) {
  VainBudget budget;
  budget.add_vain(VainBudget::kMaxNs - 1);
  budget.add_sleep(0);
  for (int i = 0; i < 1'000'000; ++i) {
    budget.add_vain(VainBudget::kSleepCostNs);
    budget.add_work(0, 25);
  }
  EXPECT_TRUE(budget.left());
  for (int i = 0; i < 10; ++i) {
    budget.add_vain(VainBudget::kSleepCostNs + 1);
    budget.add_work(0, 25);
  }
  EXPECT_FALSE(budget.left());
}

}  // namespace
}  // namespace sluice
