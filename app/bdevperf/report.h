// Report: what the jobs have measured, as a table or as JSON.
#pragma once

#include <json/value.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "app/bdevperf/params.h"
#include "lib/base/histogram.h"

namespace sluice::bdevperf {

struct JobReport {
  std::string name;
  std::string bdev;
  uint32_t core = 0;
  Workload workload = Workload::kRead;
  uint32_t read_percent = 0;
  uint32_t queue_depth = 0;
  double rate = 0;  // requests per second that were asked for; 0: as they complete
  uint64_t io_size_bytes = 0;
  uint64_t begin_bytes = 0;
  uint64_t length_bytes = 0;

  uint64_t window_ns = 0;
  uint64_t ios = 0;
  uint64_t failed = 0;      // requests with an error
  uint64_t mismatches = 0;  // requests whose content was wrong
  uint64_t waiting = 0;     // with a rate: requests that were due at the end, and not issued
  uint64_t cpu_ns = 0;
  Histogram latencies;  // ns
  bool interrupted = false;
  bool failure = false;       // the job counts as failed
  std::string first_failure;  // empty: none

  double iops() const;
  double mib_per_s() const;
  std::string_view status() const;
};

struct Report {
  std::string_view mode;  // how the reactors polled
  std::vector<JobReport> jobs;

  bool failed() const;
  // Lines about what went wrong, one per job.
  std::string failures() const;
};

// The CPU time of jobs that share a core, in proportion to how long each of them was busy.
// `host_cpu_ns`: what the core's OS thread used.
void share_cpu(std::vector<JobReport*> jobs_of_core, const std::vector<uint64_t>& busy_ns, uint64_t host_cpu_ns);

std::string to_table(const Report& report);
// With the names of SPDK's bdevperf, and more.
Json::Value to_json(const Report& report);

}  // namespace sluice::bdevperf
