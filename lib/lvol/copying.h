// Operations that copy data from cluster to cluster, one after the other, beside everything else that goes on.
//
// Thread:    the store's owner; channels are that thread's.
// Ownership: borrows everything until the task is over.
#pragma once

#include <atomic>
#include <cstdint>

#include "lib/base/result.h"
#include "lib/lvol/layout.h"
#include "lib/thread/task.h"

namespace sluice {
class BdevChannel;
}

namespace sluice::lvol {

class Store;

// How far it is. Any thread may look.
struct CopyProgress {
  std::atomic<uint64_t> total_clusters = 0;  // to look at, or to copy
  std::atomic<uint64_t> done_clusters = 0;
  std::atomic<bool> cancelled = false;  // set by whoever wants it to end early: ECANCELED
};

// Makes all that the volume shares with others its own, and what nobody has written as well (`allocate`). Afterwards it
// shares nothing: Store::detach(). What was done stays done after an error. `volume`: of make_volume_bdev().
// Errors: ENOSPC, EIO, EPERM (a snapshot: it never changes), ECANCELED; those of Store::reserve_volume().
Task<Result<>> own_clusters(Store& store, VolumeId id, BdevChannel& volume, bool allocate, CopyProgress& progress);

// Copies what a read-only volume has that its parent does not, cluster by cluster, to the same places of another bdev.
// Errors: EPERM (it is writable); ENOSPC (the other one is smaller); EIO, ECANCELED; those of Store::reserve_volume().
Task<Result<>> shallow_copy(Store& store, VolumeId id, BdevChannel& volume, BdevChannel& destination,
                            CopyProgress& progress);

}  // namespace sluice::lvol
