// How results are told: as text while they come in, or as JSON.
#pragma once

#include <string>
#include <vector>

#include "app/conformance/result.h"

namespace sluice::conformance {

const char* to_string(Status status);

std::string text_of(const TargetInfo& info);
std::string text_of(const CaseResult& result);
// A table of the areas, and the sums.
std::string summary_of(const std::vector<CaseResult>& results);

// {"target": {...}, "summary": {"passed": n, ...}, "cases": [{"name", "section", "status", "messages", "duration_ms"}]}
std::string json_of(const TargetInfo& info, const std::vector<CaseResult>& results);

}  // namespace sluice::conformance
