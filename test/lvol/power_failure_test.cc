// Stores through power failures, from a seed: power_failure.h; which seeds: test/support/seeds.h.
#include "test/lvol/power_failure.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "test/support/seeds.h"

namespace sluice::lvol {
namespace {

class PowerFailure : public testing::Test {
 protected:
  PowerFailure() { set_log_print_level(LogLevel::kError); }
  PowerFailureOutcome run() const { return run_power_failures(seeds_.seed(), seeds_.print()); }

  Seeds seeds_{500, 60 * kNsPerSec, "lvol/power_failure_test", "PowerFailure.LosesNothingForAnySeed"};
};

TEST_F(PowerFailure, LosesNothingForAnySeed) {
  PowerFailureOutcome sum;
  while (seeds_.next()) {
    const PowerFailureOutcome outcome = run();
    ASSERT_EQ(outcome.failure, "") << seeds_.replay();
    sum.requests += outcome.requests;
    sum.operations += outcome.operations;
    sum.cuts += outcome.cuts;
    sum.cuts_at_load += outcome.cuts_at_load;
    sum.refused += outcome.refused;
    sum.failures += outcome.failures;
    sum.blocks += outcome.blocks;
  }
  const uint64_t runs = seeds_.runs();
  fmt::print(
      "{} seeds: {} requests, {} operations, {} power failures, {} more while a store was loaded, {} writes without "
      "space, {} stores that failed; {} blocks compared\n",
      runs, sum.requests, sum.operations, sum.cuts, sum.cuts_at_load, sum.refused, sum.failures, sum.blocks);
  // A run in which nothing happens would hold as well.
  if (runs < 100) return;
  EXPECT_GT(sum.requests, runs * 100);
  EXPECT_GT(sum.operations, runs * 10);
  EXPECT_GT(sum.cuts, runs);
  EXPECT_GT(sum.cuts_at_load, runs / 20);
  EXPECT_GT(sum.refused, runs / 10);
  EXPECT_GT(sum.failures, runs / 100);
}

TEST_F(PowerFailure, IsTheSameTwice) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    seeds_.set(seed);
    const PowerFailureOutcome once = run();
    ASSERT_EQ(once.failure, "") << seeds_.replay();
    const PowerFailureOutcome twice = run();
    EXPECT_EQ(once.trace_hash, twice.trace_hash) << "seed " << seed;
    EXPECT_EQ(once.trace_lines, twice.trace_lines) << "seed " << seed;
    EXPECT_GT(once.trace_lines, 100U);
  }
}

}  // namespace
}  // namespace sluice::lvol
