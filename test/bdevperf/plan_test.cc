#include "app/bdevperf/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/bdev/null/null_bdev.h"
#include "test/support/disk_user.h"

namespace sluice::bdevperf {
namespace {

constexpr uint64_t kMiB = 1U << 20;

class ReadOnlyBdev final : public Bdev {
 public:
  ReadOnlyBdev()
      : Bdev({.name = "ro",
              .uuid = {},
              .product_name = "x",
              .size_bytes = kMiB,
              .limits = {},
              .io_types = {IoType::kRead, IoType::kWrite},
              .readonly = true}) {}

 private:
  Result<std::unique_ptr<BdevChannel>> make_channel() override { return fail(ENODEV, "none"); }
};

class PlanTest : public testing::Test {
 protected:
  PlanTest() {
    for (const char* name : {"a", "b"}) world_.add(create_null_bdev({.name = name, .num_blocks = 2048}));
    world_.add(std::make_unique<ReadOnlyBdev>());
    bdevs_ = world_.manager.list();
    options_.cores = *CpuMask::parse("0xf");
  }

  std::vector<PlannedJob> plan(const std::vector<NamedJob>& requests) {
    auto made = make_plan(options_, requests, bdevs_);
    EXPECT_TRUE(made) << (made ? "" : made.error());
    return made ? std::move(*made) : std::vector<PlannedJob>();
  }
  std::string error(JobParams params) {
    const auto made = make_plan(options_, {{.name = "", .params = std::move(params)}}, bdevs_);
    return made ? "" : made.error();
  }
  static JobParams params(const char* filename) {
    return {.filename = filename, .workload = Workload::kRead, .io_size_bytes = 4096, .queue_depth = 8};
  }

  BdevWorld world_;
  std::vector<Bdev*> bdevs_;
  PlanOptions options_;
};

TEST_F(PlanTest, DrivesEachDeviceFromOneCoreByTurns) {
  options_.cores = *CpuMask::parse("0x6");
  JobParams all = params("");
  all.filename.reset();
  const auto jobs = plan({{.name = "", .params = all}});
  ASSERT_EQ(jobs.size(), 3U);
  EXPECT_EQ(jobs[0].name, "a");
  EXPECT_EQ(jobs[0].core, 1U);
  EXPECT_EQ(jobs[1].core, 2U);
  EXPECT_EQ(jobs[2].core, 1U);
  EXPECT_EQ(jobs[0].spec.length_bytes, kMiB);
  EXPECT_NE(jobs[0].spec.seed, jobs[1].spec.seed);
}

TEST_F(PlanTest, EveryCoreGetsItsOwnPart) {
  options_.every_core = true;
  const auto jobs = plan({{.name = "", .params = params("a")}});
  ASSERT_EQ(jobs.size(), 4U);
  for (uint32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(jobs[i].core, i);
    EXPECT_EQ(jobs[i].spec.begin_bytes, i * kMiB / 4);
    EXPECT_EQ(jobs[i].spec.length_bytes, kMiB / 4);
  }
}

TEST_F(PlanTest, JobsStayWithinTheirMasksAndRanges) {
  JobParams first = params("a:b");
  first.cpumask = *CpuMask::parse("0x8");
  JobParams second = params("b");
  second.offset = Extent{.value = 1024, .in_blocks = true};
  second.length = Extent{.value = 8192};
  const auto jobs = plan({{.name = "x", .params = first}, {.name = "y", .params = second}});
  ASSERT_EQ(jobs.size(), 3U);
  EXPECT_EQ(jobs[0].core, 3U);
  EXPECT_EQ(jobs[1].core, 3U);
  EXPECT_EQ(jobs[1].bdev->name(), "b");
  EXPECT_EQ(jobs[2].core, 0U);
  EXPECT_EQ(jobs[2].name, "y");
  EXPECT_EQ(jobs[2].spec.begin_bytes, 512U << 10);
  EXPECT_EQ(jobs[2].spec.length_bytes, 8192U);
}

TEST_F(PlanTest, CutsTheQueueDepthOfVerifyToWhatDoesNotOverlap) {
  JobParams verify = params("a");
  verify.workload = Workload::kVerify;
  verify.io_size_bytes = kMiB / 4;
  const auto jobs = plan({{.name = "", .params = verify}});
  EXPECT_EQ(jobs[0].spec.queue_depth, 4U);
  EXPECT_TRUE(jobs[0].queue_depth_cut);
}

TEST_F(PlanTest, FillsWhatTheJobsUse) {
  options_.every_core = true;
  JobParams mixed = params("a");
  mixed.workload = Workload::kRandReadWrite;
  mixed.zipf_theta = 1;
  mixed.rate = 1000;
  const auto fill = make_fill_plan(plan({{.name = "", .params = mixed}}));
  ASSERT_EQ(fill.size(), 4U);
  EXPECT_EQ(fill[1].spec.workload, Workload::kWrite);
  EXPECT_EQ(fill[1].spec.begin_bytes, kMiB / 4);
  EXPECT_TRUE(fill[1].spec.once);
  EXPECT_EQ(fill[1].spec.rate, 0);
}

TEST_F(PlanTest, ErrorsNameTheJobAndWhatIsWrong) {
  using testing::HasSubstr;
  JobParams wrong = params("c");
  EXPECT_THAT(error(wrong), HasSubstr("there is no bdev 'c'; there are a, b, ro"));
  wrong = params("a");
  wrong.io_size_bytes = 1000;
  EXPECT_THAT(error(wrong), HasSubstr("job 'a' on bdev 'a': I/O size 1000 is not a multiple of its block size, 512"));
  wrong = params("a");
  wrong.io_size_bytes = 2 * kMiB;
  EXPECT_THAT(error(wrong), HasSubstr("have no room for a request of 2097152"));
  wrong = params("a");
  wrong.queue_depth.reset();
  EXPECT_THAT(error(wrong), HasSubstr("queue depth is missing (-q"));
  wrong = params("a");
  wrong.offset = Extent{.value = 2048, .in_blocks = true};
  EXPECT_THAT(error(wrong), HasSubstr("offset is beyond its end"));
  wrong.offset = Extent{.value = UINT64_MAX, .in_blocks = true};
  EXPECT_THAT(error(wrong), HasSubstr("offset is"));
  wrong = params("a");
  wrong.offset = Extent{.value = 100};
  EXPECT_THAT(error(wrong), HasSubstr("offset is not a multiple"));
  wrong = params("a");
  wrong.length = Extent{.value = 4 * kMiB};
  EXPECT_THAT(error(wrong), HasSubstr("beyond its end, 1048576"));
  wrong = params("a");
  wrong.cpumask = *CpuMask::parse("0x10");
  EXPECT_THAT(error(wrong), HasSubstr("core mask 0x10 has no core of 0xf"));
  wrong = params("ro");
  wrong.workload = Workload::kWrite;
  EXPECT_THAT(error(wrong), HasSubstr("read-only"));
  wrong.workload = Workload::kFlush;
  EXPECT_THAT(error(wrong), HasSubstr("does not support flush"));
  wrong = params("a");
  wrong.workload = Workload::kVerify;
  wrong.rate = 1000;
  EXPECT_THAT(error(wrong), HasSubstr("a rate does not go with verify"));
  bdevs_.clear();
  EXPECT_THAT(error(params("a")), HasSubstr("there are no bdevs"));
}

}  // namespace
}  // namespace sluice::bdevperf
