// What a job can be told, wherever it is told: on the command line, in a job file, by perform_tests.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "lib/base/cpu_mask.h"

namespace sluice::bdevperf {

enum class Workload : uint8_t {
  kRead,
  kWrite,
  kRandRead,
  kRandWrite,
  kReadWrite,
  kRandReadWrite,
  kVerify,
  kReset,
  kUnmap,
  kWriteZeroes,
  kFlush,
};
inline constexpr std::array<std::string_view, 11> kWorkloadNames = {
    "read", "write", "randread", "randwrite", "rw", "randrw", "verify", "reset", "unmap", "write_zeroes", "flush"};

constexpr std::string_view to_string(Workload workload) { return kWorkloadNames[static_cast<size_t>(workload)]; }
std::optional<Workload> parse_workload(std::string_view name);
// "read, write, ..."
std::string workload_names();

// Whether what is written is read back and compared.
constexpr bool is_verified(Workload workload) { return workload == Workload::kVerify || workload == Workload::kReset; }

constexpr bool is_mixed(Workload workload) {
  return workload == Workload::kReadWrite || workload == Workload::kRandReadWrite;
}

// Where a job's part of the device begins, or how long it is.
struct Extent {
  uint64_t value = 0;
  bool in_blocks = false;  // of the device; bytes otherwise
};

struct JobParams {
  std::optional<std::string> filename;  // names of bdevs, separated by ":"
  std::optional<Workload> workload;
  std::optional<uint64_t> io_size_bytes;
  std::optional<uint32_t> queue_depth;
  std::optional<uint32_t> read_percent;
  std::optional<double> zipf_theta;
  std::optional<double> rate;  // requests that arrive per second; without one, as they complete
  std::optional<CpuMask> cpumask;
  std::optional<Extent> offset;
  std::optional<Extent> length;

  // These, and what they leave open from `others`.
  JobParams or_else(const JobParams& others) const;
};

inline constexpr uint32_t kMaxQueueDepth = 65'536;
inline constexpr uint64_t kMaxIoBytes = 1U << 30;
// To tell when the next request is due takes some 20 ns.
inline constexpr double kMaxRate = 10e6;

// The readers of values. Nothing for what is none.
std::optional<uint64_t> parse_number(std::string_view text);
// Bytes: "4096", "4K", "1M", "2G"; units are powers of 1,024, of either case, with or without a "B" or "iB".
std::optional<uint64_t> parse_size(std::string_view text);
// Without a unit: blocks, as in SPDK.
std::optional<Extent> parse_extent(std::string_view text);
// 1 to kMaxIoBytes, 1 to kMaxQueueDepth, 0 to 100, above 0, above 0 to kMaxRate.
std::optional<uint64_t> parse_io_size(std::string_view text);
std::optional<uint32_t> parse_queue_depth(std::string_view text);
std::optional<uint32_t> parse_percent(std::string_view text);
std::optional<double> parse_positive(std::string_view text);
std::optional<double> parse_rate(std::string_view text);

}  // namespace sluice::bdevperf
