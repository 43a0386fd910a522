// A run of a store through power failures, from one seed: users do I/O to volumes while volumes are made, snapshotted,
// cloned, resized and deleted, until the power fails at some request (perhaps while the store is loaded); then the
// store is loaded from what is left, compared with what it may hold, and everything goes on from there. See README.md.
//
// Thread: one OS thread.
#pragma once

#include <cstdint>
#include <string>

namespace sluice::lvol {

struct PowerFailureOutcome {
  std::string failure;  // empty: none
  uint64_t trace_hash = 0;
  uint64_t trace_lines = 0;
  uint64_t requests = 0;    // of users
  uint64_t operations = 0;  // on volumes, that have succeeded
  uint64_t cuts = 0;
  uint64_t cuts_at_load = 0;
  uint64_t refused = 0;   // writes for which there was no space
  uint64_t failures = 0;  // stores that could not write their metadata
  uint64_t blocks = 0;    // compared after a load
};

// Leaves a run that has failed in memory as it is.
PowerFailureOutcome run_power_failures(uint64_t seed, bool print);

}  // namespace sluice::lvol
