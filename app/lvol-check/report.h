// What sluice-lvol-check says of a store.
#pragma once

#include <string>
#include <vector>

#include "lib/lvol/check.h"

namespace sluice::lvol_check {

struct Report {
  std::string file;
  std::string store;
  std::string uuid;
  uint64_t cluster_bytes = 0;
  lvol::CheckReport check;
};

// Some lines for people.
std::string to_text(const Report& report);
// One line.
std::string to_json(const Report& report);

}  // namespace sluice::lvol_check
