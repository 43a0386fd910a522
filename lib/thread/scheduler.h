// Scheduler: moves lightweight threads between cores, by what they cost.
//
// Static, the default: a thread stays where it was placed. Dynamic: each period it asks every host what its threads
// have cost since the last time, and moves some (placement.h). What a host's home thread does, it does for the others
// there (it hands requests to the kernel and takes completions): it counts as theirs, in proportion to their own work.
//
// It knows hosts, and no reactors: everything it needs is in this library, and so it runs on the hosts of the tests.
//
// Cost: nothing in static mode; else a message to each host per period, and kMaxStretch times less while all threads
// have been idle for some time and stay where they are.
//
// Thread:    the application's lightweight thread, which is a home thread and so never moves.
// Ownership: to be stopped before its end (checked), and before the hosts are.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "lib/thread/gate.h"
#include "lib/thread/placement.h"
#include "lib/thread/thread_directory.h"
#include "lib/thread/timer.h"

namespace sluice {

enum class SchedulerKind : uint8_t { kStatic, kDynamic };

struct SchedulerOptions {
  SchedulerKind kind = SchedulerKind::kStatic;
  uint64_t period_ns = kNsPerSec;
  PlacementLimits limits;

  bool operator==(const SchedulerOptions&) const = default;
};

class Scheduler {
 public:
  // How much longer the period gets while nothing happens.
  static constexpr uint32_t kMaxStretch = 4;
  // Moves of one period; the others follow in the next ones.
  static constexpr size_t kMaxMoves = 256;
  // For so many rounds a thread is left alone that could not be moved.
  static constexpr uint32_t kRefusedRounds = 60;

  explicit Scheduler(ThreadDirectory& threads);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;
  // Requires: static, or stopped (checked).
  ~Scheduler() { CHECK(!timer_.armed()); }

  const SchedulerOptions& options() const { return options_; }
  // From dynamic to static: threads stay where they are.
  void set_options(const SchedulerOptions& options);
  // Ends what is under way. Once; nothing starts again.
  Task<> stop();

  // What one core did in the last period.
  struct Core {
    uint32_t lcore = 0;
    double load = 0;  // percent
    size_t threads = 0;
  };
  // In the order of the hosts; empty before the second round in dynamic mode, and in static mode.
  const std::vector<Core>& cores() const { return cores_; }
  // Since the start.
  uint64_t moves() const { return moves_; }
  uint64_t rounds() const { return rounds_; }

 private:
  // What a host tells of one thread.
  struct Account {
    uint64_t thread_id;
    uint64_t busy_ns;
  };
  // What is kept about one thread from round to round.
  struct History {
    uint64_t busy_ns = 0;
    uint32_t quiet_periods = 0;
    uint32_t refused_rounds = 0;  // left to wait
  };
  using Histories = std::unordered_map<uint64_t, History>;

  bool dynamic() const { return options_.kind == SchedulerKind::kDynamic && !gate_.closed(); }
  void arm();
  Task<> round();
  Task<> measure();
  // The loads of a host's threads in the time from the last round to this one; `histories` are those of this round.
  void evaluate(size_t core, const std::vector<Account>& accounts, uint64_t elapsed_ns, Histories& histories);
  Task<> carry_out(const std::vector<PlannedMove>& plan);
  void forget();

  ThreadDirectory& threads_;
  const std::vector<ThreadHost*> hosts_;
  std::vector<uint32_t> lcores_;  // of the hosts
  SchedulerOptions options_;
  Timer timer_;
  Gate gate_;
  bool in_round_ = false;
  uint32_t stretch_ = 1;

  uint64_t measured_ns_ = 0;  // when; 0: not yet
  Histories histories_;
  std::vector<Core> cores_;
  std::vector<ThreadLoad> loads_;  // of the threads that may be moved
  bool all_quiet_ = false;         // all threads are idle, and have been for long

  uint64_t moves_ = 0;
  uint64_t rounds_ = 0;
};

}  // namespace sluice
