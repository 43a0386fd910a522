// Plan: which jobs run where, made from what was asked for and the devices that there are.
#pragma once

#include <expected>
#include <string>
#include <vector>

#include "app/bdevperf/job.h"
#include "app/bdevperf/job_file.h"

namespace sluice::bdevperf {

struct PlannedJob {
  std::string name;  // of the section of the job file; of the device without one
  Bdev* bdev = nullptr;
  uint32_t core = 0;
  JobSpec spec;
  // Fewer than asked for, as verify's requests must not overlap.
  bool queue_depth_cut = false;
};

struct PlanOptions {
  CpuMask cores;            // where reactors are
  bool every_core = false;  // each device is driven from each core, which gets an equal part of it
  bool continue_on_failure = false;
};

// One job per request and device, on the core that has the fewest so far. A request without a filename is for all of
// `bdevs`. Errors name the job, and what to give instead.
std::expected<std::vector<PlannedJob>, std::string> make_plan(const PlanOptions& options,
                                                              const std::vector<NamedJob>& requests,
                                                              const std::vector<Bdev*>& bdevs);

// Jobs that write the same parts of the same devices once.
std::vector<PlannedJob> make_fill_plan(const std::vector<PlannedJob>& plan);

// Whether the workload changes the device.
bool writes(const JobSpec& spec);

}  // namespace sluice::bdevperf
