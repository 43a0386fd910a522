// CopyJobs: operations on volumes that copy data, for as long as that takes, while everything else goes on.
//
// A volume that is being worked on counts as in use: it cannot be deleted. When it is pulled out (its base bdev goes,
// the process ends) the job ends early.
//
// Thread:    the application's.
// Ownership: borrows the manager. Close it before its end.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "lib/bdev/bdev_manager.h"
#include "lib/lvol/copying.h"
#include "lib/lvol/store.h"
#include "lib/thread/gate.h"

namespace sluice::lvol {

struct JobTag;

class CopyJobs {
 public:
  // How many shallow copies that have ended are remembered.
  static constexpr size_t kRemembered = 256;

  explicit CopyJobs(BdevManager& bdevs);
  // Requires: close() has completed, or nothing was begun.
  ~CopyJobs();

  // Makes all that the volume shares its own; `allocate`: and all else. Returns when it is done.
  // Errors: ENODEV (there is no such volume); EINVAL (the bdev is no volume); those of own_clusters().
  Task<Result<>> own(std::string volume, bool allocate);

  // Begins to copy the volume's own clusters to another bdev. Returns the number of the operation.
  // Errors: ENODEV, EINVAL as above; EPERM: the volume is writable; ENOSPC: the other bdev is smaller; EBUSY: somebody
  // else writes to it.
  Task<Result<uint32_t>> start_shallow_copy(std::string volume, std::string destination);
  struct Copy {
    uint64_t copied_clusters = 0;
    uint64_t total_clusters = 0;
    bool ended = false;
    Result<> result;  // once it has ended
  };
  // nullopt: there is none of this number, or it ended long ago.
  std::optional<Copy> check_shallow_copy(uint32_t operation) const;

  // Which clusters of a volume differ from those of an earlier snapshot of it; `from` empty: from nothing.
  // Errors: ENODEV, EINVAL (they are of different stores); those of Store::changed_clusters().
  Task<Result<Store::Changed>> changed_clusters(std::string from, std::string to, uint64_t first, uint64_t limit);

  // Ends all, early.
  Task<> close();

 private:
  struct Job;
  struct ShallowCopy;

  Result<std::unique_ptr<BdevHandle>> open(const std::string& name, BdevAccess access, Job& job) const;
  Task<> run(ShallowCopy& copy);

  BdevManager& bdevs_;
  std::deque<std::unique_ptr<ShallowCopy>> copies_;
  uint32_t next_operation_ = 1;
  List<Job, JobTag> jobs_;
  Gate gate_;
};

}  // namespace sluice::lvol
