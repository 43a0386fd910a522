#include "app/bdevperf/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/base/clock.h"

namespace sluice::bdevperf {
namespace {

JobReport job(std::string name, uint64_t ios, uint64_t latency_ns) {
  JobReport made{.name = std::move(name),
                 .bdev = "disk",
                 .workload = Workload::kRandReadWrite,
                 .read_percent = 70,
                 .queue_depth = 8,
                 .io_size_bytes = 4096,
                 .window_ns = 2 * kNsPerSec,
                 .ios = ios,
                 .cpu_ns = ios * 100};
  for (uint64_t i = 0; i < ios; ++i) made.latencies.record(latency_ns);
  return made;
}

TEST(Report, TotalsAreSumsAndMergedLatencies) {
  const Report report{.mode = "poll", .jobs = {job("one", 3000, 10'000), job("two", 1000, 50'000)}};
  const Json::Value json = to_json(report);
  EXPECT_EQ(json["results"].size(), 2U);
  EXPECT_EQ(json["results"][0]["job"].asString(), "one");
  EXPECT_EQ(json["results"][0]["iops"].asDouble(), 1500);
  EXPECT_EQ(json["results"][0]["percentage"].asUInt(), 70U);
  EXPECT_EQ(json["results"][0]["status"].asString(), "finished");
  EXPECT_NEAR(json["results"][0]["mibps"].asDouble(), 1500.0 * 4096 / (1 << 20), 1e-6);
  const Json::Value& total = json["total"];
  EXPECT_EQ(total["iops"].asDouble(), 2000);
  EXPECT_EQ(total["avg_latency_us"].asDouble(), 20);
  EXPECT_EQ(total["min_latency_us"].asDouble(), 10);
  EXPECT_EQ(total["max_latency_us"].asDouble(), 50);
  EXPECT_NEAR(total["p50_latency_us"].asDouble(), 10, 0.2);
  EXPECT_NEAR(total["p90_latency_us"].asDouble(), 50, 0.8);
  EXPECT_EQ(total["cpu_ns_per_io"].asDouble(), 100);
  EXPECT_EQ(json["core_count"].asUInt(), 1U);
}

TEST(Report, TableHasALinePerJobAndATotal) {
  const Report report{.mode = "poll", .jobs = {job("one", 3000, 10'000), job("disk", 1000, 50'000)}};
  const std::string table = to_table(report);
  EXPECT_EQ(std::ranges::count(table, '\n'), 4);
  EXPECT_THAT(table, testing::HasSubstr("one on disk: randrw 70 % read, depth 8, 4096 bytes, core 0"));
  EXPECT_THAT(table, testing::HasSubstr("\ndisk: randrw"));
  EXPECT_THAT(table, testing::HasSubstr("p99.99"));
}

TEST(Report, TellsTheRateThatWasAskedForBesideTheOneAchieved) {
  Report report{.mode = "poll", .jobs = {job("one", 3000, 10'000), job("two", 1000, 50'000)}};
  EXPECT_FALSE(to_json(report)["total"].isMember("rate"));
  for (JobReport& job : report.jobs) {
    job.rate = 2500;
    job.waiting = 7;
  }
  const Json::Value json = to_json(report);
  EXPECT_EQ(json["results"][0]["rate"].asDouble(), 2500);
  EXPECT_EQ(json["results"][0]["io_waiting"].asUInt(), 7U);
  EXPECT_EQ(json["total"]["rate"].asDouble(), 5000);
  EXPECT_EQ(json["total"]["iops"].asDouble(), 2000);
  EXPECT_THAT(to_table(report), testing::HasSubstr("one on disk: randrw 70 % read, 2500/s, depth 8"));
  EXPECT_THAT(to_table(report), testing::HasSubstr("\n14 requests were due and waited at the end"));
}

TEST(Report, IsDefinedWhereNothingWasMeasured) {
  const Report report{.mode = "poll", .jobs = {JobReport{}}};
  EXPECT_EQ(to_json(report)["total"]["iops"].asDouble(), 0);
  EXPECT_FALSE(to_table(report).empty());
}

TEST(Report, SaysWhichJobsFailedAndWhy) {
  Report report{.mode = "poll", .jobs = {job("one", 10, 1), job("two", 10, 1)}};
  EXPECT_FALSE(report.failed());
  EXPECT_EQ(report.failures(), "");
  report.jobs[1].failed = 3;
  report.jobs[1].failure = true;
  report.jobs[1].first_failure = "write at offset 0: failed";
  EXPECT_TRUE(report.failed());
  EXPECT_EQ(report.jobs[1].status(), "failed");
  EXPECT_THAT(report.failures(), testing::HasSubstr("job 'two' on bdev 'disk': 3 requests failed"));
}

TEST(Report, SharesTheCpuOfACoreByBusyTime) {
  JobReport a;
  JobReport b;
  share_cpu({&a, &b}, {30, 10}, 1000);
  EXPECT_EQ(a.cpu_ns, 750U);
  EXPECT_EQ(b.cpu_ns, 250U);
  share_cpu({&a, &b}, {0, 0}, 1000);
  EXPECT_EQ(a.cpu_ns, 500U);
}

}  // namespace
}  // namespace sluice::bdevperf
