// What became of the cases, and what was found out about the target.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::conformance {

enum class Status {
  kPassed,
  kFailed,   // it deviates: expected and seen are in the messages
  kSkipped,  // it does not offer what the case is about
  kCrashed,  // it has gone or hangs since this case
  kNotRun,   // it had gone before, and did not come back
};
inline constexpr Status kAllStatuses[] = {Status::kPassed, Status::kFailed, Status::kSkipped, Status::kCrashed,
                                          Status::kNotRun};

struct CaseResult {
  std::string name;     // "Suite.Case/Parameter"
  std::string section;  // quote.h
  Status status = Status::kNotRun;
  std::vector<std::string> messages;
  int64_t duration_ms = 0;

  std::string area() const { return name.substr(0, name.find('.')); }
};

struct TargetInfo {
  std::string socket_path;
  int pid = 0;  // of the process that listens; 0 if it cannot be told
  uint64_t features = 0;
  uint64_t protocol_features = 0;
  uint32_t num_queues = 0;
  uint64_t capacity_bytes = 0;
  uint32_t block_size = 0;
};

}  // namespace sluice::conformance
