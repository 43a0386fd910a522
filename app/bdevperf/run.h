// The whole life of the program, between its options and its exit code.
#pragma once

#include <string>

#include "app/bdevperf/job.h"
#include "app/bdevperf/params.h"
#include "lib/base/cpu_mask.h"
#include "lib/thread/thread_host.h"

namespace sluice::bdevperf {

struct Options {
  CpuMask cpumask;
  PollMode mode = PollMode::kPoll;
  std::string config;      // empty: none
  std::string rpc_socket;  // empty: none
  bool wait_for_tests = false;
  JobParams params;
  std::string job_file;  // empty: none
  bool every_core = false;
  bool continue_on_failure = false;
  JobTiming timing;
  bool fill = false;         // write everything once before
  double show_period_s = 0;  // 0: each second, on a terminal only
  uint32_t average_periods = 0;
  bool json = false;
};

// 0 when all went well; 1 when anything failed, which standard error explains.
int run(const Options& options);

}  // namespace sluice::bdevperf
