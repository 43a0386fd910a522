#include "app/bdevperf/run.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "app/bdevperf/job_file.h"
#include "app/bdevperf/plan.h"
#include "app/bdevperf/report.h"
#include "app/bdevperf/test_run.h"
#include "app/common/app.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/virtio/virtio_bdev.h"
#include "lib/lvol/stores.h"
#include "lib/reactor/reactor_group.h"
#include "lib/thread/gate.h"
#include "lib/vhost/target.h"
#include "rpc/config.h"
#include "rpc/json.h"
#include "rpc/notifications.h"
#include "rpc/server.h"

namespace sluice::bdevperf {
namespace {

constexpr std::string_view kModeNames[] = {"poll", "interrupt", "adaptive"};

struct PerformTests {
  std::optional<uint32_t> queue_depth;
  std::optional<uint32_t> time_in_sec;
  std::optional<std::string> workload_type;
  std::optional<std::string> io_size;
  std::optional<uint32_t> rw_percentage;
};

int complain(std::string_view text) {
  fmt::print(stderr, "sluice-bdevperf: {}\n", text);
  return 1;
}

class Program {
 public:
  Program(const Options& options, App& app)
      : options_(options), app_(app), bdevs_(app.threads), params_(options.params), timing_(options.timing) {}

  // On the application's lightweight thread. The result is the process's.
  Task<int> run() {
    // The methods' context has one; nothing is ever served from it.
    vhost::Target target(app_.threads, bdevs_, {.socket_directory = "."});
    rpc::Notifications notifications;
    lvol::Stores stores(app_.threads, bdevs_, notifications);
    rpc::RpcContext context = app_.rpc_context(bdevs_, stores, notifications, target);
    rpc::MethodTable methods;
    rpc::add_app_methods(methods, context);
    rpc::add_log_methods(methods);
    rpc::add_reactor_methods(methods, context);
    rpc::add_thread_methods(methods, context);
    rpc::add_scheduler_methods(methods, context);
    rpc::add_bdev_methods(methods, context);
    rpc::add_lvol_methods(methods, context);
    add_perform_tests(methods);
    rpc::Dispatcher dispatcher(methods);

    std::unique_ptr<rpc::Server> server;
    if (!options_.rpc_socket.empty()) {
      auto listening = rpc::Server::listen({.path = options_.rpc_socket}, dispatcher);
      if (!listening) co_return sluice::complain("RPC socket " + options_.rpc_socket, listening.error());
      server = std::move(*listening);
    }
    gate_.spawn(watch_for_stop());
    const int result = co_await load_and_test(server.get(), dispatcher);

    app_.stop.set();
    co_await gate_.close();
    bdevs_.cancel_waits();
    if (server) co_await server->close();
    co_await stores.close_all();
    co_await app_.virtio.detach_all(bdevs_);
    co_await bdevs_.remove_all();
    co_return result;
  }

 private:
  using Reported = std::expected<Report, std::string>;

  Task<int> load_and_test(rpc::Server* server, rpc::Dispatcher& dispatcher) {
    if (!options_.config.empty()) {
      const auto loaded = co_await rpc::load_config(dispatcher, options_.config);
      if (!loaded) co_return complain(loaded.error());
    }
    if (server != nullptr) {
      if (auto served = server->start(); !served) {
        co_return sluice::complain("RPC socket " + options_.rpc_socket, served.error());
      }
    }
    if (options_.wait_for_tests) {
      fmt::print(stderr, "sluice-bdevperf: waiting for perform_tests on {}\n", options_.rpc_socket);
      co_await stopped_.wait();
      co_return 0;
    }
    const Reported report = co_await test(params_, timing_);
    if (!report) co_return complain(report.error());
    co_return report->failed() ? 1 : 0;
  }

  Task<> watch_for_stop() {
    co_await app_.stop.wait();
    stopping_ = true;
    if (test_ != nullptr) test_->interrupt();
    stopped_.set();
  }

  Task<Reported> perform(const std::vector<PlannedJob>& plan, JobTiming timing) {
    const bool terminal = ::isatty(STDERR_FILENO) == 1;
    const double period_s = options_.show_period_s > 0 ? options_.show_period_s : terminal ? 1 : 0;
    TestRun test(app_.threads, bdevs_, plan,
                 {.timing = timing,
                  .mode = kModeNames[static_cast<size_t>(options_.mode)],
                  .progress_ns = static_cast<uint64_t>(period_s * static_cast<double>(kNsPerSec)),
                  .progress_in_place = terminal && options_.show_period_s == 0,
                  .average_periods = options_.average_periods});
    if (stopping_) test.interrupt();
    test_ = &test;
    Reported report = co_await test.perform();
    test_ = nullptr;
    co_return report;
  }

