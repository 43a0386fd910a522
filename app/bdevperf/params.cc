#include "app/bdevperf/params.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>
#include <cmath>
#include <limits>

namespace sluice::bdevperf {
namespace {

// How many bits a unit shifts by; nothing for what is no unit.
std::optional<unsigned> parse_unit(std::string_view unit) {
  const std::string_view after = unit.empty() ? unit : unit.substr(1);
  if (!after.empty() && after != "B" && after != "iB") return std::nullopt;
  switch (unit.empty() ? '\0' : unit.front()) {
    case 'k':
    case 'K':
      return 10;
    case 'm':
    case 'M':
      return 20;
    case 'g':
    case 'G':
      return 30;
    case 't':
    case 'T':
      return 40;
    default:
      return std::nullopt;
  }
}

template <typename T>
std::optional<T> within(std::optional<uint64_t> value, uint64_t min, uint64_t max) {
  if (!value || *value < min || *value > max) return std::nullopt;
  return static_cast<T>(*value);
}

}  // namespace

std::optional<Workload> parse_workload(std::string_view name) {
  for (size_t i = 0; i < kWorkloadNames.size(); ++i) {
    if (kWorkloadNames[i] == name) return static_cast<Workload>(i);
  }
  return std::nullopt;
}

std::string workload_names() { return fmt::format("{}", fmt::join(kWorkloadNames, ", ")); }

JobParams JobParams::or_else(const JobParams& others) const {
  JobParams merged = *this;
  const auto fill = [&](auto JobParams::* member) {
    if (!(merged.*member)) merged.*member = others.*member;
  };
  fill(&JobParams::filename);
  fill(&JobParams::workload);
  fill(&JobParams::io_size_bytes);
  fill(&JobParams::queue_depth);
  fill(&JobParams::read_percent);
  fill(&JobParams::zipf_theta);
  fill(&JobParams::rate);
  fill(&JobParams::cpumask);
  fill(&JobParams::offset);
  fill(&JobParams::length);
  return merged;
}

std::optional<uint64_t> parse_number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<uint64_t> parse_size(std::string_view text) {
  const size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  const std::optional<uint64_t> value = parse_number(text.substr(0, digits));
  if (digits == text.size()) return value;
  const std::optional<unsigned> shift = parse_unit(text.substr(digits));
  if (!value || !shift || *value > std::numeric_limits<uint64_t>::max() >> *shift) return std::nullopt;
  return *value << *shift;
}

std::optional<Extent> parse_extent(std::string_view text) {
  if (const auto blocks = parse_number(text)) return Extent{.value = *blocks, .in_blocks = true};
  if (const auto bytes = parse_size(text)) return Extent{.value = *bytes, .in_blocks = false};
  return std::nullopt;
}

std::optional<uint64_t> parse_io_size(std::string_view text) {
  return within<uint64_t>(parse_size(text), 1, kMaxIoBytes);
}
std::optional<uint32_t> parse_queue_depth(std::string_view text) {
  return within<uint32_t>(parse_number(text), 1, kMaxQueueDepth);
}
std::optional<uint32_t> parse_percent(std::string_view text) { return within<uint32_t>(parse_number(text), 0, 100); }

std::optional<double> parse_positive(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value) || value <= 0) {
    return std::nullopt;
  }
  return value;
}

std::optional<double> parse_rate(std::string_view text) {
  const std::optional<double> rate = parse_positive(text);
  return rate && *rate <= kMaxRate ? rate : std::nullopt;
}

}  // namespace sluice::bdevperf
