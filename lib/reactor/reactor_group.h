// ReactorGroup: the reactors of a core mask and their OS threads.
// Thread:    the OS thread that creates it, but for place(), which the application's lightweight thread calls.
// Ownership: owns the reactors.
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "lib/base/cpu_mask.h"
#include "lib/reactor/reactor.h"
#include "lib/thread/thread_directory.h"

namespace sluice {

class ReactorGroup final : public ThreadPlacer {
 public:
  // Errors: EINVAL when the mask is empty or names a core that this process may not use.
  static Result<std::unique_ptr<ReactorGroup>> create(const CpuMask& mask, PollMode mode);
  // Stops the reactors if they still run.
  ~ReactorGroup() override;

  // Starts the OS threads. Signals should be blocked before, so that none of them takes one.
  void start();
  // Asks all reactors to end; any OS thread.
  void request_stop();
  // Waits until they have.
  void join();

  // A reactor of the mask, by turns.
  Result<ThreadHost*> place(const CpuMask& cpumask) override;
  CpuMask all_cpus() const override { return mask_; }
  std::vector<ThreadHost*> hosts() const override;
  // The mode that create() was given.
  PollMode start_mode() const { return start_mode_; }
  // nullptr if there is none on that core.
  Reactor* find(uint32_t lcore) const;
  const std::vector<std::unique_ptr<Reactor>>& reactors() const { return reactors_; }

 private:
  ReactorGroup(const CpuMask& mask, PollMode mode) : mask_(mask), start_mode_(mode) {}

  const CpuMask mask_;
  const PollMode start_mode_;
  std::vector<std::unique_ptr<Reactor>> reactors_;
  std::vector<std::thread> os_threads_;
  size_t next_ = 0;
};

}  // namespace sluice
