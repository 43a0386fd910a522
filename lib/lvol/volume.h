// Volume: what a store knows of one volume while it is loaded.
//
// Thread:    the store's owner, but for what channels read.
// Ownership: the store's. Outlives the bdev that offers it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "lib/lvol/format.h"
#include "lib/lvol/maps.h"
#include "lib/thread/await.h"
#include "lib/thread/work.h"

namespace sluice::lvol {

struct Volume {
  explicit Volume(std::shared_ptr<const VolumeRecord> of_record) : record(std::move(of_record)) {}

  VolumeId id() const { return record->id; }
  bool writable() const { return !record->snapshot && !record->readonly; }

  // Never changed, but replaced, so that a checkpoint can keep what it began with.
  std::shared_ptr<const VolumeRecord> record;

  // --- Read by channels ---
  MapRoot map;
  // Writes must ask the owner, who lets them wait: the map is about to be shared.
  std::atomic<bool> held = false;

  // --- Of WriteArbiter ---
  uint32_t granted = 0;  // writes that may write now, and have not been published
  Fifo<Work> waiting;    // requests that came while it was held
  Event quiet;           // set when `granted` falls to 0 while it is held
  uint64_t held_since_ns = 0;

  // --- Of Store ---
  bool busy = false;     // an operation that changes the volume as a whole is under way
  bool damaged = false;  // part of its map could not be read
};

}  // namespace sluice::lvol
