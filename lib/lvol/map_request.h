// MapRequest: what a channel of a volume asks of the store's owner. It carries itself there and back, and is the
// request to the base bdev in between.
#pragma once

#include <cstdint>

#include "lib/bdev/block_io.h"
#include "lib/lvol/layout.h"

namespace sluice {
class LwThread;
}

namespace sluice::lvol {

class Store;
struct Volume;

struct MapRequest : BlockIo {
  enum class Kind : uint8_t {
    kWrite,    // may I write these sub-clusters, and where?
    kOwn,      // may I copy what is shared of this cluster, and where? (as kWrite, of nothing)
    kPublish,  // they are written (or have failed): make them visible
    kWritten,  // whole sub-clusters of the volume's own cluster `cluster` are written, unasked: make them visible
    kDrop,     // forget whole clusters
    kFlush,    // make everything durable that completed before
  };
  enum class Answer : uint8_t {
    kFailed,   // see `status`
    kRetry,    // kWrite: nothing needs to change any more; kWritten: others came between: look at the map again
    kGranted,  // kWrite, kOwn: write to `cluster`, then publish
    kDone,
  };

  Volume* volume = nullptr;
  uint32_t index = 0;    // cluster of the volume
  uint32_t count = 1;    // kDrop: of clusters
  uint64_t touched = 0;  // kWrite: bits of the sub-clusters that are written, wholly or in part
  uint64_t partial = 0;  // of these, in part only
  Kind kind = Kind::kWrite;
  bool allocate = false;  // kOwn: also what is not mapped
  bool failed = false;    // kPublish: what was to be written is not there

  Store* store = nullptr;                   // set by Store::ask()
  LwThread* channel_thread = nullptr;       // who asks; the answer goes there
  void (*on_answer)(Work& work) = nullptr;  // `run`, then

  Answer answer = Answer::kFailed;
  IoStatus result = IoStatus::kOk;  // of kFailed
  // Of kGranted; the question of kWritten.
  ClusterIndex cluster = kNoCluster;
  Entry source;         // the entry before: where the rest of sub-clusters comes from
  uint64_t fill = 0;    // of `partial`, those whose rest must be filled from `source` (the others are in `cluster`)
  uint64_t copy = 0;    // further sub-clusters to copy from `source`
  uint64_t locked = 0;  // nobody else is granted these meanwhile
};

}  // namespace sluice::lvol
