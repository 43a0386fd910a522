// bdev_lvol_inflate and other methods that copy data between volumes, or tell what would have to be copied.
#include <fmt/format.h>

#include <algorithm>

#include "lib/lvol/copy_jobs.h"
#include "lib/lvol/stores.h"
#include "rpc/lvol_params.h"
#include "rpc/methods.h"

namespace sluice::rpc {
namespace {

constexpr uint64_t kMostClusters = 65'536;

struct SetParent {
  std::string lvol_name;
  std::string parent_name;
};

struct StartCopy {
  std::string src_lvol_name;
  std::string dst_bdev_name;
};

struct CheckCopy {
  uint32_t operation_id = 0;
};

struct GetChanged {
  std::optional<std::string> from;
  std::string to;
  uint64_t start = 0;
  uint64_t count = 4096;
};

Task<RpcResult> inflate(RpcContext& context, WhichVolume params) {
  co_return lvol_answer(co_await context.stores.copies().own(params.name, true), volume_subject(params.name));
}

Task<RpcResult> decouple(RpcContext& context, WhichVolume params) {
  const auto volume = co_await context.stores.volume(params.name);
  if (!volume) co_return fail_rpc(volume.error(), volume_subject(params.name));
  // What stands on a bdev outside of the store has all of it from there.
  const bool all = !volume->record.external_origin.empty();
  co_return lvol_answer(co_await context.stores.copies().own(params.name, all), volume_subject(params.name));
}

Task<RpcResult> set_parent(RpcContext& context, SetParent params) {
  const Result<> set = co_await context.stores.set_parent(params.lvol_name, params.parent_name);
  co_return lvol_answer(set, fmt::format("{} with parent '{}'", volume_subject(params.lvol_name), params.parent_name));
}

Task<RpcResult> set_parent_bdev(RpcContext& context, SetParent params) {
  const Result<> set = co_await context.stores.set_parent_bdev(params.lvol_name, params.parent_name);
  co_return lvol_answer(set,
                        fmt::format("{} with parent bdev '{}'", volume_subject(params.lvol_name), params.parent_name));
}

Task<RpcResult> start_copy(RpcContext& context, StartCopy params) {
  const auto started = co_await context.stores.copies().start_shallow_copy(params.src_lvol_name, params.dst_bdev_name);
  if (!started) {
    co_return fail_rpc(started.error(), fmt::format("copy of {} to bdev '{}'", volume_subject(params.src_lvol_name),
                                                    params.dst_bdev_name));
  }
  Json::Value json(Json::objectValue);
  json["operation_id"] = *started;
  co_return json;
}

Task<RpcResult> check_copy(RpcContext& context, CheckCopy params) {
  const auto copy = context.stores.copies().check_shallow_copy(params.operation_id);
  if (!copy) co_return fail_rpc(ENOENT, fmt::format("there is no shallow copy {}", params.operation_id));
  Json::Value json(Json::objectValue);
  json["state"] = !copy->ended ? "in progress" : copy->result ? "complete" : "error";
  json["copied_clusters"] = copy->copied_clusters;
  json["total_clusters"] = copy->total_clusters;
  if (copy->ended && !copy->result) json["error"] = copy->result.error().what;
  co_return json;
}

Task<RpcResult> get_changed(RpcContext& context, GetChanged params) {
  const auto volume = co_await context.stores.volume(params.to);
  if (!volume) co_return fail_rpc(volume.error(), volume_subject(params.to));
  const uint64_t limit = std::clamp<uint64_t>(params.count, 1, kMostClusters);
  const auto changed =
      co_await context.stores.copies().changed_clusters(params.from.value_or(""), params.to, params.start, limit);
  if (!changed) {
    co_return fail_rpc(changed.error(), params.from ? fmt::format("changes from '{}' to '{}'", *params.from, params.to)
                                                    : fmt::format("changes to '{}'", params.to));
  }
  const uint64_t clusters = volume->record.size_bytes / volume->cluster_bytes;
  Json::Value json(Json::objectValue);
  json["cluster_size"] = volume->cluster_bytes;
  json["num_clusters"] = clusters;
  json["clusters"] = Json::Value(Json::arrayValue);
  for (const uint64_t index : changed->clusters) json["clusters"].append(index);
  if (changed->next < clusters) json["next"] = changed->next;
  co_return json;
}

}  // namespace

void add_lvol_copy_methods(MethodTable& table, RpcContext& context) {
  constexpr const char* kWhich = "the volume: store/volume, or its uuid";
  table.add(make_method<WhichVolume>(
      {"bdev_lvol_inflate", "Makes a volume independent and thick: copies what it shares, allocates all of it.", kTrue,
       kept_by_store()},
      {required("name", &WhichVolume::name, kWhich)}, bind_context(context, inflate)));
  table.add(make_method<WhichVolume>(
      {"bdev_lvol_decouple_parent", "Makes a volume independent: copies what it shares with its parent.", kTrue,
       kept_by_store()},
      {required("name", &WhichVolume::name, kWhich)}, bind_context(context, decouple)));
  table.add(make_method<SetParent>(
      {"bdev_lvol_set_parent",
       "Gives a volume that is not in use another snapshot as its parent: what it does not own it has from there.",
       kTrue, kept_by_store()},
      {required("lvol_name", &SetParent::lvol_name, kWhich),
       required("parent_name", &SetParent::parent_name, "the snapshot, or read-only volume")},
      bind_context(context, set_parent)));
  table.add(make_method<SetParent>(
      {"bdev_lvol_set_parent_bdev", "Gives a volume that is not in use a bdev outside of the store as its parent.",
       kTrue, kept_by_store()},
      {required("lvol_name", &SetParent::lvol_name, kWhich),
       required("parent_name", &SetParent::parent_name, "the bdev, which nobody may write to from then on")},
      bind_context(context, set_parent_bdev)));
  table.add(make_method<StartCopy>(
      {"bdev_lvol_start_shallow_copy",
       "Begins to copy what a read-only volume has and its parent has not, to the same places of a bdev.",
       {"object", "operation_id"},
       passing()},
      {required("src_lvol_name", &StartCopy::src_lvol_name, kWhich),
       required("dst_bdev_name", &StartCopy::dst_bdev_name, "where to; as large as the volume at least")},
      bind_context(context, start_copy)));
  table.add(make_method<CheckCopy>(
      {"bdev_lvol_check_shallow_copy",
       "Tells how far a shallow copy is.",
       {"object", "state (in progress, complete, error), copied_clusters, total_clusters, error"},
       nothing()},
      {required("operation_id", &CheckCopy::operation_id, "what bdev_lvol_start_shallow_copy has returned")},
      bind_context(context, check_copy)));
  table.add(make_method<GetChanged>(
      {"bdev_lvol_get_changed_blocks",
       "Lists the clusters in which a volume or snapshot differs from an earlier snapshot, without reading data.",
       {"object", "cluster_size, num_clusters, clusters: [index], next (where to go on; missing: that was all)"},
       nothing()},
      {optional("from", &GetChanged::from, "the earlier snapshot; all that is mapped when left out"),
       required("to", &GetChanged::to, kWhich), optional("start", &GetChanged::start, "the first cluster to look at"),
       optional("count", &GetChanged::count, "how many to list at most, up to 65,536")},
      bind_context(context, get_changed)));
}

}  // namespace sluice::rpc
