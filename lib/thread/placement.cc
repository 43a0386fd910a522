#include "lib/thread/placement.h"

#include <algorithm>

namespace sluice {
namespace {

class Plan {
 public:
  Plan(const PlacementLimits& limits, std::vector<CoreLoad> cores, std::vector<ThreadLoad> threads)
      : limits_(limits), cores_(std::move(cores)), threads_(std::move(threads)) {
    // The busiest first; the order of the others must not depend on that of the input.
    std::ranges::sort(threads_, [](const ThreadLoad& a, const ThreadLoad& b) {
      return a.load != b.load ? a.load > b.load : a.id < b.id;
    });
    moved_.resize(threads_.size(), false);
  }

  std::vector<PlannedMove> make() && {
    for (size_t i = 0; i < threads_.size(); ++i) {
      if (busy(threads_[i])) spread(i);
    }
    for (size_t i = 0; i < threads_.size(); ++i) {
      if (!busy(threads_[i]) && over_limit(threads_[i].core)) relieve(i);
    }
    for (size_t i = 0; i < threads_.size(); ++i) {
      if (!busy(threads_[i]) && threads_[i].quiet_periods >= kQuietPeriods) pack(i);
    }
    return std::move(moves_);
  }

 private:
  bool busy(const ThreadLoad& thread) const { return thread.load >= limits_.load_limit; }
  bool over_limit(size_t core) const { return cores_[core].load > limits_.core_limit; }
  bool has_room(size_t core, double load) const { return cores_[core].load + load <= limits_.core_limit - kMargin; }

  void move(size_t index, size_t core) {
    ThreadLoad& thread = threads_[index];
    cores_[thread.core].load -= thread.load;
    cores_[core].load += thread.load;
    thread.core = core;
    moved_[index] = true;
    moves_.push_back({.thread_id = thread.id, .core = core});
  }

  // The least loaded core it may run on takes it, if that helps.
  void spread(size_t index) {
    const ThreadLoad& thread = threads_[index];
    if (thread.load > limits_.core_limit) return;  // it needs a core, and has one; others leave that
    size_t best = thread.core;
    for (size_t core = 0; core < cores_.size(); ++core) {
      if (thread.cpumask.test(cores_[core].lcore) && cores_[core].load < cores_[best].load) best = core;
    }
    const double then = cores_[best].load + thread.load;
    if (best == thread.core || then > limits_.core_busy) return;
    if (then + kMargin <= cores_[thread.core].load) move(index, best);
  }

  // An idle thread leaves a core that is too full; not one that costs nothing, which would not help.
  void relieve(size_t index) {
    if (threads_[index].load > 0) move_to_first_with_room(index, cores_.size());
  }

  void pack(size_t index) {
    if (!moved_[index]) move_to_first_with_room(index, threads_[index].core);
  }

  // Looks at the cores before `end`.
  void move_to_first_with_room(size_t index, size_t end) {
    const ThreadLoad& thread = threads_[index];
    for (size_t core = 0; core < end; ++core) {
      if (core == thread.core || !thread.cpumask.test(cores_[core].lcore) || !has_room(core, thread.load)) continue;
      move(index, core);
      return;
    }
  }

  const PlacementLimits& limits_;
  std::vector<CoreLoad> cores_;
  std::vector<ThreadLoad> threads_;
  std::vector<bool> moved_;
  std::vector<PlannedMove> moves_;
};

}  // namespace

std::vector<PlannedMove> plan_moves(const PlacementLimits& limits, std::vector<CoreLoad> cores,
                                    std::vector<ThreadLoad> threads) {
  return Plan(limits, std::move(cores), std::move(threads)).make();
}

}  // namespace sluice
