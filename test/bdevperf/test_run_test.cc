#include "app/bdevperf/test_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/bdev/null/null_bdev.h"
#include "test/bdevperf/scripted_bdev.h"
#include "test/support/disk_user.h"
#include "test/support/manual_host.h"

namespace sluice::bdevperf {
namespace {

using Verdict = ScriptedBdev::Verdict;

class TestRunTest : public testing::Test {
 protected:
  TestRunTest() {
    auto made = std::make_unique<ScriptedBdev>(1U << 20);
    disk_ = made.get();
    world_.add(Result<std::unique_ptr<Bdev>>(std::move(made)));
    // Completes at once, but each tenth of a second only so much: a manual clock does not run by itself.
    disk_->judge = [](const BlockIo&) { return Verdict::kDo; };
  }

  PlannedJob job(std::string name, uint32_t core, Workload workload = Workload::kRead) {
    return {.name = std::move(name),
            .bdev = disk_,
            .core = core,
            .spec = {.workload = workload, .queue_depth = 2, .length_bytes = 1U << 20, .clock = manual_clock}};
  }

  using Reported = std::expected<Report, std::string>;
  Reported perform(TestRun& test) {
    std::optional<Reported> report;
    world_.hosts.on(world_.app(), [&] { start(test.perform(), [&](Reported made) { report = std::move(made); }); });
    for (int i = 0; i < 1000 && !report; ++i) {
      for (int turns = 0; turns < 20; ++turns) world_.hosts.turn();
      world_.hosts.advance(10 * kNsPerMs);
      if (on_step_) on_step_(i);
    }
    EXPECT_TRUE(report);
    return std::move(*report);
  }

  BdevWorld world_{2};
  ScriptedBdev* disk_ = nullptr;
  std::function<void(int)> on_step_;
};

TEST_F(TestRunTest, RunsAllJobsSideBySideOnTheirCoresAndReportsEach) {
  const std::vector<PlannedJob> plan{job("one", 0), job("two", 1), job("three", 1)};
  TestRun test(world_.threads, world_.manager, plan, {.timing = {.time_ns = kNsPerSec}, .mode = "poll"});
  const Reported report = perform(test);
  ASSERT_TRUE(report) << report.error();
  ASSERT_EQ(report->jobs.size(), 3U);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(report->jobs[i].name, plan[i].name);
    EXPECT_EQ(report->jobs[i].core, plan[i].core);
    EXPECT_GT(report->jobs[i].ios, 100U);
    EXPECT_NEAR(report->jobs[i].iops(), static_cast<double>(report->jobs[i].ios), 0.05 * report->jobs[i].iops());
    EXPECT_EQ(report->jobs[i].status(), "finished");
  }
  EXPECT_FALSE(report->failed());
  EXPECT_TRUE(world_.manager.users(*disk_).empty());
}

TEST_F(TestRunTest, EndsEarlyWhenInterrupted) {
  const std::vector<PlannedJob> plan{job("one", 1)};
  TestRun test(world_.threads, world_.manager, plan, {.timing = {.time_ns = 1000 * kNsPerSec}, .mode = "poll"});
  on_step_ = [&](int step) {
    if (step == 10) world_.hosts.on(world_.app(), [&] { test.interrupt(); });
  };
  const Reported report = perform(test);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->jobs[0].status(), "terminated");
  EXPECT_GT(report->jobs[0].ios, 0U);
}

TEST_F(TestRunTest, ARunInterruptedBeforeItBeginsDoesNothing) {
  const std::vector<PlannedJob> plan{job("one", 1)};
  TestRun test(world_.threads, world_.manager, plan, {.timing = {.time_ns = kNsPerSec}, .mode = "poll"});
  test.interrupt();
  const Reported report = perform(test);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->jobs[0].ios, 0U);
}

TEST_F(TestRunTest, LetsGoOfADeviceThatIsPulledOut) {
  const std::vector<PlannedJob> plan{job("one", 1)};
  TestRun test(world_.threads, world_.manager, plan, {.timing = {.time_ns = 1000 * kNsPerSec}, .mode = "poll"});
  bool removed = false;
  on_step_ = [&](int step) {
    if (step != 10) return;
    world_.hosts.on(world_.app(), [&] {
      start(world_.manager.remove(*disk_, RemoveMode::kForce),
            [&](const Result<>& result) { removed = result.has_value(); });
    });
  };
  const Reported report = perform(test);
  world_.hosts.run_until_idle();
  EXPECT_TRUE(removed);
  ASSERT_TRUE(report);
  EXPECT_GT(report->jobs[0].ios, 0U);
}

TEST_F(TestRunTest, RunsNothingWhenADeviceCannotBeOpened) {
  const std::vector<PlannedJob> plan{job("one", 0), job("two", 7)};
  TestRun test(world_.threads, world_.manager, plan, {.timing = {.time_ns = kNsPerSec}, .mode = "poll"});
  const Reported report = perform(test);
  ASSERT_FALSE(report);
  EXPECT_THAT(report.error(), testing::HasSubstr("bdev 'disk'"));
  EXPECT_TRUE(world_.manager.users(*disk_).empty());
}

TEST_F(TestRunTest, AFailureIsTheJobsAndAMismatchAlwaysIs) {
  disk_->judge = [](const BlockIo& io) { return io.type == IoType::kRead ? Verdict::kPretend : Verdict::kDo; };
  std::vector<PlannedJob> plan{job("one", 0), job("two", 1, Workload::kVerify)};
  plan[1].spec.continue_on_failure = true;
  TestRun test(world_.threads, world_.manager, plan, {.timing = {.time_ns = kNsPerSec}, .mode = "poll"});
  const Reported report = perform(test);
  ASSERT_TRUE(report);
  EXPECT_FALSE(report->jobs[0].failure);
  EXPECT_TRUE(report->jobs[1].failure);
  EXPECT_GT(report->jobs[1].mismatches, 1U);
  EXPECT_TRUE(report->failed());
}

}  // namespace
}  // namespace sluice::bdevperf
