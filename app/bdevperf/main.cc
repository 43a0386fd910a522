// sluice-bdevperf: measures block devices from within the process, with nothing but the device below.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "app/bdevperf/run.h"
#include "rpc/version.h"

namespace {

using namespace sluice;
using namespace sluice::bdevperf;

constexpr const char* kDefaultRpcSocket = "/var/tmp/sluice.sock";

int refuse(std::string_view text) {
  fmt::print(stderr, "sluice-bdevperf: {} (sluice-bdevperf --help lists the options)\n", text);
  return 2;
}

// The options as they were typed. Empty: not given.
struct Texts {
  std::string queue_depth;
  std::string io_size;
  std::string workload;
  std::string read_percent;
  std::string time;
  std::string warmup;
  std::string zipf;
  std::string rate;
  std::string cpumask = "0x1";
  std::string mode = "poll";
  std::string bdev;
  std::string period;
  std::string average_periods;
};

std::optional<CpuMask> parse_cpumask(std::string_view text) {
  const Result<CpuMask> mask = CpuMask::parse(text);
  return mask && !mask->none() ? std::optional(*mask) : std::nullopt;
}

std::optional<PollMode> parse_mode(std::string_view text) {
  if (text == "poll") return PollMode::kPoll;
  if (text == "interrupt") return PollMode::kInterrupt;
  if (text == "adaptive") return PollMode::kAdaptive;
  return std::nullopt;
}

std::optional<uint64_t> parse_seconds(std::string_view text) {
  constexpr double kMaxSeconds = 1e9;
  const std::optional<double> seconds = parse_positive(text);
  if (!seconds || *seconds > kMaxSeconds) return std::nullopt;
  return static_cast<uint64_t>(*seconds * static_cast<double>(kNsPerSec));
}

// Reads the options one by one; keeps the first complaint.
class Reader {
 public:
  template <typename T, typename Parse, typename Target>
  void read(const char* option, const std::string& text, Parse parse, Target& target, std::string_view expected) {
    if (text.empty() || !complaint_.empty()) return;
    const std::optional<T> value = parse(text);
    if (!value) {
      complaint_ = fmt::format("{} must be {}, not '{}'", option, expected, text);
    } else if constexpr (std::is_same_v<T, Target>) {
      target = *value;
    } else {
      target = value;
    }
  }
  const std::string& complaint() const { return complaint_; }

