// SimDisk: a block device of a simulation: completes out of order, late by virtual time, and with errors as it is told.
//
// Thread:    as any Bdev. The store: the simulation's only OS thread.
// Ownership: borrows its store, which outlives it: a disk that is removed and added again holds what it held.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "lib/bdev/bdev.h"

namespace sluice::sim {

// What a disk holds, and how it behaves.
struct SimStore {
  SimStore(uint64_t capacity_bytes, std::mt19937_64& random_source) : bytes(capacity_bytes), random(random_source) {}

  std::vector<std::byte> bytes;  // as large as the disk may ever be
  std::mt19937_64& random;
  uint32_t failing_percent = 0;  // of requests
  // Called for each request that fails.
  std::function<void(const BlockIo& io)> on_failure;
};

class SimDisk final : public Bdev {
 public:
  SimDisk(std::string name, uint64_t size_bytes, const BdevLimits& limits, SimStore& store);

 private:
  class SimChannel;
  Result<std::unique_ptr<BdevChannel>> make_channel() override;

  SimStore& store_;
};

}  // namespace sluice::sim
