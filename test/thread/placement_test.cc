#include "lib/thread/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr double kTolerance = 1e-6;

// A thread of a case: its core, its load, and where it may run (anywhere when left out).
struct Thread {
  size_t core;
  double load;
  const char* cpumask = "[0-63]";
  uint32_t quiet_periods = kQuietPeriods;
};

// Cores 0 to n - 1, and threads with the ids 1, 2, ...
struct World {
  World(size_t core_count, const std::vector<Thread>& made) {
    for (uint32_t lcore = 0; lcore < core_count; ++lcore) cores.push_back({.lcore = lcore, .load = 0});
    for (const Thread& thread : made) {
      threads.push_back({.id = threads.size() + 1,
                         .load = thread.load,
                         .cpumask = *CpuMask::parse(thread.cpumask),
                         .core = thread.core,
                         .quiet_periods = thread.quiet_periods});
      cores[thread.core].load += thread.load;
    }
  }

  std::vector<PlannedMove> plan() const { return plan_moves(limits, cores, threads); }
  void apply(const std::vector<PlannedMove>& moves) {
    for (const PlannedMove& move : moves) {
      ThreadLoad& thread = threads[move.thread_id - 1];
      cores[thread.core].load -= thread.load;
      cores[move.core].load += thread.load;
      thread.core = move.core;
    }
  }
  double fullest() const { return std::ranges::max_element(cores, {}, &CoreLoad::load)->load; }

  PlacementLimits limits;
  std::vector<CoreLoad> cores;
  std::vector<ThreadLoad> threads;
};

struct Case {
  const char* name;
  size_t cores;
  std::vector<Thread> threads;
  std::vector<PlannedMove> moves;
};

const Case kCases[] = {
    {"nothing", 2, {}, {}},
    // Idle threads.
    {"idle_threads_are_packed_on_the_first_core", 3, {{0, 1}, {1, 2}, {2, 3}}, {{3, 0}, {2, 0}}},
    {"those_that_do_nothing_as_well", 2, {{1, 0}, {1, 0}}, {{1, 0}, {2, 0}}},
    {"only_after_some_periods", 2, {{1, 1, "[0-63]", kQuietPeriods - 1}}, {}},
    {"as_long_as_it_has_room", 3, {{0, 60}, {1, 8}, {2, 5}}, {{2, 0}, {3, 1}}},
    {"no_further_than_its_mask_allows", 3, {{2, 1, "0x6"}, {2, 1, "0x4"}}, {{1, 1}}},
    {"not_to_later_cores", 2, {{0, 75}, {0, 1}}, {}},
    // Busy threads.
    {"busy_threads_are_spread", 2, {{0, 40}, {0, 30}}, {{1, 1}}},
    {"the_busiest_first_each_to_the_least_loaded_core", 3, {{0, 25}, {0, 35}, {0, 30}}, {{2, 1}, {3, 2}}},
    {"one_stays_where_it_is_alone", 3, {{0, 50}, {1, 50}, {2, 50}}, {}},
    {"one_stays_with_a_few_idle_ones", 2, {{0, 50}, {0, 3}, {0, 4}}, {}},
    {"one_leaves_a_core_full_of_idle_ones", 2, {{0, 30}, {0, 19}, {0, 19}}, {{1, 1}}},
    {"no_further_than_the_busy_threads_mask_allows", 3, {{0, 40, "0x5"}, {0, 30, "0x1"}}, {{1, 2}}},
    {"one_that_needs_a_whole_core_stays_and_the_others_leave", 2, {{0, 85}, {0, 14}}, {{2, 1}}},
    // No to and fro.
    {"not_for_a_gain_below_the_margin", 2, {{0, 30}, {0, 25}, {1, 21}}, {}},
    {"not_from_bad_to_just_as_bad", 2, {{0, 50}, {0, 50}, {1, 48}, {1, 48}}, {}},
    // Cores that are too full.
    {"a_full_core_gives_away_idle_threads",
     2,
     {{0, 19, "[0-63]", 0}, {0, 19, "[0-63]", 0}, {0, 19, "[0-63]", 0}, {0, 19, "[0-63]", 0}, {0, 19, "[0-63]", 0}},
     {{1, 1}}},
    {"not_those_that_cost_nothing", 2, {{0, 90}, {0, 0, "[0-63]", 0}}, {}},
    {"not_to_a_core_that_has_no_room", 2, {{0, 85}, {0, 9}, {1, 65}}, {}},
};