 private:
  std::string complaint_;
};

std::string read_texts(const Texts& texts, Options& options) {
  Reader reader;
  JobParams& params = options.params;
  reader.read<uint32_t>("-q", texts.queue_depth, parse_queue_depth, params.queue_depth, "a number from 1 to 65536");
  reader.read<uint64_t>("-o", texts.io_size, parse_io_size, params.io_size_bytes,
                        "a size in bytes, such as 4096 or 4K, up to 1G");
  reader.read<Workload>("-w", texts.workload, parse_workload, params.workload, "one of " + workload_names());
  reader.read<uint32_t>("-M", texts.read_percent, parse_percent, params.read_percent, "a percentage from 0 to 100");
  reader.read<double>("--zipf", texts.zipf, parse_positive, params.zipf_theta, "a number above 0");
  reader.read<double>("--rate", texts.rate, parse_rate, params.rate, "requests per second, above 0 and up to 10000000");
  reader.read<uint64_t>("-t", texts.time, parse_seconds, options.timing.time_ns, "a number of seconds above 0");
  reader.read<uint64_t>("--warmup", texts.warmup, parse_seconds, options.timing.warmup_ns,
                        "a number of seconds above 0");
  reader.read<CpuMask>("-m", texts.cpumask, parse_cpumask, options.cpumask, "a core mask, such as 0x5 or [0,2-3]");
  reader.read<PollMode>("--mode", texts.mode, parse_mode, options.mode, "poll, interrupt or adaptive");
  reader.read<double>("-S", texts.period, parse_positive, options.show_period_s, "a number of seconds above 0");
  reader.read<uint32_t>("-P", texts.average_periods, parse_queue_depth, options.average_periods, "a number above 0");
  if (!texts.bdev.empty()) params.filename = texts.bdev;
  return reader.complaint();
}

// What is missing or does not go together; empty when nothing is.
std::string find_contradiction(const Options& options) {
  const JobParams& params = options.params;
  if (options.average_periods > 0 && options.show_period_s == 0) return "-P needs -S";
  // perform_tests may bring the rest.
  if (options.wait_for_tests) return {};
  if (options.timing.time_ns == 0) return "-t, the time in seconds, is missing";
  if (!options.job_file.empty()) return {};
  if (!params.workload) return "-w, the workload, is missing: one of " + workload_names();
  if (!params.queue_depth) return "-q, the queue depth, is missing";
  if (!params.io_size_bytes) return "-o, the I/O size, is missing";
  if (params.read_percent && !is_mixed(*params.workload)) return "-M goes with -w rw or randrw only";
  if (params.zipf_theta && !to_string(*params.workload).starts_with("rand")) {
    return "--zipf goes with -w randread, randwrite or randrw only";
  }
  if (params.rate && is_verified(*params.workload)) return "--rate does not go with -w verify or reset";
  return {};
}

void add_options(CLI::App& app, Texts& texts, Options& options) {
  app.set_version_flag("-v,--version", std::string("Sluice ") + rpc::kVersion);
  app.add_option("-q,--queue-depth", texts.queue_depth, "requests in flight, per job");
  app.add_option("-o,--io-size", texts.io_size, "bytes per request; K, M, G: 4K");
  app.add_option("-w,--workload", texts.workload, workload_names());
  app.add_option("-M,--read-percent", texts.read_percent, "reads among the requests of rw and randrw (50)");
  app.add_option("-t,--time", texts.time, "seconds to measure; fractions are fine");
  app.add_option("--warmup", texts.warmup, "seconds to run before that, which are not measured (0)");
  app.add_flag("--fill", options.fill, "before that, write the part of the bdev that is used once, from begin to end");
  app.add_option("-F,--zipf", texts.zipf, "random offsets by Zipf's law with this exponent, such as 1.1");
  app.add_option("--rate", texts.rate,
                 "requests that arrive per second, at random and whether or not others have completed, per job; -q is "
                 "then the most in flight");
  app.add_option("-m,--cpumask", texts.cpumask, "cores to run on: 0x5, or [0,2-3] (0x1)");
  app.add_option("--mode", texts.mode, "how eagerly to poll: poll, interrupt or adaptive (poll)");
  app.add_option("-c,--config", options.config, "file of calls that make the bdevs, as rpc.py save_config writes it");
  app.add_option("-T,--bdev", texts.bdev, "the bdev to use; all when not given; several: a:b");
  app.add_flag("-C,--every-core", options.every_core, "drive each bdev from each core, which gets an equal part of it");
  app.add_option("-j,--job-file", options.job_file, "jobs, one per section: filename=, rw=, bs=, iodepth=, ...");
  app.add_flag("-f,--continue", options.continue_on_failure, "go on after failed requests, and do not count as failed");
  app.add_flag("-z,--wait", options.wait_for_tests, "wait for perform_tests on the RPC socket, any number of times");
  app.add_option("-r,--rpc-socket", options.rpc_socket,
                 fmt::format("socket of the JSON-RPC; none without -z, with it {}", kDefaultRpcSocket));
  app.add_option("-S,--show", texts.period, "show IOPS on standard error every so many seconds");
  app.add_option("-P,--average", texts.average_periods, "with -S: also their moving average over so many periods");
  app.add_flag("--json", options.json, "print the results as JSON, on one line");
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  Texts texts;
  CLI::App app("Measures block devices from within the process. docs/bdevperf.md tells more.", "sluice-bdevperf");
  // As with getopt(): scripts append what shall differ.
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  add_options(app, texts, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help_or_version) {
    return app.exit(help_or_version);
  } catch (const CLI::ParseError& error) {
    return refuse(error.what());
  }
  if (const std::string wrong = read_texts(texts, options); !wrong.empty()) return refuse(wrong);
  if (const std::string wrong = find_contradiction(options); !wrong.empty()) return refuse(wrong);
  if (options.wait_for_tests && options.rpc_socket.empty()) options.rpc_socket = kDefaultRpcSocket;
  return run(options);
}
