// bdev_lvol_*: how much of a store is used, and what happens when that is much. Also what of stores is in a saved
// configuration.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/malloc/malloc_bdev.h"
#include "lib/lvol/stores.h"
#include "rpc/lvol_params.h"
#include "rpc/methods.h"

namespace sluice::rpc {
namespace {

enum class FullPolicy : uint8_t { kFail, kHold };

}  // namespace

template <>
struct EnumNames<FullPolicy> {
  static constexpr std::string_view kList[] = {"fail", "hold"};
  static constexpr std::span<const std::string_view> kNames = kList;
};

namespace {

struct SetFullPolicy : WhichStore {
  FullPolicy policy = FullPolicy::kFail;
};

struct SetThresholds : WhichStore {
  std::vector<uint32_t> percent;
};

struct GetUsage : WhichStore {
  std::optional<std::string> name;
};

Task<RpcResult> set_full_policy(RpcContext& context, SetFullPolicy params) {
  const auto store = chosen(params);
  if (!store) co_return std::unexpected(store.error());
  const Result<> set = co_await context.stores.set_hold_when_full(*store, params.policy == FullPolicy::kHold);
  co_return lvol_answer(set, store_subject(*store));
}

Task<RpcResult> set_thresholds(RpcContext& context, SetThresholds params) {
  const auto store = chosen(params);
  if (!store) co_return std::unexpected(store.error());
  const std::string subject = fmt::format("{}, thresholds {}", store_subject(*store), fmt::join(params.percent, ", "));
  co_return lvol_answer(co_await context.stores.set_usage_thresholds(*store, std::move(params.percent)), subject);
}

Task<RpcResult> get_usage(RpcContext& context, GetUsage params) {
  Json::Value json(Json::objectValue);
  if (params.name) {
    if (params.lvs_name || params.uuid) co_return fail_rpc(EINVAL, "give a volume or a store, not both");
    const auto volume = co_await context.stores.volume(*params.name);
    if (!volume) co_return fail_rpc(volume.error(), volume_subject(*params.name));
    const auto usage = co_await context.stores.usage(*params.name);
    if (!usage) co_return fail_rpc(usage.error(), volume_subject(*params.name));
    const auto put = [&](const std::string& what, uint64_t clusters) {
      json[what + "_clusters"] = clusters;
      json[what + "_bytes"] = clusters * volume->cluster_bytes;
    };
    put("allocated", usage->allocated);
    put("exclusive", usage->exclusive);
    put("shared", usage->shared());
    json["cluster_size"] = volume->cluster_bytes;
    co_return json;
  }
  const auto name = chosen(params);
  if (!name) co_return std::unexpected(name.error());
  const auto store = co_await context.stores.store(*name);
  if (!store) co_return fail_rpc(store.error(), store_subject(*name));
  const lvol::StoreUsage& usage = store->usage;
  json["total_clusters"] = usage.total_clusters;
  json["free_clusters"] = usage.free_clusters;
  json["free_bytes"] = usage.free_clusters * store->cluster_bytes;
  json["metadata_clusters"] = usage.metadata_clusters;
  json["map_pages"] = usage.map_pages;
  json["waiting_writes"] = usage.waiting_writes;
  json["write_holds"]["count"] = usage.holds;
  json["write_holds"]["p99_us"] = static_cast<double>(usage.holds_p99_ns) / 1000;
  json["write_holds"]["max_us"] = static_cast<double>(usage.holds_max_ns) / 1000;
  json["cluster_size"] = store->cluster_bytes;
  co_return json;
}

Json::Value make_call(const char* method) {
  Json::Value call(Json::objectValue);
  call["method"] = method;
  call["params"] = Json::Value(Json::objectValue);
  return call;
}

// What it does not keep on its disk.
Json::Value store_calls(const lvol::StoreInfo& store) {
  Json::Value calls(Json::arrayValue);
  if (store.hold_when_full) {
    Json::Value call = make_call("bdev_lvol_set_enospc_policy");
    call["params"]["uuid"] = store.uuid.to_string();
    call["params"]["policy"] = "hold";
    calls.append(std::move(call));
  }
  if (!store.usage_thresholds.empty()) {
    Json::Value call = make_call("bdev_lvol_set_thresholds");
    call["params"]["uuid"] = store.uuid.to_string();
    for (const uint32_t percent : store.usage_thresholds) call["params"]["percent"].append(percent);
    calls.append(std::move(call));
  }
  return calls;
}

}  // namespace

Task<std::vector<StateObject>> store_state(RpcContext& context, std::string name) {
  std::vector<StateObject> objects;
  for (const lvol::StoreInfo& store : co_await context.stores.stores()) {
    if (!name.empty() && name != store.uuid.to_string()) continue;
    const Bdev* base = context.bdevs.find(store.base_bdev);
    // What was in memory is not there any more when this is loaded.
    const bool lasts = base != nullptr && base->product_name() != std::string_view(kMallocProductName);
    Json::Value calls = store_calls(store);
    if (lasts && !calls.empty()) objects.push_back({.name = store.uuid.to_string(), .calls = std::move(calls)});
  }
  co_return objects;
}

void add_lvol_space_methods(MethodTable& table, RpcContext& context) {
  table.add(make_method<SetFullPolicy>(
      {"bdev_lvol_set_enospc_policy", "Says what becomes of a write that needs a cluster when none is free.", kTrue,
       changes_any(StateKind::kStore)},
      store_fields<SetFullPolicy>({required("policy", &SetFullPolicy::policy,
                                            "fail: it fails with \"no space\"; hold: it waits until there is one")}),
      bind_context(context, set_full_policy)));
  table.add(make_method<SetThresholds>(
      {"bdev_lvol_set_thresholds",
       "Says at which usage of a store clients are notified: lvol_store_usage_above when so much comes into use, "
       "lvol_store_usage_below when it is 2 percent less again.",
       kTrue, changes_any(StateKind::kStore)},
      store_fields<SetThresholds>(
          {required("percent", &SetThresholds::percent,
                    "of the clusters in use, each 1 to 100; instead of those before; none: []")}),
      bind_context(context, set_thresholds)));
  table.add(make_method<GetUsage>(
      {"bdev_lvol_get_usage",
       "Tells what of a store is used, or what a volume uses of it.",
       {"object",
        "of a volume: allocated_clusters, exclusive_clusters: its alone, shared_clusters, each also as _bytes, "
        "cluster_size; of a store: total_clusters, free_clusters, free_bytes, metadata_clusters, map_pages, "
        "waiting_writes, write_holds: {count, p99_us, max_us} (how long snapshots made writes of a volume wait), "
        "cluster_size"},
       nothing()},
      store_fields<GetUsage>({optional("name", &GetUsage::name, kWhichVolume)}), bind_context(context, get_usage)));
}

}  // namespace sluice::rpc
