#include "app/lvol-check/report.h"

#include <fmt/format.h>
#include <json/json.h>

namespace sluice::lvol_check {

std::string to_text(const Report& report) {
  const lvol::CheckReport& check = report.check;
  std::string text = fmt::format(
      "{}: store {} ({})\n"
      "  {} volumes, {} of them snapshots, in {} pages of maps\n"
      "  {} clusters of {} KiB: {} with data, {} with metadata, {} free, {} for superblocks and journal\n",
      report.file, report.store, report.uuid, check.volumes, check.snapshots, check.map_pages, check.total_clusters,
      report.cluster_bytes >> 10, check.data_clusters, check.metadata_clusters, check.free_clusters,
      check.reserved_clusters);
  if (check.findings.empty()) return text + "clean\n";
  for (const std::string& finding : check.findings) text += fmt::format("  ! {}\n", finding);
  return text + fmt::format("{} findings\n", check.findings.size());
}

std::string to_json(const Report& report) {
  Json::Value json(Json::objectValue);
  json["file"] = report.file;
  json["store"] = report.store;
  json["uuid"] = report.uuid;
  json["cluster_size"] = static_cast<Json::UInt64>(report.cluster_bytes);
  json["volumes"] = report.check.volumes;
  json["snapshots"] = report.check.snapshots;
  json["map_pages"] = static_cast<Json::UInt64>(report.check.map_pages);
  json["total_clusters"] = report.check.total_clusters;
  json["reserved_clusters"] = report.check.reserved_clusters;
  json["data_clusters"] = report.check.data_clusters;
  json["metadata_clusters"] = report.check.metadata_clusters;
  json["free_clusters"] = report.check.free_clusters;
  json["clean"] = report.check.findings.empty();
  json["findings"] = Json::Value(Json::arrayValue);
  for (const std::string& finding : report.check.findings) json["findings"].append(finding);
  Json::StreamWriterBuilder writer;
  writer["indentation"] = "";
  return Json::writeString(writer, json) + "\n";
}

}  // namespace sluice::lvol_check
