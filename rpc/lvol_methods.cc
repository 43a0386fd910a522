// bdev_lvol_*: logical volume stores and their volumes. bdev_wait_for_examine: until stores have been found.
#include <fmt/format.h>

#include "lib/bdev/bdev_manager.h"
#include "lib/lvol/stores.h"
#include "rpc/bdev_json.h"
#include "rpc/lvol_params.h"
#include "rpc/methods.h"

namespace sluice::rpc {
namespace {

struct CreateStore {
  std::string bdev_name;
  std::string lvs_name;
  uint32_t cluster_sz = static_cast<uint32_t>(lvol::kDefaultClusterBytes);
  std::string clear_method;
  uint32_t num_md_pages_per_cluster_ratio = 0;
  uint32_t md_page_size = 0;
};

struct RenameStore {
  std::string old_name;
  std::string new_name;
};

struct Create : WhichStore {
  std::string lvol_name;
  std::optional<uint64_t> size_in_mib;
  std::optional<uint64_t> size;
  bool thin_provision = false;
  std::string clear_method;
};

struct Snapshot {
  std::string lvol_name;
  std::string snapshot_name;
};

struct Clone {
  std::string snapshot_name;
  std::string clone_name;
};

struct CloneBdev {
  std::string bdev;
  std::string lvs_name;
  std::string clone_name;
};

struct Rename {
  std::string old_name;
  std::string new_name;
};

struct Resize {
  std::string name;
  std::optional<uint64_t> size_in_mib;
  std::optional<uint64_t> size;
};

struct GetVolumes {
  std::optional<std::string> lvs_uuid;
  std::optional<std::string> lvs_name;
};

// A size in bytes or in MiB.
std::expected<uint64_t, RpcError> chosen_size(const std::optional<uint64_t>& bytes,
                                              const std::optional<uint64_t>& mib) {
  if (bytes.has_value() == mib.has_value()) {
    return fail_rpc(EINVAL, "a size is needed, as size_in_mib or, in bytes, as size: give one of the two");
  }
  if (mib && *mib > UINT64_MAX >> 20) return fail_rpc(EINVAL, fmt::format("{} MiB are too many", *mib));
  return bytes ? *bytes : *mib << 20;
}

// Who keeps these devices in use: "'lvs/a' by vhost controller vm0".
std::string users_of(const BdevManager& bdevs, const std::vector<Bdev*>& devices) {
  std::string text;
  for (const Bdev* bdev : devices) {
    const std::string_view name = bdev->aliases().empty() ? bdev->name() : bdev->aliases().front();
    for (const BdevHandle* handle : bdevs.users(*bdev)) {
      text += fmt::format("{}'{}' by {}", text.empty() ? "" : ", ", name, handle->user());
    }
  }
  return text;
}

RpcResult uuid_answer(const Result<Uuid>& made, std::string_view subject) {
  if (!made) return fail_rpc(made.error(), subject);
  return made->to_string();
}

// --- Stores ---

Task<RpcResult> create_store(RpcContext& context, CreateStore params) {
  const auto made = co_await context.stores.create_store(
      params.bdev_name, {.name = params.lvs_name, .cluster_bytes = params.cluster_sz, .uuid = {}});
  std::string subject = fmt::format("logical volume store '{}' on bdev '{}'", params.lvs_name, params.bdev_name);
  if (!made && made.error().code == EBUSY) {
    if (Bdev* bdev = context.bdevs.find(params.bdev_name)) {
      subject += fmt::format(" (in use: {})", users_of(context.bdevs, {bdev}));
    }
  }
  co_return uuid_answer(made, subject);
}

Task<RpcResult> delete_store(RpcContext& context, WhichStore params) {
  const auto store = chosen(params);
  if (!store) co_return std::unexpected(store.error());
  const std::string users = users_of(context.bdevs, context.stores.bdevs_of_store(*store));
  const Result<> deleted = co_await context.stores.delete_store(*store);
  if (!deleted && deleted.error().code == EBUSY) {
    co_return fail_rpc(
        EBUSY, fmt::format("{} has volumes in use: {}; delete their users first", store_subject(*store), users));
  }
  co_return lvol_answer(deleted, store_subject(*store));
}

Json::Value to_json(const lvol::StoreInfo& store) {
  Json::Value json(Json::objectValue);
  json["uuid"] = store.uuid.to_string();
  json["name"] = store.name;
  json["base_bdev"] = store.base_bdev;
  json["total_data_clusters"] = store.usage.total_clusters;
  json["free_clusters"] = store.usage.free_clusters;
  json["cluster_size"] = store.cluster_bytes;
  json["block_size"] = store.block_bytes;
  json["max_growable_size"] = store.cluster_bytes * UINT32_MAX;
  json["enospc_policy"] = store.hold_when_full ? "hold" : "fail";
  json["usage_thresholds"] = Json::Value(Json::arrayValue);
  for (const uint32_t percent : store.usage_thresholds) json["usage_thresholds"].append(percent);
  json["damage"] = store.damage.empty() ? Json::Value() : Json::Value(store.damage);
  return json;
}

Task<RpcResult> get_stores(RpcContext& context, WhichStore params) {
  Json::Value list(Json::arrayValue);
  if (!params.lvs_name && !params.uuid) {
    for (const lvol::StoreInfo& store : co_await context.stores.stores()) list.append(to_json(store));
    co_return list;
  }
  const auto name = chosen(params);
  if (!name) co_return std::unexpected(name.error());
  const auto store = co_await context.stores.store(*name);
  if (!store) co_return fail_rpc(store.error(), store_subject(*name));
  list.append(to_json(*store));
  co_return list;
}

Task<RpcResult> rename_store(RpcContext& context, RenameStore params) {
  const Result<> renamed = co_await context.stores.rename_store(params.old_name, params.new_name);
  co_return lvol_answer(renamed,
                        fmt::format("{}, to be renamed to '{}'", store_subject(params.old_name), params.new_name));
}

Task<RpcResult> grow_store(RpcContext& context, WhichStore params) {
  const auto store = chosen(params);
  if (!store) co_return std::unexpected(store.error());
  co_return lvol_answer(co_await context.stores.grow_store(*store), store_subject(*store));
}

// --- Volumes ---

Task<RpcResult> create(RpcContext& context, Create params) {
  const auto store = chosen(params);
  if (!store) co_return std::unexpected(store.error());
  const auto size_bytes = chosen_size(params.size, params.size_in_mib);
  if (!size_bytes) co_return std::unexpected(size_bytes.error());
  const auto made = co_await context.stores.create(
      *store, {.name = params.lvol_name, .size_bytes = *size_bytes, .thin = params.thin_provision});
  co_return uuid_answer(made, fmt::format("{} in store '{}'", volume_subject(params.lvol_name), *store));
}

Task<RpcResult> snapshot(RpcContext& context, Snapshot params) {
  const auto made = co_await context.stores.snapshot(params.lvol_name, params.snapshot_name);
  co_return uuid_answer(made,
                        fmt::format("snapshot '{}' of {}", params.snapshot_name, volume_subject(params.lvol_name)));
}

Task<RpcResult> clone(RpcContext& context, Clone params) {
  const auto made = co_await context.stores.clone(params.snapshot_name, params.clone_name);
  co_return uuid_answer(made, fmt::format("clone '{}' of {}", params.clone_name, volume_subject(params.snapshot_name)));
}

Task<RpcResult> clone_bdev(RpcContext& context, CloneBdev params) {
  const auto made = co_await context.stores.clone_bdev(params.bdev, params.lvs_name, params.clone_name);
  std::string subject =
      fmt::format("clone '{}' in store '{}' of bdev '{}'", params.clone_name, params.lvs_name, params.bdev);
  if (!made && made.error().code == EBUSY) {
    if (Bdev* bdev = context.bdevs.find(params.bdev)) {
      subject += fmt::format(" (in use: {})", users_of(context.bdevs, {bdev}));
    }
  }
  co_return uuid_answer(made, subject);
}

Task<RpcResult> rename(RpcContext& context, Rename params) {
  const Result<> renamed = co_await context.stores.rename(params.old_name, params.new_name);
  co_return lvol_answer(renamed,
                        fmt::format("{}, to be renamed to '{}'", volume_subject(params.old_name), params.new_name));
}

Task<RpcResult> resize(RpcContext& context, Resize params) {
  const auto size_bytes = chosen_size(params.size, params.size_in_mib);
  if (!size_bytes) co_return std::unexpected(size_bytes.error());
  co_return lvol_answer(co_await context.stores.resize(params.name, *size_bytes), volume_subject(params.name));
}

Task<RpcResult> set_readonly(RpcContext& context, WhichVolume params) {
  co_return lvol_answer(co_await context.stores.set_readonly(params.name), volume_subject(params.name));
}

Task<RpcResult> remove(RpcContext& context, WhichVolume params) {
  std::string users;
  if (Bdev* bdev = context.stores.bdev_of_volume(params.name)) users = users_of(context.bdevs, {bdev});
  const Result<> removed = co_await context.stores.remove(params.name);
  if (!removed && removed.error().code == EBUSY && !users.empty()) {
    co_return fail_rpc(EBUSY, fmt::format("logical volume in use: {}; delete that first", users));
  }
  co_return lvol_answer(removed, volume_subject(params.name));
}

bool is_external_clone(const lvol::VolumeInfo& volume) {
  return volume.parent.empty() && !volume.record.external_origin.empty();
}

Json::Value to_json(const lvol::VolumeInfo& volume) {
  const lvol::VolumeRecord& record = volume.record;
  Json::Value json(Json::objectValue);
  json["alias"] = volume.alias();
  json["uuid"] = record.uuid.to_string();
  json["name"] = record.name;
  json["is_thin_provisioned"] = record.thin;
  json["is_snapshot"] = record.snapshot;
  json["is_clone"] = !volume.parent.empty();
  json["is_esnap_clone"] = is_external_clone(volume);
  json["is_degraded"] = !volume.offered;
  json["num_allocated_clusters"] = volume.own_clusters;
  json["lvs"]["name"] = volume.store_name;
  json["lvs"]["uuid"] = volume.store_uuid.to_string();
  return json;
}

Task<RpcResult> get_volumes(RpcContext& context, GetVolumes params) {
  std::optional<std::string> store;
  if (params.lvs_name || params.lvs_uuid) {
    const auto name = chosen(params.lvs_name, params.lvs_uuid);
    if (!name) co_return std::unexpected(name.error());
    store = *name;
  }
  const auto volumes = co_await context.stores.volumes(store);
  if (!volumes) co_return fail_rpc(volumes.error(), store_subject(*store));
  Json::Value list(Json::arrayValue);
  for (const lvol::VolumeInfo& volume : *volumes) list.append(to_json(volume));
  co_return list;
}

Task<RpcResult> wait_for_examine(RpcContext& context, NoParams) {
  co_await context.stores.wait_for_examine();
  co_return true;
}

constexpr ResultInfo kStoreUuid{"string", "the store's uuid"};
constexpr ResultInfo kVolumeUuid{"string", "the new volume's uuid, which is the name of its bdev"};
constexpr const char* kNoEffect = "accepted for compatibility; no effect";

void add_store_methods(MethodTable& table, RpcContext& context) {
  table.add(make_method<CreateStore>(
      {"bdev_lvol_create_lvstore", "Makes a store for logical volumes of a bdev; what is on it is lost.", kStoreUuid,
       kept_by_store()},
      {required("bdev_name", &CreateStore::bdev_name, "the bdev, which nobody else may be writing to"),
       required("lvs_name", &CreateStore::lvs_name, "its name, without a slash"),
       optional("cluster_sz", &CreateStore::cluster_sz,
                "unit of allocation in bytes: a power of two, 65536 to 16777216"),
       optional("clear_method", &CreateStore::clear_method, kNoEffect),
       optional("num_md_pages_per_cluster_ratio", &CreateStore::num_md_pages_per_cluster_ratio, kNoEffect),
       optional("md_page_size", &CreateStore::md_page_size, kNoEffect)},
      bind_context(context, create_store)));
  table.add(make_method<WhichStore>(
      {"bdev_lvol_delete_lvstore", "Deletes a store and all its volumes, none of which may be in use.", kTrue,
       changes_any(StateKind::kStore)},
      store_fields<WhichStore>(), bind_context(context, delete_store)));
  table.add(make_method<WhichStore>(
      {"bdev_lvol_get_lvstores",
       "Lists the stores, or one of them.",
       {"array",
        "{uuid, name, base_bdev, total_data_clusters, free_clusters, cluster_size, block_size, max_growable_size, "
        "enospc_policy, usage_thresholds: percent, damage: null, or why the store can only be read}"},
       nothing()},
      store_fields<WhichStore>(), bind_context(context, get_stores)));
  table.add(make_method<RenameStore>({"bdev_lvol_rename_lvstore", "Renames a store.", kTrue, kept_by_store()},
                                     {required("old_name", &RenameStore::old_name, "its name or uuid"),
                                      required("new_name", &RenameStore::new_name, "its new name")},
                                     bind_context(context, rename_store)));
  table.add(make_method<WhichStore>(
      {"bdev_lvol_grow_lvstore", "Lets a store use all of its bdev, which has become larger.", kTrue, kept_by_store()},
      store_fields<WhichStore>(), bind_context(context, grow_store)));
  table.add(
      make_method<NoParams>({"bdev_wait_for_examine",
                             "Returns once every bdev added so far has been searched for a store.", kTrue, nothing()},
                            {}, bind_context(context, wait_for_examine)));
}

void add_volume_methods(MethodTable& table, RpcContext& context) {
  table.add(make_method<Create>(
      {"bdev_lvol_create", "Makes a logical volume.", kVolumeUuid, kept_by_store()},
      store_fields<Create>(
          {required("lvol_name", &Create::lvol_name, "its name in the store, without a slash"),
           optional("size_in_mib", &Create::size_in_mib, "MiB; rounded up to clusters"),
           optional("size", &Create::size, "or bytes; rounded up to clusters"),
           optional("thin_provision", &Create::thin_provision, "take clusters only when they are written"),
           optional("clear_method", &Create::clear_method,
                    "accepted for compatibility; no effect: what was not written reads as zeroes")}),
      bind_context(context, create)));
  table.add(make_method<Snapshot>(
      {"bdev_lvol_snapshot", "Makes a read-only volume of what a volume is now.", kVolumeUuid, kept_by_store()},
      {required("lvol_name", &Snapshot::lvol_name, kWhichVolume),
       required("snapshot_name", &Snapshot::snapshot_name, "the snapshot's name in the store")},
      bind_context(context, snapshot)));
  table.add(make_method<Clone>(
      {"bdev_lvol_clone", "Makes a volume that begins as what a snapshot, or another read-only volume, is.",
       kVolumeUuid, kept_by_store()},
      {required("snapshot_name", &Clone::snapshot_name, "the snapshot: store/volume, or its uuid"),
       required("clone_name", &Clone::clone_name, "the clone's name in the store")},
      bind_context(context, clone)));
  table.add(make_method<CloneBdev>(
      {"bdev_lvol_clone_bdev",
       "Makes a volume that begins as what a bdev holds, to which nobody may write as long as the volume exists.",
       kVolumeUuid, kept_by_store()},
      {required("bdev", &CloneBdev::bdev, "name, alias or uuid; it is found again by its name"),
       required("lvs_name", &CloneBdev::lvs_name, "the store, by name or uuid"),
       required("clone_name", &CloneBdev::clone_name, "the clone's name in the store")},
      bind_context(context, clone_bdev)));
  table.add(make_method<Rename>({"bdev_lvol_rename", "Renames a volume.", kTrue, kept_by_store()},
                                {required("old_name", &Rename::old_name, kWhichVolume),
                                 required("new_name", &Rename::new_name, "its new name in the store")},
                                bind_context(context, rename)));
  table.add(make_method<Resize>(
      {"bdev_lvol_resize", "Makes a volume larger or smaller; what is cut off is lost.", kTrue, kept_by_store()},
      {required("name", &Resize::name, kWhichVolume),
       optional("size_in_mib", &Resize::size_in_mib, "MiB; rounded up to clusters"),
       optional("size", &Resize::size, "or bytes; rounded up to clusters")},
      bind_context(context, resize)));
  table.add(make_method<WhichVolume>(
      {"bdev_lvol_set_read_only", "Makes a volume read-only for good; writes of those who have it open fail.", kTrue,
       kept_by_store()},
      {required("name", &WhichVolume::name, kWhichVolume)}, bind_context(context, set_readonly)));
  table.add(make_method<WhichVolume>(
      {"bdev_lvol_delete", "Deletes a volume or snapshot that is not in use, in any order.", kTrue, kept_by_store()},
      {required("name", &WhichVolume::name, kWhichVolume)}, bind_context(context, remove)));
  table.add(
      make_method<GetVolumes>({"bdev_lvol_get_lvols",
                               "Lists the volumes, of one store or of all.",
                               {"array",
                                "{alias, uuid, name, is_thin_provisioned, is_snapshot, is_clone, is_esnap_clone, "
                                "is_degraded: there is no bdev of "
                                "it, num_allocated_clusters: that it has and its parent has not, lvs: {name, uuid}}"},
                               nothing()},
                              {optional("lvs_name", &GetVolumes::lvs_name, "the store, by name"),
                               optional("lvs_uuid", &GetVolumes::lvs_uuid, "or the store, by uuid")},
                              bind_context(context, get_volumes)));
}

}  // namespace

void describe_volume(const lvol::VolumeInfo& volume, Json::Value& driver_specific) {
  Json::Value& json = driver_specific["lvol"];
  json["lvol_store_uuid"] = volume.store_uuid.to_string();
  json["base_bdev"] = volume.base_bdev;
  json["thin_provision"] = volume.record.thin;
  json["num_allocated_clusters"] = volume.own_clusters;
  json["snapshot"] = volume.record.snapshot;
  json["clone"] = !volume.parent.empty();
  if (!volume.parent.empty()) json["base_snapshot"] = volume.parent;
  if (volume.record.snapshot) {
    json["clones"] = Json::Value(Json::arrayValue);
    for (const std::string& clone : volume.clones) json["clones"].append(clone);
  }
  json["esnap_clone"] = is_external_clone(volume);
  if (is_external_clone(volume)) json["external_snapshot_name"] = volume.record.external_origin;
}

void add_lvol_methods(MethodTable& table, RpcContext& context) {
  add_store_methods(table, context);
  add_volume_methods(table, context);
  add_lvol_space_methods(table, context);
  add_lvol_copy_methods(table, context);
}

}  // namespace sluice::rpc
