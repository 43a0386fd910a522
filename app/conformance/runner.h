// Runs the cases against one target, one after the other, and looks after each whether the target is still there.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "app/conformance/result.h"

namespace sluice::conformance {

struct Options {
  std::string socket_path;
  std::string only;  // a part of the name, or a pattern with * and ?; empty: all
  int time_limit_s = 20;
  int wait_s = 10;
};

struct Case {
  std::string test;  // GoogleTest's name of it
  std::string name;
  std::string section;
};
std::vector<Case> list_cases(const std::string& only);

// Asks the target what it is. False, with the reason: there is none.
bool ask(const std::string& socket_path, TargetInfo& info, std::string& why);

// Calls `done` after each case.
void run_cases(const std::vector<Case>& cases, const Options& options, const TargetInfo& info,
               const std::function<void(const CaseResult&)>& done);

}  // namespace sluice::conformance