class PlanMovesCases : public testing::TestWithParam<Case> {};

TEST_P(PlanMovesCases, MovesWhatHelps) {
  const Case& expected = GetParam();
  EXPECT_EQ(World(expected.cores, expected.threads).plan(), expected.moves);
}

INSTANTIATE_TEST_SUITE_P(Table, PlanMovesCases, testing::ValuesIn(kCases),
                         [](const testing::TestParamInfo<Case>& info) { return std::string(info.param.name); });

TEST(PlanMoves, KeepsToItsLimits) {
  World world(2, {{0, 40}, {0, 30}});
  world.limits.core_busy = 30;
  EXPECT_THAT(world.plan(), ElementsAre(PlannedMove{2, 1})) << "40 are too much for a core";
  world.limits.load_limit = 50;
  EXPECT_THAT(world.plan(), IsEmpty()) << "both are idle, and where idle threads belong";
}

TEST(PlanMoves, KnowsCoresByTheirNumbers) {
  World world(2, {{1, 1, "0x10"}});
  world.cores[0].lcore = 4;
  EXPECT_THAT(world.plan(), ElementsAre(PlannedMove{1, 0}));
}

TEST(PlanMoves, DoesNotDependOnTheOrderOfThreads) {
  World world(3, {{0, 30}, {0, 30}, {0, 30}, {1, 2}, {2, 2}});
  const std::vector<PlannedMove> plan = world.plan();
  std::ranges::reverse(world.threads);
  EXPECT_EQ(world.plan(), plan);
}

// The loads stay as they are; after a few rounds nothing moves any more, and nothing has become worse on the way.
TEST(PlanMoves, ComesToRestAndTheFullestCoreDoesNotBecomeFuller) {
  constexpr int kWorlds = 3000;
  constexpr int kMaxRounds = 12;
  std::mt19937_64 random(1);
  const auto below = [&random](uint64_t limit) { return static_cast<size_t>(random() % limit); };
  for (int number = 0; number < kWorlds; ++number) {
    SCOPED_TRACE(number);
    const size_t core_count = 1 + below(8);
    std::vector<Thread> threads;
    std::vector<double> left(core_count, 100);
    for (size_t i = below(40); i > 0; --i) {
      const size_t core = below(core_count);
      const double load = std::min(left[core], static_cast<double>(below(3) == 0 ? below(100) : below(10)));
      left[core] -= load;
      threads.push_back({.core = core, .load = load, .cpumask = below(4) == 0 ? "0xff" : "[0-63]"});
    }
    World world(core_count, threads);
    for (ThreadLoad& thread : world.threads) {
      if (below(3) == 0) thread.cpumask = CpuMask::parse("0x1").value();
      thread.cpumask.set(world.cores[thread.core].lcore);
    }
    int rounds = 0;
    for (auto moves = world.plan(); !moves.empty(); moves = world.plan()) {
      ASSERT_LT(++rounds, kMaxRounds);
      const double before = world.fullest();
      world.apply(moves);
      ASSERT_LE(world.fullest(), std::max(before, world.limits.core_limit - kMargin) + kTolerance);
      for (const ThreadLoad& thread : world.threads) {
        ASSERT_TRUE(thread.cpumask.test(world.cores[thread.core].lcore));
      }
    }
  }
}

}  // namespace
}  // namespace sluice
