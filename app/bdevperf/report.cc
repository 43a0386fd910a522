#include "app/bdevperf/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <set>

#include "lib/base/clock.h"

namespace sluice::bdevperf {
namespace {

struct Percentile {
  double percent;
  const char* title;
  const char* json_name;
};
constexpr Percentile kPercentiles[] = {{50, "p50", "p50_latency_us"},
                                       {90, "p90", "p90_latency_us"},
                                       {99, "p99", "p99_latency_us"},
                                       {99.9, "p99.9", "p99.9_latency_us"},
                                       {99.99, "p99.99", "p99.99_latency_us"}};

double us(uint64_t ns) { return static_cast<double>(ns) / static_cast<double>(kNsPerUs); }
double seconds(uint64_t ns) { return static_cast<double>(ns) / static_cast<double>(kNsPerSec); }

// What a line of the table, and the total, consist of.
struct Summary {
  double rate = 0;
  double iops = 0;
  double mib_per_s = 0;
  uint64_t ios = 0;
  uint64_t failed = 0;
  uint64_t mismatches = 0;
  uint64_t waiting = 0;
  uint64_t window_ns = 0;
  uint64_t cpu_ns = 0;
  Histogram latencies;

  void add(const JobReport& job) {
    rate += job.rate;
    iops += job.iops();
    mib_per_s += job.mib_per_s();
    ios += job.ios;
    failed += job.failed;
    mismatches += job.mismatches;
    waiting += job.waiting;
    window_ns = std::max(window_ns, job.window_ns);
    cpu_ns += job.cpu_ns;
    latencies.merge(job.latencies);
  }
  double cpu_ns_per_io() const { return ios == 0 ? 0 : static_cast<double>(cpu_ns) / static_cast<double>(ios); }
};

// Two decimals below 100, which tell nanoseconds apart at the small end; none where they would only be noise.
std::string latency(double value_us) {
  return value_us < 100 ? fmt::format("{:.2f}", value_us) : fmt::format("{:.0f}", value_us);
}

void add_line(std::string& table, size_t name_width, std::string_view name, const Summary& summary) {
  fmt::format_to(std::back_inserter(table), "{:<{}} {:>11.0f} {:>9.1f} {:>9} {:>9} {:>9}", name, name_width,
                 summary.iops, summary.mib_per_s, latency(summary.latencies.mean() / static_cast<double>(kNsPerUs)),
                 latency(us(summary.latencies.min())), latency(us(summary.latencies.max())));
  for (const Percentile& percentile : kPercentiles) {
    fmt::format_to(std::back_inserter(table), " {:>8}", latency(us(summary.latencies.percentile(percentile.percent))));
  }
  fmt::format_to(std::back_inserter(table), " {:>7} {:>7.2f} {:>8.1f}\n", summary.failed + summary.mismatches,
                 seconds(summary.cpu_ns), summary.cpu_ns_per_io());
}

void put_summary(Json::Value& json, const Summary& summary) {
  json["runtime"] = seconds(summary.window_ns);
  if (summary.rate > 0) {
    json["rate"] = summary.rate;
    json["io_waiting"] = summary.waiting;
  }
  json["iops"] = summary.iops;
  json["mibps"] = summary.mib_per_s;
  json["io_completed"] = summary.ios;
  json["io_failed"] = summary.failed;
  json["io_timeout"] = 0;
  json["io_mismatched"] = summary.mismatches;
  json["avg_latency_us"] = summary.latencies.mean() / static_cast<double>(kNsPerUs);
  json["min_latency_us"] = us(summary.latencies.min());
  json["max_latency_us"] = us(summary.latencies.max());
  for (const Percentile& percentile : kPercentiles) {
    json[percentile.json_name] = us(summary.latencies.percentile(percentile.percent));
  }
  json["cpu_seconds"] = seconds(summary.cpu_ns);
  json["cpu_ns_per_io"] = summary.cpu_ns_per_io();
}

Json::Value to_json(const JobReport& job) {
  Json::Value json(Json::objectValue);
  json["job"] = job.name;
  json["bdev"] = job.bdev;
  json["core"] = job.core;
  CpuMask mask;
  mask.set(job.core);
  json["core_mask"] = mask.to_string();
  json["workload"] = std::string(to_string(job.workload));
  if (is_mixed(job.workload)) json["percentage"] = job.read_percent;
  json["status"] = std::string(job.status());
  if (!job.first_failure.empty()) json["first_failure"] = job.first_failure;
  json["range"]["offset"] = job.begin_bytes;
  json["range"]["length"] = job.length_bytes;
  json["queue_depth"] = job.queue_depth;
  json["io_size"] = job.io_size_bytes;
  Summary summary;
  summary.add(job);
  put_summary(json, summary);
  return json;
}

// "malloc0: randrw 70 %, depth 32, 4096 bytes, core 1"
std::string describe(const JobReport& job) {
  std::string text = job.name;
  if (job.name != job.bdev) text += fmt::format(" on {}", job.bdev);
  text += fmt::format(": {}", to_string(job.workload));
  if (is_mixed(job.workload)) text += fmt::format(" {} % read", job.read_percent);
  if (job.rate > 0) text += fmt::format(", {:.9g}/s", job.rate);
  return text + fmt::format(", depth {}, {} bytes, core {}", job.queue_depth, job.io_size_bytes, job.core);
}

}  // namespace

double JobReport::iops() const { return window_ns == 0 ? 0 : static_cast<double>(ios) / seconds(window_ns); }

double JobReport::mib_per_s() const {
  return workload == Workload::kFlush ? 0 : iops() * static_cast<double>(io_size_bytes) / (1 << 20);
}

std::string_view JobReport::status() const {
  if (failure) return "failed";
  return interrupted ? "terminated" : "finished";
}

bool Report::failed() const {
  return std::ranges::any_of(jobs, [](const JobReport& job) { return job.failure; });
}

std::string Report::failures() const {
  std::string text;
  for (const JobReport& job : jobs) {
    if (job.first_failure.empty()) continue;
    fmt::format_to(std::back_inserter(text),
                   "job '{}' on bdev '{}': {} requests failed, {} had wrong content; first: {}\n", job.name, job.bdev,
                   job.failed, job.mismatches, job.first_failure);
  }
  return text;
}

void share_cpu(std::vector<JobReport*> jobs_of_core, const std::vector<uint64_t>& busy_ns, uint64_t host_cpu_ns) {
  const uint64_t all_busy_ns = std::accumulate(busy_ns.begin(), busy_ns.end(), uint64_t{0});
  for (size_t i = 0; i < jobs_of_core.size(); ++i) {
    const double share = all_busy_ns == 0 ? 1.0 / static_cast<double>(jobs_of_core.size())
                                          : static_cast<double>(busy_ns[i]) / static_cast<double>(all_busy_ns);
    jobs_of_core[i]->cpu_ns = static_cast<uint64_t>(share * static_cast<double>(host_cpu_ns));
  }
}

std::string to_table(const Report& report) {
  size_t width = 5;
  Summary total;
  for (const JobReport& job : report.jobs) {
    width = std::max(width, describe(job).size());
    total.add(job);
  }
  std::string table = fmt::format("{:<{}} {:>11} {:>9} {:>9} {:>9} {:>9}", "latencies in us", width, "IOPS", "MiB/s",
                                  "average", "min", "max");
  for (const Percentile& percentile : kPercentiles) table += fmt::format(" {:>8}", percentile.title);
  table += fmt::format(" {:>7} {:>7} {:>8}\n", "failed", "CPU s", "ns/IO");
  for (const JobReport& job : report.jobs) {
    Summary summary;
    summary.add(job);
    add_line(table, width, describe(job), summary);
  }
  add_line(table, width, "total", total);
  if (total.waiting > 0) {
    table += fmt::format("{} requests were due and waited at the end, as all of the queue depth were in flight\n",
                         total.waiting);
  }
  return table;
}

Json::Value to_json(const Report& report) {
  Json::Value json(Json::objectValue);
  json["results"] = Json::Value(Json::arrayValue);
  Summary total;
  std::set<uint32_t> cores;
  for (const JobReport& job : report.jobs) {
    json["results"].append(to_json(job));
    total.add(job);
    cores.insert(job.core);
  }
  put_summary(json["total"], total);
  json["core_count"] = static_cast<Json::UInt>(cores.size());
  json["mode"] = std::string(report.mode);
  return json;
}

}  // namespace sluice::bdevperf
