// TestRun: one run of a plan: opens the devices, runs all jobs at once, shows how it goes, and reports.
//
// Thread:    the application's lightweight thread. Each job runs on a lightweight thread of its own, on its core.
// Ownership: borrows the plan, the devices and the directory.
#pragma once

#include <expected>
#include <memory>
#include <string>
#include <vector>

#include "app/bdevperf/plan.h"
#include "app/bdevperf/report.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/thread/gate.h"
#include "lib/thread/thread_directory.h"

namespace sluice::bdevperf {

struct TestRunOptions {
  JobTiming timing;
  std::string_view mode;           // for the report
  uint64_t progress_ns = 0;        // a line on standard error so often; 0: none
  bool progress_in_place = false;  // each line over the one before
  uint32_t average_periods = 0;    // of the exponential moving average in them; 0: since the begin
};

class TestRun {
 public:
  TestRun(ThreadDirectory& threads, BdevManager& bdevs, const std::vector<PlannedJob>& plan,
          const TestRunOptions& options);
  ~TestRun();

  // Once. Errors: a device that cannot be opened; then no job has run.
  Task<std::expected<Report, std::string>> perform();
  // Ends perform() early.
  void interrupt();

 private:
  struct Slot;
  using Opened = std::expected<void, std::string>;

  Task<Opened> open_all();
  Task<Opened> open(Slot& slot);
  Task<> run_job(Slot& slot);
  Task<> close_all();
  Task<> show_progress();
  Report make_report() const;

  ThreadDirectory& threads_;
  BdevManager& bdevs_;
  const TestRunOptions options_;
  std::vector<std::unique_ptr<Slot>> slots_;
  size_t running_ = 0;
  bool interrupted_ = false;
  Event all_done_;
  Event tick_;
  Gate gate_;
};

}  // namespace sluice::bdevperf
