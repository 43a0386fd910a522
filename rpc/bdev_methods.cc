// bdev_get_*, bdev_reset_*: what there is, and what it has done. One tick is one nanosecond.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "lib/base/clock.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/lvol/stores.h"
#include "lib/lvol/volume_bdev.h"
#include "rpc/bdev_json.h"
#include "rpc/methods.h"

namespace sluice::rpc {

template <>
struct EnumNames<IoStatsReset> {
  static constexpr std::string_view kList[] = {"none", "all", "maxmin", "error"};
  static constexpr std::span<const std::string_view> kNames = kList;
};

namespace {

constexpr uint64_t kMaxTimeoutMs = 24ULL * 3600 * 1000;

struct GetBdevs {
  std::optional<std::string> name;
  uint64_t timeout = 0;
};

struct GetIostat {
  std::vector<std::string> names;
  bool per_channel = false;
  IoStatsReset reset_mode = IoStatsReset::kNone;
};

struct ResetIostat {
  std::optional<std::string> name;
  IoStatsReset mode = IoStatsReset::kAll;
};

std::unexpected<RpcError> no_bdev(std::string_view name) {
  return fail_rpc(ENODEV, fmt::format("bdev '{}' does not exist", name));
}

Json::Value supported_io_types(const Bdev& bdev) {
  Json::Value json(Json::objectValue);
  for (const IoType type : {IoType::kRead, IoType::kFlush, IoType::kReset}) json[to_string(type)] = bdev.supports(type);
  for (const IoType type : {IoType::kWrite, IoType::kDiscard, IoType::kWriteZeroes}) {
    json[to_string(type)] = bdev.supports(type) && !bdev.readonly();
  }
  // What clients may ask for and no bdev of ours does.
  for (const char* type :
       {"nvme_admin", "nvme_io", "nvme_io_md", "zcopy", "get_zone_info", "zone_management", "zone_append", "compare",
        "compare_and_write", "abort", "seek_hole", "seek_data", "copy", "nvme_iov_md"}) {
    json[type] = false;
  }
  return json;
}

// What the stores tell of volumes, by uuid.
using Volumes = std::map<Uuid, lvol::VolumeInfo>;

void put_claim(Json::Value& json, const BdevManager& bdevs, const Bdev& bdev) {
  json["claimed"] = false;
  for (const BdevHandle* handle : bdevs.users(bdev)) {
    const bool alone = handle->access() == BdevAccess::kWriteAlone;
    if (!alone && handle->access() != BdevAccess::kReadStable) continue;
    json["claimed"] = true;
    json["claim_type"] = alone ? "exclusive_write" : "read_many_write_none";
  }
}

Json::Value to_json(const BdevManager& bdevs, const Volumes& volumes, const Bdev& bdev) {
  const BdevLimits& limits = bdev.limits();
  Json::Value json(Json::objectValue);
  json["name"] = bdev.name();
  json["aliases"] = Json::Value(Json::arrayValue);
  for (const std::string& alias : bdev.aliases()) json["aliases"].append(alias);
  json["product_name"] = bdev.product_name();
  json["block_size"] = limits.block_size_bytes;
  json["physical_block_size"] = limits.physical_block_size_bytes;
  json["num_blocks"] = bdev.size_bytes() / limits.block_size_bytes;
  json["uuid"] = bdev.uuid().to_string();
  if (limits.discard_granularity_bytes != 0) {
    json["preferred_unmap_granularity"] = std::max(1U, limits.discard_granularity_bytes / limits.block_size_bytes);
  }
  for (const char* limit : {"rw_ios_per_sec", "rw_mbytes_per_sec", "r_mbytes_per_sec", "w_mbytes_per_sec"}) {
    json["assigned_rate_limits"][limit] = 0;
  }
  put_claim(json, bdevs, bdev);
  json["zoned"] = false;
  json["readonly"] = bdev.readonly();
  json["users"] = Json::Value(Json::arrayValue);
  for (const BdevHandle* handle : bdevs.users(bdev)) json["users"].append(handle->user());
  json["supported_io_types"] = supported_io_types(bdev);
  json["driver_specific"] = driver_specific(bdev);
  const auto volume = volumes.find(bdev.uuid());
  if (volume != volumes.end()) describe_volume(volume->second, json["driver_specific"]);
  return json;
}

Task<RpcResult> get_bdevs(RpcContext& context, GetBdevs params) {
  Json::Value list(Json::arrayValue);
  Volumes volumes;
  if (params.name) {
    const uint64_t timeout_ns = std::min(params.timeout, kMaxTimeoutMs) * kNsPerMs;
    const Bdev* bdev = co_await context.bdevs.wait_for(*params.name, timeout_ns);
    if (bdev != nullptr && bdev->product_name() == std::string_view(lvol::kVolumeProductName)) {
      const Uuid uuid = bdev->uuid();
      if (auto volume = co_await context.stores.volume(uuid.to_string())) volumes[uuid] = std::move(*volume);
      bdev = context.bdevs.find(*params.name);  // it may have gone meanwhile
    }
    if (bdev == nullptr) co_return no_bdev(*params.name);
    list.append(to_json(context.bdevs, volumes, *bdev));
  } else {
    const auto all = co_await context.stores.volumes(std::nullopt);
    if (all) {
      for (const lvol::VolumeInfo& volume : *all) volumes[volume.record.uuid] = volume;
    }
    for (const Bdev* bdev : context.bdevs.list()) list.append(to_json(context.bdevs, volumes, *bdev));
  }
  co_return list;
}

void put_type(Json::Value& json, const IoTypeStats& stats, const std::string& bytes, const std::string& ops,
              const std::string& latency) {
  json[bytes] = stats.bytes;
  json[ops] = stats.ops;
  json[latency] = stats.total_ns;
  json["max_" + latency] = stats.max_ns;
  json["min_" + latency] = stats.ops == 0 ? 0 : stats.min_ns;
}

void put_stats(Json::Value& json, const IoStats& stats) {
  put_type(json, stats.of(IoType::kRead), "bytes_read", "num_read_ops", "read_latency_ticks");
  put_type(json, stats.of(IoType::kWrite), "bytes_written", "num_write_ops", "write_latency_ticks");
  put_type(json, stats.of(IoType::kDiscard), "bytes_unmapped", "num_unmap_ops", "unmap_latency_ticks");
  put_type(json, {}, "bytes_copied", "num_copy_ops", "copy_latency_ticks");
  put_type(json, stats.of(IoType::kWriteZeroes), "bytes_zeroed", "num_write_zeroes_ops", "write_zeroes_latency_ticks");
  put_type(json, stats.of(IoType::kFlush), "bytes_flushed", "num_flush_ops", "flush_latency_ticks");
  json["io_error"] = Json::Value(Json::objectValue);
  for (size_t i = 0; i < kIoStatuses; ++i) {
    const auto status = static_cast<IoStatus>(i);
    if (stats.errors(status) != 0) json["io_error"][to_string(status)] = stats.errors(status);
  }
}

// The names to look at; all when none is given.
std::expected<std::vector<std::string>, RpcError> choose(const BdevManager& bdevs,
                                                         const std::vector<std::string>& names) {
  std::vector<std::string> chosen;
  if (names.empty()) {
    for (const Bdev* bdev : bdevs.list()) chosen.push_back(bdev->name());
  }
  for (const std::string& name : names) {
    const Bdev* bdev = bdevs.find(name);
    if (bdev == nullptr) return no_bdev(name);
    chosen.push_back(bdev->name());
  }
  return chosen;
}

Task<Json::Value> channels_iostat(BdevManager& bdevs, Bdev& bdev) {
  Json::Value list(Json::arrayValue);
  // The device may go while this waits: from here on only its address is compared.
  co_await bdevs.threads().for_each_channel(bdev, [&list](Channel& channel) {
    Json::Value json(Json::objectValue);
    json["thread_id"] = channel.thread().id();
    put_stats(json, static_cast<BdevChannel&>(channel).stats());
    list.append(std::move(json));
  });
  co_return list;
}

Task<RpcResult> get_iostat(RpcContext& context, GetIostat params) {
  const auto names = choose(context.bdevs, params.names);
  if (!names) co_return std::unexpected(names.error());
  Json::Value json(Json::objectValue);
  json["tick_rate"] = kNsPerSec;
  json["ticks"] = now_ns();
  json["bdevs"] = Json::Value(Json::arrayValue);
  // Looked up each time: devices come and go while this waits.
  for (const std::string& name : *names) {
    Bdev* bdev = context.bdevs.find(name);
    if (bdev == nullptr) continue;
    Json::Value entry(Json::objectValue);
    entry["name"] = name;
    if (params.per_channel) {
      entry["channels"] = co_await channels_iostat(context.bdevs, *bdev);
    } else {
      put_stats(entry, co_await context.bdevs.iostat(*bdev));
    }
    json["bdevs"].append(std::move(entry));
    bdev = context.bdevs.find(name);
    if (bdev != nullptr && params.reset_mode != IoStatsReset::kNone) {
      co_await context.bdevs.reset_iostat(*bdev, params.reset_mode);
    }
  }
  co_return json;
}

Task<RpcResult> reset_iostat(RpcContext& context, ResetIostat params) {
  std::vector<std::string> given;
  if (params.name) given.push_back(*params.name);
  const auto names = choose(context.bdevs, given);
  if (!names) co_return std::unexpected(names.error());
  for (const std::string& name : *names) {
    if (Bdev* bdev = context.bdevs.find(name)) co_await context.bdevs.reset_iostat(*bdev, params.mode);
  }
  co_return true;
}

}  // namespace

Task<std::vector<StateObject>> bdev_state(RpcContext& context, std::string name) {
  std::vector<const Bdev*> bdevs;
  if (name.empty()) {
    for (const Bdev* bdev : context.bdevs.list()) bdevs.push_back(bdev);
  } else if (const Bdev* bdev = context.bdevs.find(name)) {
    bdevs.push_back(bdev);
  }
  std::vector<StateObject> objects;
  for (const Bdev* bdev : bdevs) {
    Json::Value call = creating_call(*bdev);
    if (call.isNull()) continue;  // a logical volume: its store has it
    objects.push_back({.name = bdev->name()});
    objects.back().calls.append(std::move(call));
  }
  co_return objects;
}

void add_bdev_methods(MethodTable& table, RpcContext& context) {
  table.add(
      make_method<GetBdevs>({"bdev_get_bdevs",
                             "Lists the block devices, or one of them.",
                             {"array",
                              "{name, aliases, product_name, block_size, physical_block_size, num_blocks, uuid, "
                              "assigned_rate_limits, claimed, claim_type, zoned, "
                              "readonly, users, supported_io_types, driver_specific}"},
                             nothing()},
                            {optional("name", &GetBdevs::name, "name, alias or uuid; all when left out"),
                             optional("timeout", &GetBdevs::timeout, "how many milliseconds to wait for it to appear")},
                            bind_context(context, get_bdevs)));
  table.add(make_method<GetIostat>(
      {"bdev_get_iostat",
       "Tells what was read and written since the device was made, or since a reset.",
       {"object",
        "tick_rate, ticks, bdevs: [{name, bytes_read, num_read_ops, read_latency_ticks, max_read_latency_ticks, "
        "min_read_latency_ticks, the same of write, unmap, copy, write_zeroes and flush, io_error: {status: count}}]; "
        "with "
        "per_channel: bdevs: [{name, channels: [{thread_id, ...}]}]"},
       nothing()},
      {optional("names", &GetIostat::names, "which; all when left out").alias("name"),
       optional("per_channel", &GetIostat::per_channel, "each channel by itself, without those that are closed"),
       optional("reset_mode", &GetIostat::reset_mode, "what to set to zero afterwards")},
      bind_context(context, get_iostat)));
  table.add(make_method<ResetIostat>({"bdev_reset_iostat", "Sets statistics to zero.", kTrue, nothing()},
                                     {optional("name", &ResetIostat::name, "which device; all when left out"),
                                      optional("mode", &ResetIostat::mode, "which statistics")},
                                     bind_context(context, reset_iostat)));
  add_bdev_module_methods(table, context);
}

}  // namespace sluice::rpc
