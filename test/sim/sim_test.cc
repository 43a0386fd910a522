// The whole stack from a seed: README.md in this folder.
//   SLUICE_SIM_SEED=7       only this seed, with every line of its trace
//   SLUICE_SIM_SEEDS=1-5000 these seeds, however long they take
#include <gtest/gtest.h>
#include <unistd.h>

#include <charconv>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>

#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "test/sim/simulation.h"

// Of sanitizers, where there is one.
extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace sluice::sim {
namespace {

constexpr uint64_t kUsualSeeds = 400;
// Where the code is slow (sanitizers, a busy machine), there are fewer seeds.
constexpr uint64_t kPatienceNs = 15 * kNsPerSec;

char replay[256] = "";

void print_replay() { std::ignore = ::write(STDERR_FILENO, replay, std::strlen(replay)); }

void on_abort(int) {
  print_replay();
  std::signal(SIGABRT, SIG_DFL);
}

void name_seed(uint64_t seed) {
  const auto end = fmt::format_to_n(replay, sizeof(replay) - 1,
                                    "seed {} has failed; to replay it:\n  SLUICE_SIM_SEED={} build/release/test/sim/"
                                    "sim_test --gtest_filter=Simulation.HoldsForAnySeed\n",
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

class Simulation : public testing::Test {
 protected:
  Simulation() {
    set_log_print_level(LogLevel::kError);
    std::string name = (std::filesystem::temp_directory_path() / "sluice-sim-XXXXXX").string();
    CHECK(::mkdtemp(name.data()) != nullptr);
    directory_ = name;
    std::signal(SIGABRT, on_abort);
    if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(print_replay);
  }
  ~Simulation() override {
    std::signal(SIGABRT, SIG_DFL);
    if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(nullptr);
    std::filesystem::remove_all(directory_);
  }
  Outcome run(uint64_t seed, bool print = false) {
    name_seed(seed);
    return run_simulation(seed, directory_, print);
  }

 private:
  std::string directory_;
};

TEST_F(Simulation, HoldsForAnySeed) {
  const Seeds seeds = wanted();
  const uint64_t end_ns = now_ns() + kPatienceNs;
  uint64_t runs = 0;
  Outcome sum;
  for (uint64_t seed = seeds.first; seed <= seeds.last && (seeds.all || now_ns() < end_ns); ++seed, ++runs) {
    const Outcome outcome = run(seed, seeds.print);
    ASSERT_EQ(outcome.failure, "") << replay;
    sum.requests += outcome.requests;
    sum.errors += outcome.errors;
    sum.moves += outcome.moves;
    sum.reconnects += outcome.reconnects;
  }
  fmt::print("{} seeds: {} requests, {} of them with an error; {} moves, {} reconnects\n", runs, sum.requests,
             sum.errors, sum.moves, sum.reconnects);
  // A scenario in which nothing happens would hold as well.
  if (runs < 50) return;
  EXPECT_GT(sum.requests, runs * 100);
  EXPECT_GT(sum.errors, runs);
  EXPECT_GT(sum.moves, runs);
  EXPECT_GT(sum.reconnects, runs / 10);
}

TEST_F(Simulation, IsTheSameTwice) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const Outcome once = run(seed);
    ASSERT_EQ(once.failure, "") << replay;
    const Outcome twice = run(seed);
    EXPECT_EQ(once.trace_hash, twice.trace_hash) << "seed " << seed;
    EXPECT_EQ(once.trace_lines, twice.trace_lines) << "seed " << seed;
    EXPECT_EQ(once.virtual_ns, twice.virtual_ns) << "seed " << seed;
    EXPECT_GT(once.trace_lines, 100U);
  }
}

}  // namespace
}  // namespace sluice::sim
