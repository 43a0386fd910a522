// The whole stack from a seed: README.md in this folder; which seeds: test/support/seeds.h.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <string>

#include "lib/base/check.h"
#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "test/sim/simulation.h"
#include "test/support/seeds.h"

namespace sluice::sim {
namespace {

class SimulatedStack : public testing::Test {
 protected:
  SimulatedStack() {
    set_log_print_level(LogLevel::kError);
    std::string name = (std::filesystem::temp_directory_path() / "sluice-sim-XXXXXX").string();
    CHECK(::mkdtemp(name.data()) != nullptr);
    directory_ = name;
  }
  ~SimulatedStack() override { std::filesystem::remove_all(directory_); }
  Outcome run() const { return run_simulation(seeds_.seed(), directory_, seeds_.print()); }

  Seeds seeds_{400, 15 * kNsPerSec, "sim/sim_test", "SimulatedStack.HoldsForAnySeed"};

 private:
  std::string directory_;
};

TEST_F(SimulatedStack, HoldsForAnySeed) {
  Outcome sum;
  while (seeds_.next()) {
    const Outcome outcome = run();
    ASSERT_EQ(outcome.failure, "") << seeds_.replay();
    sum.requests += outcome.requests;
    sum.errors += outcome.errors;
    sum.moves += outcome.moves;
    sum.reconnects += outcome.reconnects;
  }
  const uint64_t runs = seeds_.runs();
  fmt::print("{} seeds: {} requests, {} of them with an error; {} moves, {} reconnects\n", runs, sum.requests,
             sum.errors, sum.moves, sum.reconnects);
  // A scenario in which nothing happens would hold as well.
  if (runs < 50) return;
  EXPECT_GT(sum.requests, runs * 100);
  EXPECT_GT(sum.errors, runs);
  EXPECT_GT(sum.moves, runs);
  EXPECT_GT(sum.reconnects, runs / 10);
}

TEST_F(SimulatedStack, IsTheSameTwice) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    seeds_.set(seed);
    const Outcome once = run();
    ASSERT_EQ(once.failure, "") << seeds_.replay();
    const Outcome twice = run();
    EXPECT_EQ(once.trace_hash, twice.trace_hash) << "seed " << seed;
    EXPECT_EQ(once.trace_lines, twice.trace_lines) << "seed " << seed;
    EXPECT_EQ(once.virtual_ns, twice.virtual_ns) << "seed " << seed;
    EXPECT_GT(once.trace_lines, 100U);
  }
}

}  // namespace
}  // namespace sluice::sim
