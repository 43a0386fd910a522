#include "app/conformance/report.h"

#include <fmt/format.h>
#include <json/json.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <sstream>

namespace sluice::conformance {
namespace {

using Counts = std::array<size_t, std::size(kAllStatuses)>;

size_t& count_of(Counts& counts, Status status) { return counts[static_cast<size_t>(status)]; }

std::string row(std::string_view name, const Counts& counts) {
  std::string line = fmt::format("{:<18}", name);
  for (size_t count : counts) line += fmt::format("{:>9}", count);
  return line + "\n";
}

}  // namespace

const char* to_string(Status status) {
  switch (status) {
    case Status::kPassed:
      return "passed";
    case Status::kFailed:
      return "failed";
    case Status::kSkipped:
      return "skipped";
    case Status::kCrashed:
      return "crashed";
    case Status::kNotRun:
      return "not_run";
  }
  return "?";
}

std::string text_of(const TargetInfo& info) {
  return fmt::format("{}: process {}, {} queues, {} bytes in blocks of {}, features {:#x}, protocol features {:#x}\n",
                     info.socket_path, info.pid, info.num_queues, info.capacity_bytes, info.block_size, info.features,
                     info.protocol_features);
}

std::string text_of(const CaseResult& result) {
  const bool bad = result.status != Status::kPassed && result.status != Status::kSkipped;
  std::string text = fmt::format("{:<8} {}", to_string(result.status), result.name);
  if (result.status == Status::kSkipped && !result.messages.empty()) text += ": " + result.messages.front();
  text += "\n";
  if (!bad) return text;
  text += fmt::format("         {}\n", result.section);
  for (const std::string& message : result.messages) {
    std::istringstream lines(message);
    for (std::string line; std::getline(lines, line);) text += fmt::format("         {}\n", line);
  }
  return text;
}

std::string summary_of(const std::vector<CaseResult>& results) {
  std::vector<std::pair<std::string, Counts>> areas;
  Counts rules{}, practice{}, all{};
  int64_t duration_ms = 0;
  for (const CaseResult& result : results) {
    auto area = std::ranges::find(areas, result.area(), &std::pair<std::string, Counts>::first);
    if (area == areas.end()) area = areas.insert(area, {result.area(), Counts{}});
    count_of(area->second, result.status)++;
    count_of(result.section.starts_with("practice: ") ? practice : rules, result.status)++;
    count_of(all, result.status)++;
    duration_ms += result.duration_ms;
  }
  std::string text = fmt::format("\n{:<18}", "area");
  for (Status status : kAllStatuses) text += fmt::format("{:>9}", to_string(status));
  text += "\n";
  for (const auto& [name, counts] : areas) text += row(name, counts);
  text += row("all", all) + row("- of the rules", rules) + row("- of practice", practice);
  return text + fmt::format("{} cases in {:.1f} s\n", results.size(), static_cast<double>(duration_ms) / 1000);
}

std::string json_of(const TargetInfo& info, const std::vector<CaseResult>& results) {
  Json::Value root;
  Json::Value& target = root["target"];
  target["socket"] = info.socket_path;
  target["pid"] = info.pid;
  target["features"] = fmt::format("{:#x}", info.features);
  target["protocol_features"] = fmt::format("{:#x}", info.protocol_features);
  target["num_queues"] = info.num_queues;
  target["capacity_bytes"] = Json::UInt64{info.capacity_bytes};
  target["block_size"] = info.block_size;
  Json::Value& summary = root["summary"];
  for (Status status : kAllStatuses)
    summary[to_string(status)] = Json::UInt64(std::ranges::count(results, status, &CaseResult::status));
  Json::Value& cases = root["cases"] = Json::Value(Json::arrayValue);
  for (const CaseResult& result : results) {
    Json::Value one;
    one["name"] = result.name;
    one["section"] = result.section;
    one["status"] = to_string(result.status);
    one["duration_ms"] = Json::Int64{result.duration_ms};
    one["messages"] = Json::Value(Json::arrayValue);
    for (const std::string& message : result.messages) one["messages"].append(message);
    cases.append(std::move(one));
  }
  Json::StreamWriterBuilder builder;
  builder["indentation"] = " ";
  return Json::writeString(builder, root) + "\n";
}

}  // namespace sluice::conformance
