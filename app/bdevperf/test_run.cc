#include "app/bdevperf/test_run.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstring>
#include <map>

namespace sluice::bdevperf {

// A job and what it runs on.
struct TestRun::Slot final : BdevEvents {
  explicit Slot(const PlannedJob& planned) : plan(planned) {}

  void stop() {
    if (running) post_to(*thread, [this] { job->stop(); });
  }
  void on_resize() override {}
  void on_remove() override { stop(); }

  const PlannedJob& plan;
  std::unique_ptr<BdevHandle> handle;
  LwThread* thread = nullptr;
  std::unique_ptr<Job> job;
  bool opened = false;
  bool running = false;  // from before run() to before close(): while it may be sent messages
};

TestRun::TestRun(ThreadDirectory& threads, BdevManager& bdevs, const std::vector<PlannedJob>& plan,
                 const TestRunOptions& options)
    : threads_(threads), bdevs_(bdevs), options_(options) {
  for (const PlannedJob& planned : plan) slots_.push_back(std::make_unique<Slot>(planned));
}

TestRun::~TestRun() = default;

Task<std::expected<Report, std::string>> TestRun::perform() {
  Opened opened = co_await open_all();
  if (opened) {
    running_ = slots_.size();
    for (const auto& slot : slots_) {
      start(run_job(*slot), [this] {
        if (--running_ == 0) all_done_.set();
      });
    }
    if (options_.progress_ns != 0) gate_.spawn(show_progress());
    co_await all_done_.wait();
    tick_.set();
  }
  co_await gate_.close();
  co_await close_all();
  if (!opened) co_return std::unexpected(std::move(opened.error()));
  co_return make_report();
}

void TestRun::interrupt() {
  interrupted_ = true;
  for (const auto& slot : slots_) slot->stop();
}

Task<TestRun::Opened> TestRun::open_all() {
  for (const auto& slot : slots_) {
    Opened opened = co_await open(*slot);
    if (!opened) co_return opened;
  }
  co_return Opened{};
}

Task<TestRun::Opened> TestRun::open(Slot& slot) {
  const auto complain = [&slot](const Error& error) {
    return std::unexpected(
        fmt::format("bdev '{}': {}: {}", slot.plan.bdev->name(), error.what, ::strerrordesc_np(error.code)));
  };
  auto handle = bdevs_.open(slot.plan.bdev->name(), writes(slot.plan.spec) ? BdevAccess::kWrite : BdevAccess::kRead,
                            slot, "bdevperf job " + slot.plan.name);
  if (!handle) co_return complain(handle.error());
  slot.handle = std::move(*handle);
  CpuMask mask;
  mask.set(slot.plan.core);
  auto thread = threads_.create("bdevperf_" + slot.plan.name, mask);
  if (!thread) co_return complain(thread.error());
  slot.thread = *thread;
  slot.job = std::make_unique<Job>(slot.handle->bdev(), slot.plan.spec);
  const Result<> opened = co_await call_on(*slot.thread, [&slot] { return slot.job->open(); });
  if (!opened) co_return complain(opened.error());
  slot.opened = true;
  co_return Opened{};
}

Task<> TestRun::run_job(Slot& slot) {
  if (interrupted_) co_return;
  slot.running = true;
  co_await call_on(*slot.thread, [this, &slot] { return slot.job->run(options_.timing); });
}

Task<> TestRun::close_all() {
  for (const auto& slot : slots_) {
    slot->running = false;
    if (slot->opened) co_await call_on(*slot->thread, [&slot] { slot->job->close(); });
    if (slot->thread != nullptr) co_await threads_.destroy(*slot->thread);
    slot->handle.reset();
  }
}

// One line per period until all jobs have ended.
Task<> TestRun::show_progress() {
  Timer timer("bdevperf_progress", [this] { tick_.set(); });
  timer.arm_periodic(*LwThread::current(), options_.progress_ns);
  const double period_s = static_cast<double>(options_.progress_ns) / static_cast<double>(kNsPerSec);
  std::vector<uint64_t> last_ios(slots_.size());
  double average = 0;
  double shown_s = 0;
  bool shown = false;
  for (;;) {
    co_await tick_.wait();
    if (running_ == 0) break;
    double iops = 0;
    double mib_per_s = 0;
    for (size_t i = 0; i < slots_.size(); ++i) {
      const Job& job = *slots_[i]->job;
      const uint64_t ios = co_await call_on(*slots_[i]->thread, [&job] { return job.ios(); });
      // Fewer than before: the end of the warm-up.
      const uint64_t more = ios < last_ios[i] ? ios : ios - last_ios[i];
      last_ios[i] = ios;
      const double rate = static_cast<double>(more) / period_s;
      iops += rate;
      mib_per_s += rate * static_cast<double>(job.spec().io_size_bytes) / (1 << 20);
    }
    shown_s += period_s;
    std::string line = fmt::format("{:6.1f} s {:12.0f} IOPS {:10.1f} MiB/s", shown_s, iops, mib_per_s);
    if (options_.average_periods > 0) {
      average += (iops - average) * 2 / (options_.average_periods + 1);
      line += fmt::format(" {:12.0f} IOPS on average", average);
    }
    std::fputs((options_.progress_in_place ? "\r" + line : line + "\n").c_str(), stderr);
    shown = true;
  }
  if (shown && options_.progress_in_place) std::fputs("\n", stderr);
}

Report TestRun::make_report() const {
  Report report{.mode = options_.mode, .jobs = std::vector<JobReport>(slots_.size())};
  std::map<uint32_t, std::vector<size_t>> jobs_of_core;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const PlannedJob& plan = slots_[i]->plan;
    const Job& job = *slots_[i]->job;
    JobReport& made = report.jobs[i];
    made = {.name = plan.name,
            .bdev = plan.bdev->name(),
            .core = plan.core,
            .workload = plan.spec.workload,
            .read_percent = plan.spec.read_percent,
            .queue_depth = plan.spec.queue_depth,
            .rate = plan.spec.rate,
            .io_size_bytes = plan.spec.io_size_bytes,
            .begin_bytes = plan.spec.begin_bytes,
            .length_bytes = plan.spec.length_bytes,
            .window_ns = job.window_ns(),
            .ios = job.ios(),
            .failed = job.failed(),
            .mismatches = job.mismatches(),
            .waiting = job.waiting(),
            .latencies = job.latencies(),
            .interrupted = interrupted_,
            .first_failure = job.first_failure() ? job.first_failure()->to_string() : ""};
    const bool failures_allowed = plan.spec.continue_on_failure || plan.spec.workload == Workload::kReset;
    made.failure = made.mismatches > 0 || (made.failed > 0 && !failures_allowed);
    jobs_of_core[plan.core].push_back(i);
  }
  for (const auto& [core, indices] : jobs_of_core) {
    std::vector<JobReport*> jobs;
    std::vector<uint64_t> busy_ns;
    uint64_t host_cpu_ns = 0;
    for (const size_t i : indices) {
      jobs.push_back(&report.jobs[i]);
      busy_ns.push_back(slots_[i]->job->busy_ns());
      // Their windows are the same but for microseconds, unless one has failed.
      host_cpu_ns = std::max(host_cpu_ns, slots_[i]->job->host_cpu_ns());
    }
    share_cpu(jobs, busy_ns, host_cpu_ns);
  }
  return report;
}

}  // namespace sluice::bdevperf
