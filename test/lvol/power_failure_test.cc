// Stores through power failures, from a seed: power_failure.h.
//   SLUICE_SIM_SEED=7       only this seed, with every line of its trace
//   SLUICE_SIM_SEEDS=1-5000 these seeds, however long they take
#include "test/lvol/power_failure.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <charconv>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "lib/base/check.h"
#include "lib/base/clock.h"
#include "lib/base/log.h"

// Of sanitizers, where there is one.
extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace sluice::lvol {
namespace {

constexpr uint64_t kUsualSeeds = 500;
// Where the code is slow (sanitizers, a busy machine), there are fewer seeds.
constexpr uint64_t kPatienceNs = 60 * kNsPerSec;

char replay[256] = "";

void print_replay() { std::ignore = ::write(STDERR_FILENO, replay, std::strlen(replay)); }

void on_abort(int) {
  print_replay();
  std::signal(SIGABRT, SIG_DFL);
}

void name_seed(uint64_t seed) {
  const auto end = fmt::format_to_n(replay, sizeof(replay) - 1,
                                    "seed {} has failed; to replay it:\n  SLUICE_SIM_SEED={} build/release/test/lvol/"
                                    "power_failure_test --gtest_filter=PowerFailure.LosesNothingForAnySeed\n",
                                    seed, seed);
  *end.out = '\0';
}

struct Seeds {
  uint64_t first = 1;
  uint64_t last = kUsualSeeds;
  bool print = false;
  bool all = false;  // however long it takes
};

uint64_t parse(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  CHECK(error == std::errc{} && end == text.data() + text.size());
  return number;
}

Seeds wanted() {
  if (const char* one = std::getenv("SLUICE_SIM_SEED")) {
    return {.first = parse(one), .last = parse(one), .print = true, .all = true};
  }
  if (const char* range = std::getenv("SLUICE_SIM_SEEDS")) {
    const std::string_view text = range;
    const size_t dash = text.find('-');
    CHECK(dash != std::string_view::npos);
    return {.first = parse(text.substr(0, dash)), .last = parse(text.substr(dash + 1)), .all = true};
  }
  return {};
}

class PowerFailure : public testing::Test {
 protected:
  PowerFailure() {
    set_log_print_level(LogLevel::kError);
    std::signal(SIGABRT, on_abort);
    if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(print_replay);
  }
  ~PowerFailure() override {
    std::signal(SIGABRT, SIG_DFL);
    if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(nullptr);
  }
  static PowerFailureOutcome run(uint64_t seed, bool print = false) {
    name_seed(seed);
    return run_power_failures(seed, print);
  }
};

TEST_F(PowerFailure, LosesNothingForAnySeed) {
  const Seeds seeds = wanted();
  const uint64_t end_ns = now_ns() + kPatienceNs;
  uint64_t runs = 0;
  PowerFailureOutcome sum;
  for (uint64_t seed = seeds.first; seed <= seeds.last && (seeds.all || now_ns() < end_ns); ++seed, ++runs) {
    const PowerFailureOutcome outcome = run(seed, seeds.print);
    ASSERT_EQ(outcome.failure, "") << replay;
    sum.requests += outcome.requests;
    sum.operations += outcome.operations;
    sum.cuts += outcome.cuts;
    sum.cuts_at_load += outcome.cuts_at_load;
    sum.refused += outcome.refused;
    sum.failures += outcome.failures;
    sum.blocks += outcome.blocks;
  }
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
    const PowerFailureOutcome once = run(seed);
    ASSERT_EQ(once.failure, "") << replay;
    const PowerFailureOutcome twice = run(seed);
    EXPECT_EQ(once.trace_hash, twice.trace_hash) << "seed " << seed;
    EXPECT_EQ(once.trace_lines, twice.trace_lines) << "seed " << seed;
    EXPECT_GT(once.trace_lines, 100U);
  }
}

}  // namespace
}  // namespace sluice::lvol
