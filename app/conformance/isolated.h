// Runs one case in a process of its own: whatever becomes of it, the next one can run.
// Thread: only one, since it forks.
#pragma once

#include <string>

#include "app/conformance/result.h"

namespace sluice::conformance {

// `test` is GoogleTest's name of the case. What has not ended within the time limit is killed, and has failed.
CaseResult run_isolated(const std::string& test, int time_limit_ms);

}  // namespace sluice::conformance
