// Job files: sections of "key=value" lines, as fio has them, with the keys of SPDK's bdevperf. A [global] section sets
// what the jobs after it leave open, and forgets the [global] section before it.
#pragma once

#include <expected>
#include <string>
#include <string_view>
#include <vector>

#include "app/bdevperf/params.h"

namespace sluice::bdevperf {

struct NamedJob {
  std::string name;
  JobParams params;
};

// `over`: what the command line says, which goes over the [global] sections but not over a job's own lines.
// Errors name the line.
std::expected<std::vector<NamedJob>, std::string> parse_job_file(std::string_view text, const JobParams& over);

// The same of a file; errors name it.
std::expected<std::vector<NamedJob>, std::string> read_job_file(const std::string& path, const JobParams& over);

}  // namespace sluice::bdevperf
