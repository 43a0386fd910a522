#include "app/bdevperf/job_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

namespace sluice::bdevperf {
namespace {

std::string_view trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

std::optional<CpuMask> parse_mask(std::string_view text) {
  const Result<CpuMask> mask = CpuMask::parse(text);
  return mask && !mask->none() ? std::optional(*mask) : std::nullopt;
}

std::optional<std::string> parse_names(std::string_view text) {
  return text.empty() ? std::nullopt : std::optional<std::string>(text);
}

// How a key is read into a member, and what to say when it cannot be.
struct Key {
  std::string_view name;
  bool (*set)(JobParams& params, std::string_view value);
  std::string_view expected;
};

template <auto kMember, auto kParse>
bool set_param(JobParams& params, std::string_view value) {
  params.*kMember = kParse(value);
  return (params.*kMember).has_value();
}

constexpr Key kKeys[] = {
    {"filename", set_param<&JobParams::filename, parse_names>, "names of bdevs, separated by ':'"},
    {"rw", set_param<&JobParams::workload, parse_workload>, "a workload, such as randread"},
    {"bs", set_param<&JobParams::io_size_bytes, parse_io_size>, "a size in bytes, such as 4096 or 4K, up to 1G"},
    {"iodepth", set_param<&JobParams::queue_depth, parse_queue_depth>, "a number from 1 to 65536"},
    {"rwmixread", set_param<&JobParams::read_percent, parse_percent>, "a percentage from 0 to 100"},
    {"zipf", set_param<&JobParams::zipf_theta, parse_positive>, "a number above 0"},
    {"rate", set_param<&JobParams::rate, parse_rate>, "requests per second, above 0 and up to 10000000"},
    {"cpumask", set_param<&JobParams::cpumask, parse_mask>, "a core mask, such as 0x3 or [0-1]"},
    {"offset", set_param<&JobParams::offset, parse_extent>, "blocks, or bytes with a unit, such as 64M"},
    {"length", set_param<&JobParams::length, parse_extent>, "blocks, or bytes with a unit, such as 64M"},
};

std::expected<void, std::string> set_key(JobParams& params, std::string_view name, std::string_view value) {
  for (const Key& key : kKeys) {
    if (key.name != name) continue;
    if (!key.set(params, value))
      return std::unexpected(fmt::format("{} must be {}, not '{}'", name, key.expected, value));
    return {};
  }
  std::string names;
  for (const Key& key : kKeys) names += fmt::format("{}{}", names.empty() ? "" : ", ", key.name);
  return std::unexpected(fmt::format("there is no key '{}'; keys are {}", name, names));
}

}  // namespace

std::expected<std::vector<NamedJob>, std::string> parse_job_file(std::string_view text, const JobParams& over) {
  std::vector<NamedJob> jobs;
  JobParams global;
  JobParams* section = nullptr;
  // A job takes over what is open once it is complete: at the next section's begin, or at the end.
  const auto end_job = [&] {
    if (section != nullptr && section != &global) *section = section->or_else(over).or_else(global);
  };
  size_t number = 0;
  while (!text.empty()) {
    ++number;
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = trim(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty() || line.front() == '#' || line.front() == ';') continue;
    if (line.front() == '[') {
      const std::string_view name = line.back() == ']' ? trim(line.substr(1, line.size() - 2)) : "";
      if (name.empty()) return std::unexpected(fmt::format("line {}: a section is written [name]", number));
      end_job();
      if (name == "global") {
        global = {};
        section = &global;
      } else {
        section = &jobs.emplace_back(NamedJob{.name = std::string(name), .params = {}}).params;
      }
      continue;
    }
    const size_t equals = line.find('=');
    if (equals == std::string_view::npos)
      return std::unexpected(fmt::format("line {}: key=value is missing a '='", number));
    if (section == nullptr) return std::unexpected(fmt::format("line {}: there is no [section] before it", number));
    const auto set = set_key(*section, trim(line.substr(0, equals)), trim(line.substr(equals + 1)));
    if (!set) return std::unexpected(fmt::format("line {}: {}", number, set.error()));
  }
  end_job();
  if (jobs.empty()) return std::unexpected("there is no job: a section other than [global]");
  return jobs;
}

std::expected<std::vector<NamedJob>, std::string> read_job_file(const std::string& path, const JobParams& over) {
  std::ifstream file(path);
  if (!file) return std::unexpected(fmt::format("job file {}: {}", path, ::strerrordesc_np(errno)));
  std::ostringstream text;
  text << file.rdbuf();
  auto jobs = parse_job_file(text.str(), over);
  if (!jobs) return std::unexpected(fmt::format("job file {}: {}", path, jobs.error()));
  return jobs;
}

}  // namespace sluice::bdevperf
