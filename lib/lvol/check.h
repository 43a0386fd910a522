// check(): proves the invariants of a store: walks every map, counts everything anew, and compares.
//
// Thread: the store's owner. In one go: for tests and offline tools, not beside I/O.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sluice::lvol {

class Store;

struct CheckReport {
  std::vector<std::string> findings;  // each a sentence; none: the store is sound

  uint32_t volumes = 0;    // with snapshots
  uint32_t snapshots = 0;  // of these
  uint64_t map_pages = 0;
  uint32_t total_clusters = 0;
  uint32_t reserved_clusters = 0;  // superblocks and journal
  uint32_t data_clusters = 0;
  uint32_t metadata_clusters = 0;
  uint32_t free_clusters = 0;
};

// Requires: nothing is under way in the store, and Store::settle() has completed.
CheckReport check(Store& store);

}  // namespace sluice::lvol
