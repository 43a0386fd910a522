// What the stores of a process tell of themselves and of their volumes.
// Thread: any. Ownership: values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lib/base/uuid.h"
#include "lib/lvol/store.h"

namespace sluice::lvol {

struct StoreInfo {
  Uuid uuid;
  std::string name;
  std::string base_bdev;
  uint32_t block_bytes = 0;
  uint64_t cluster_bytes = 0;
  uint64_t base_bytes = 0;  // of the device now; more than the store uses once it has grown
  StoreUsage usage;
  bool hold_when_full = false;
  std::vector<uint32_t> usage_thresholds;  // percent
  std::string damage;                      // why it can only be read; empty: it can be written to
};

struct VolumeInfo {
  VolumeRecord record;
  std::string store_name;
  Uuid store_uuid;
  std::string base_bdev;
  uint64_t cluster_bytes = 0;
  uint64_t own_clusters = 0;        // Store::own_clusters_of()
  std::string parent;               // name of the snapshot it was made from; empty if there is none any more
  std::vector<std::string> clones;  // names of the volumes made from it
  bool offered = false;             // there is a bdev of it

  std::string alias() const { return store_name + "/" + record.name; }
};

}  // namespace sluice::lvol
