#include "app/bdevperf/job_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace sluice::bdevperf {
namespace {

std::string error_of(std::string_view text) {
  const auto jobs = parse_job_file(text, {});
  return jobs ? "" : jobs.error();
}

TEST(JobFile, JobsTakeOverWhatTheyLeaveOpenFromTheGlobalSectionBefore) {
  // The example of SPDK's documentation.
  const auto jobs = parse_job_file(
      "[global]\n"
      "filename=Malloc0:Malloc1\n"
      "bs=1024\n"
      "rw=randrw\n"
      "rwmixread=90\n"
      "\n"
      "[A]\n"
      "cpumask=0xff\n"
      "[B]\n"
      "cpumask=[0-128]\n"
      "filename=Malloc1\n"
      "\n"
      "[global]\n"
      "filename=Malloc0\n"
      "rw=write\n"
      "\n"
      "[C]\n"
      "bs=4096\n"
      "iodepth=128\n"
      "rate=2500.5\n"
      "offset=1000000\n"
      "length=1M",
      {});
  ASSERT_TRUE(jobs) << jobs.error();
  ASSERT_EQ(jobs->size(), 3U);
  const JobParams& a = (*jobs)[0].params;
  EXPECT_EQ((*jobs)[0].name, "A");
  EXPECT_EQ(a.filename, "Malloc0:Malloc1");
  EXPECT_EQ(a.io_size_bytes, 1024U);
  EXPECT_EQ(a.workload, Workload::kRandReadWrite);
  EXPECT_EQ(a.read_percent, 90U);
  EXPECT_EQ(a.cpumask->to_string(), "0xff");
  EXPECT_EQ((*jobs)[1].params.filename, "Malloc1");
  EXPECT_EQ((*jobs)[1].params.cpumask->count(), 129U);
  const JobParams& c = (*jobs)[2].params;
  EXPECT_EQ(c.filename, "Malloc0");
  EXPECT_EQ(c.workload, Workload::kWrite);
  EXPECT_EQ(c.io_size_bytes, 4096U);
  EXPECT_EQ(c.queue_depth, 128U);
  EXPECT_FALSE(c.read_percent);
  EXPECT_EQ(c.rate, 2500.5);
  EXPECT_FALSE(a.rate);
  EXPECT_EQ(c.offset->value, 1'000'000U);
  EXPECT_TRUE(c.offset->in_blocks);
  EXPECT_EQ(c.length->value, 1U << 20);
  EXPECT_FALSE(c.length->in_blocks);
}

TEST(JobFile, TheCommandLineGoesOverGlobalSectionsButNotOverJobs) {
  const auto jobs = parse_job_file("[global]\niodepth=1\nbs=512\n[a]\niodepth=2\n[b]\n", {.queue_depth = 3});
  ASSERT_TRUE(jobs);
  EXPECT_EQ((*jobs)[0].params.queue_depth, 2U);
  EXPECT_EQ((*jobs)[1].params.queue_depth, 3U);
  EXPECT_EQ((*jobs)[1].params.io_size_bytes, 512U);
}

TEST(JobFile, ForgivesBlanksCommentsAndCarriageReturns) {
  const auto jobs = parse_job_file("# one\r\n; two\r\n\r\n [ a ] \r\n  bs = 4k \r\n", {});
  ASSERT_TRUE(jobs) << jobs.error();
  EXPECT_EQ((*jobs)[0].name, "a");
  EXPECT_EQ((*jobs)[0].params.io_size_bytes, 4096U);
}

TEST(JobFile, ErrorsNameTheLineAndWhatWasExpected) {
  using testing::HasSubstr;
  EXPECT_THAT(error_of(""), HasSubstr("there is no job"));
  EXPECT_THAT(error_of("[global]\nbs=512\n"), HasSubstr("there is no job"));
  EXPECT_THAT(error_of("bs=512\n"), HasSubstr("line 1: there is no [section]"));
  EXPECT_THAT(error_of("[a\n"), HasSubstr("line 1: a section is written [name]"));
  EXPECT_THAT(error_of("[]\n"), HasSubstr("line 1"));
  EXPECT_THAT(error_of("[a]\nbs\n"), HasSubstr("line 2: key=value"));
  EXPECT_THAT(error_of("[a]\n\nblocksize=5\n"),
              HasSubstr("line 3: there is no key 'blocksize'; keys are filename, rw"));
  EXPECT_THAT(error_of("[a]\nbs=0\n"), HasSubstr("line 2: bs must be a size"));
  EXPECT_THAT(error_of("[a]\niodepth=x\n"), HasSubstr("iodepth must be a number from 1 to 65536, not 'x'"));
  EXPECT_THAT(error_of("[a]\nrwmixread=101\n"), HasSubstr("percentage"));
  EXPECT_THAT(error_of("[a]\nrw=fast\n"), HasSubstr("workload"));
  EXPECT_THAT(error_of("[a]\nrate=0\n"), HasSubstr("rate must be requests per second, above 0"));
  EXPECT_THAT(error_of("[a]\ncpumask=0x0\n"), HasSubstr("core mask"));
  EXPECT_THAT(error_of("[a]\nfilename=\n"), HasSubstr("names of bdevs"));
}

TEST(JobFile, ErrorsNameTheFile) {
  const auto jobs = read_job_file("/nonexistent/jobs", {});
  ASSERT_FALSE(jobs);
  EXPECT_EQ(jobs.error(), "job file /nonexistent/jobs: No such file or directory");
}

TEST(Params, SizesHaveUnitsOfPowersOfTwo) {
  EXPECT_EQ(parse_size("0"), 0U);
  EXPECT_EQ(parse_size("4096"), 4096U);
  EXPECT_EQ(parse_size("4k"), 4096U);
  EXPECT_EQ(parse_size("4KiB"), 4096U);
  EXPECT_EQ(parse_size("1MB"), 1U << 20);
  EXPECT_EQ(parse_size("2G"), uint64_t{2} << 30);
  EXPECT_EQ(parse_size("15T"), uint64_t{15} << 40);
  for (const char* wrong : {"", "K", "-1", "4 K", "4Kx", "4X", "4iB", "1.5K", "99999999999999999999", "16777216T"}) {
    EXPECT_EQ(parse_size(wrong), std::nullopt) << wrong;
  }
  EXPECT_EQ(parse_io_size("0"), std::nullopt);
  EXPECT_EQ(parse_io_size("2G"), std::nullopt);
  EXPECT_EQ(parse_queue_depth("65537"), std::nullopt);
  EXPECT_EQ(parse_positive("0.25"), 0.25);
  EXPECT_EQ(parse_rate("10000000"), 10e6);
  EXPECT_EQ(parse_rate("10000001"), std::nullopt);
  for (const char* wrong : {"", "0", "-1", "nan", "inf", "1x", "1e3"}) EXPECT_FALSE(parse_positive(wrong)) << wrong;
}

TEST(Params, WorkloadsAreReadBackFromTheirNames) {
  for (const std::string_view name : kWorkloadNames) EXPECT_EQ(to_string(*parse_workload(name)), name);
  EXPECT_EQ(parse_workload("READ"), std::nullopt);
}

}  // namespace
}  // namespace sluice::bdevperf
