#include "lib/thread/scheduler.h"

#include <algorithm>
#include <utility>

#include "lib/base/log.h"

namespace sluice {
namespace {

uint32_t lcore_of(const ThreadHost& host) {
  uint32_t lcore = 0;
  while (!host.home().cpumask().test(lcore)) ++lcore;
  return lcore;
}

}  // namespace

Scheduler::Scheduler(ThreadDirectory& threads)
    : threads_(threads), hosts_(threads.hosts()), timer_("scheduler", [this] { gate_.spawn(round()); }) {
  for (const ThreadHost* host : hosts_) lcores_.push_back(lcore_of(*host));
}

void Scheduler::set_options(const SchedulerOptions& options) {
  options_ = options;
  stretch_ = 1;
  if (!dynamic()) forget();
  arm();
}

Task<> Scheduler::stop() {
  timer_.cancel();
  co_await gate_.close();
}

void Scheduler::forget() {
  measured_ns_ = 0;
  histories_.clear();
  cores_.clear();
  loads_.clear();
}

void Scheduler::arm() {
  timer_.cancel();
  if (!dynamic() || in_round_) return;  // a round arms it at its end
  LwThread& thread = *LwThread::current();
  // The first round only looks at where the accounts stand.
  timer_.arm_at(thread, thread.now_ns() + (measured_ns_ == 0 ? 0 : options_.period_ns * stretch_));
}

Task<> Scheduler::round() {
  in_round_ = true;
  co_await measure();
  std::vector<PlannedMove> plan;
  if (dynamic() && !cores_.empty()) {
    std::vector<CoreLoad> cores;
    for (const Core& core : cores_) cores.push_back({.lcore = core.lcore, .load = core.load});
    plan = plan_moves(options_.limits, std::move(cores), loads_);
    co_await carry_out(plan);
  }
  ++rounds_;
  stretch_ = all_quiet_ && plan.empty() ? std::min(stretch_ * 2, kMaxStretch) : 1;
  in_round_ = false;
  if (!dynamic()) forget();
  arm();
}

Task<> Scheduler::measure() {
  std::vector<std::vector<Account>> accounts;
  for (ThreadHost* host : hosts_) {
    accounts.push_back(co_await call_on(host->home(), [host] {
      std::vector<Account> told;
      host->for_each_thread([&told](LwThread& thread) { told.push_back({thread.id(), thread.busy_ns()}); });
      return told;
    }));
  }
  const uint64_t now_ns = LwThread::current()->now_ns();
  const uint64_t elapsed_ns = measured_ns_ == 0 ? 0 : now_ns - measured_ns_;
  measured_ns_ = now_ns;
  cores_.clear();
  loads_.clear();
  all_quiet_ = elapsed_ns > 0;
  Histories histories;
  for (size_t core = 0; core < hosts_.size(); ++core) evaluate(core, accounts[core], elapsed_ns, histories);
  // A thread that cannot be moved is part of its core's load, and no more.
  std::erase_if(loads_, [&histories](const ThreadLoad& thread) {
    uint32_t& refused_rounds = histories[thread.id].refused_rounds;
    if (refused_rounds == 0) return false;
    --refused_rounds;
    return true;
  });
  histories_ = std::move(histories);  // without threads that have ended
  if (elapsed_ns == 0) cores_.clear();
}

void Scheduler::evaluate(size_t core, const std::vector<Account>& accounts, uint64_t elapsed_ns, Histories& histories) {
  const double percent = elapsed_ns == 0 ? 0 : 100.0 / static_cast<double>(elapsed_ns);
  const uint64_t home_id = hosts_[core]->home().id();
  double home_load = 0;
  double thread_load = 0;
  const size_t first = loads_.size();
  for (const Account& account : accounts) {
    if (histories.contains(account.thread_id)) continue;  // it has moved between two hosts' answers
    const auto before = histories_.find(account.thread_id);
    History history = before == histories_.end() ? History{} : before->second;
    // Of a new thread nothing is known but what it has cost in all its life.
    const uint64_t since_ns = before == histories_.end() ? 0 : account.busy_ns - history.busy_ns;
    const double load = static_cast<double>(since_ns) * percent;
    history.busy_ns = account.busy_ns;
    histories[account.thread_id] = history;
    if (account.thread_id == home_id) {
      home_load = load;
      continue;
    }
    thread_load += load;
    const LwThread* thread = threads_.find(account.thread_id);
    if (thread == nullptr) continue;
    loads_.push_back({.id = account.thread_id, .load = load, .cpumask = threads_.cpumask(*thread), .core = core});
  }
  for (size_t i = first; i < loads_.size(); ++i) {
    ThreadLoad& thread = loads_[i];
    if (thread_load > 0) thread.load *= 1 + home_load / thread_load;
    History& history = histories[thread.id];
    const bool quiet = thread.load < kQuietShare * options_.limits.load_limit;
    if (elapsed_ns > 0) history.quiet_periods = quiet ? history.quiet_periods + 1 : 0;
    thread.quiet_periods = history.quiet_periods;
    all_quiet_ = all_quiet_ && history.quiet_periods >= kQuietPeriods;
  }
  cores_.push_back({.lcore = lcores_[core], .load = home_load + thread_load, .threads = loads_.size() - first});
}

Task<> Scheduler::carry_out(const std::vector<PlannedMove>& plan) {
  for (size_t i = 0; i < std::min(plan.size(), kMaxMoves) && dynamic(); ++i) {
    ThreadHost& destination = *hosts_[plan[i].core];
    // Meanwhile it may have ended, or have been given another mask.
    LwThread* thread = threads_.find(plan[i].thread_id);
    if (thread == nullptr || (threads_.cpumask(*thread) & destination.home().cpumask()).none()) continue;
    const Result<> moved = co_await threads_.move(*thread, destination);
    if (moved) {
      ++moves_;
      log(LogLevel::kDebug, LogFlag::kThread, "thread {} moved to core {}", plan[i].thread_id, lcores_[plan[i].core]);
    } else {
      histories_[plan[i].thread_id].refused_rounds = kRefusedRounds;
    }
  }
}

}  // namespace sluice