  // Plans, fills where that is wanted, measures and prints.
  Task<Reported> test(JobParams params, JobTiming timing) {
    std::vector<NamedJob> requests{{.name = "", .params = params}};
    if (!options_.job_file.empty()) {
      auto read = read_job_file(options_.job_file, params);
      if (!read) co_return std::unexpected(std::move(read.error()));
      requests = std::move(*read);
    }
    auto plan = make_plan({.cores = options_.cpumask,
                           .every_core = options_.every_core,
                           .continue_on_failure = options_.continue_on_failure},
                          requests, bdevs_.list());
    if (!plan) co_return std::unexpected(std::move(plan.error()));
    for (const PlannedJob& job : *plan) {
      if (!job.queue_depth_cut) continue;
      complain(fmt::format("job '{}': the queue depth is cut to {}, the number of requests that do not overlap",
                           job.name, job.spec.queue_depth));
    }
    if (options_.fill) {
      constexpr uint64_t kNoEndNs = 1'000'000 * kNsPerSec;
      const std::vector<PlannedJob> fill_plan = make_fill_plan(*plan);
      Reported filled = co_await perform(fill_plan, {.time_ns = kNoEndNs});
      if (!filled || filled->failed()) {
        co_return std::unexpected("--fill: " + (filled ? filled->failures() : filled.error()));
      }
    }
    Reported report = co_await perform(*plan, timing);
    if (report) print(*report);
    co_return report;
  }

  void print(const Report& report) const {
    fmt::print("{}{}", options_.json ? rpc::write_json(to_json(report)) : to_table(report), options_.json ? "\n" : "");
    std::fflush(stdout);
    fmt::print(stderr, "{}", report.failures());
  }

  // --- perform_tests ---

  void add_perform_tests(rpc::MethodTable& methods) {
    methods.add(rpc::make_method<PerformTests>(
        {"perform_tests",
         "Runs the jobs. What is given here holds for later calls, too.",
         {"object", "results: [{job, core_mask, workload, status, iops, mibps, ...}], total, core_count, mode"},
         rpc::nothing()},
        {rpc::optional("queue_depth", &PerformTests::queue_depth, "as -q"),
         rpc::optional("time_in_sec", &PerformTests::time_in_sec, "as -t"),
         rpc::optional("workload_type", &PerformTests::workload_type, "as -w"),
         rpc::optional("io_size", &PerformTests::io_size, "as -o: bytes, such as \"4096\" or \"4K\""),
         rpc::optional("rw_percentage", &PerformTests::rw_percentage, "as -M")},
        [this](PerformTests given) { return perform_tests(std::move(given)); }));
  }

  Task<rpc::RpcResult> perform_tests(PerformTests given) {
    if (testing_) co_return rpc::fail_rpc(EINPROGRESS, "another test is running");
    if (stopping_) co_return rpc::fail_rpc(ESHUTDOWN, "the program is ending");
    const auto over = to_params(given);
    if (!over) co_return rpc::fail_rpc(EINVAL, over.error());
    const JobParams params = over->or_else(params_);
    JobTiming timing = timing_;
    if (given.time_in_sec) timing.time_ns = *given.time_in_sec * kNsPerSec;
    if (timing.time_ns == 0) co_return rpc::fail_rpc(EINVAL, "time_in_sec is missing, here and as -t");
    testing_ = true;
    const Reported report = co_await test(params, timing);
    testing_ = false;
    if (!report) co_return rpc::fail_rpc(EINVAL, report.error());
    params_ = params;
    timing_ = timing;
    if (report->failed()) co_return rpc::fail_rpc(EIO, report->failures());
    co_return to_json(*report);
  }

  static std::expected<JobParams, std::string> to_params(const PerformTests& given) {
    JobParams params{.queue_depth = given.queue_depth, .read_percent = given.rw_percentage};
    if (given.queue_depth && (*given.queue_depth == 0 || *given.queue_depth > kMaxQueueDepth)) {
      return std::unexpected(fmt::format("queue_depth must be 1 to {}", kMaxQueueDepth));
    }
    if (given.rw_percentage && *given.rw_percentage > 100) return std::unexpected("rw_percentage must be 0 to 100");
    if (given.workload_type) params.workload = parse_workload(*given.workload_type);
    if (given.workload_type && !params.workload) {
      return std::unexpected(fmt::format("workload_type must be one of {}", workload_names()));
    }
    if (given.io_size) params.io_size_bytes = parse_io_size(*given.io_size);
    if (given.io_size && !params.io_size_bytes) {
      return std::unexpected("io_size must be a number of bytes, such as \"4096\" or \"4K\", up to 1G");
    }
    return params;
  }

  const Options& options_;
  App& app_;
  BdevManager bdevs_;
  JobParams params_;
  JobTiming timing_;
  TestRun* test_ = nullptr;  // while it runs
  bool testing_ = false;
  bool stopping_ = false;
  Event stopped_;
  Gate gate_;
};

Task<int> run_program(const Options& options, App& app) {
  Program program(options, app);
  co_return co_await program.run();
}

}  // namespace

int run(const Options& options) {
  return run_app({.cpumask = options.cpumask, .mode = options.mode},
                 [&](App& app) { return run_program(options, app); });
}

}  // namespace sluice::bdevperf
