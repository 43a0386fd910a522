// bdev_virtio_*: disks behind the vhost-user-blk sockets of other processes, or of our own.
#include <fmt/format.h>

#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/virtio/virtio_bdev.h"
#include "rpc/bdev_json.h"

namespace sluice::rpc {
namespace {

enum class TransportType : uint8_t { kPci, kUser, kVfioUser };
enum class DeviceType : uint8_t { kBlk, kScsi };

}  // namespace

template <>
struct EnumNames<TransportType> {
  static constexpr std::string_view kList[] = {"pci", "user", "vfio-user"};
  static constexpr std::span<const std::string_view> kNames = kList;
};

template <>
struct EnumNames<DeviceType> {
  static constexpr std::string_view kList[] = {"blk", "scsi"};
  static constexpr std::span<const std::string_view> kNames = kList;
};

namespace {

struct Attach {
  std::string name;
  TransportType trtype = TransportType::kUser;
  std::string traddr;
  DeviceType dev_type = DeviceType::kBlk;
  uint32_t vq_count = VirtioBdevOptions{}.vq_count;
  uint32_t vq_size = VirtioBdevOptions{}.vq_size;
  bool packed_ring = VirtioBdevOptions{}.packed_ring;
};

struct Detach {
  std::string name;
};

Task<RpcResult> attach(RpcContext& context, Attach params) {
  if (params.trtype != TransportType::kUser) {
    co_return fail_rpc(EOPNOTSUPP, "of the transports, only 'user' (a vhost-user socket) is supported");
  }
  if (params.dev_type != DeviceType::kBlk) {
    co_return fail_rpc(EOPNOTSUPP, "of the device types, only 'blk' is supported");
  }
  if (context.bdevs.find(params.name) != nullptr) {
    co_return fail_rpc(EEXIST, fmt::format("bdev '{}' exists already", params.name));
  }
  const auto attached = co_await context.virtio.attach(context.bdevs, {.name = params.name,
                                                                       .socket_path = params.traddr,
                                                                       .vq_count = params.vq_count,
                                                                       .vq_size = params.vq_size,
                                                                       .packed_ring = params.packed_ring});
  if (!attached) co_return fail_rpc(attached.error(), fmt::format("'{}'", params.traddr));
  Json::Value names(Json::arrayValue);
  names.append((*attached)->name());
  co_return names;
}

Task<RpcResult> detach(RpcContext& context, Detach params) {
  const Result<> detached = co_await context.virtio.detach(context.bdevs, params.name);
  if (!detached) co_return fail_rpc(detached.error(), fmt::format("bdev '{}'", params.name));
  co_return true;
}

}  // namespace

void describe_virtio(const Bdev& bdev, Json::Value& driver_specific) {
  const std::optional<VirtioBdevInfo> info = VirtioModule::info(bdev);
  if (!info) return;
  Json::Value& json = driver_specific["virtio"];
  json["vq_count"] = info->vq_count;
  json["vq_size"] = info->vq_size;
  json["type"] = "user";
  json["socket"] = info->socket_path;
  json["connected"] = info->connected;
  json["reconnects"] = info->reconnects;
  json["features"] = fmt::format("{:#x}", info->features);
  json["queues"] = Json::Value(Json::arrayValue);
  for (const VirtioBdevInfo::Queue& queue : info->queues) {
    Json::Value entry(Json::objectValue);
    entry["requests"] = queue.requests;
    entry["bounced"] = queue.bounced;
    entry["kicks"] = queue.kicks;
    entry["calls"] = queue.calls;
    json["queues"].append(std::move(entry));
  }
}

Json::Value attaching_call(const Bdev& bdev) {
  const std::optional<VirtioBdevInfo> info = VirtioModule::info(bdev);
  if (!info) return {};
  Json::Value call(Json::objectValue);
  call["method"] = "bdev_virtio_attach_controller";
  call["params"]["name"] = info->name;
  call["params"]["trtype"] = "user";
  call["params"]["traddr"] = info->socket_path;
  call["params"]["dev_type"] = "blk";
  // "One for each core" is left out, so that it also holds on a host with other cores.
  if (info->vq_count_chosen) call["params"]["vq_count"] = info->vq_count;
  call["params"]["vq_size"] = info->vq_size;
  if (info->packed_ring_chosen) call["params"]["packed_ring"] = true;
  return call;
}

void add_virtio_methods(MethodTable& table, RpcContext& context) {
  table.add(make_method<Attach>(
      {"bdev_virtio_attach_controller",
       "Makes a disk of what another process offers on a vhost-user-blk socket; reconnects when that process restarts.",
       {"array", "the name of the bdev"},
       changes(StateKind::kBdev, "name")},
      {required("name", &Attach::name, "of the bdev"),
       required("trtype", &Attach::trtype, "user (a vhost-user socket) is the only one that is supported"),
       required("traddr", &Attach::traddr, "path of the socket"),
       required("dev_type", &Attach::dev_type, "blk is the only one that is supported"),
       optional("vq_count", &Attach::vq_count, "queues, each for one core; 0: one for each of ours, if it has as many"),
       optional("vq_size", &Attach::vq_size, "requests of a queue; a power of two, 8 to 1024"),
       optional("packed_ring", &Attach::packed_ring, "packed virtqueues, if the back end offers them")},
      bind_context(context, attach)));
  table.add(make_method<Detach>(
      {"bdev_virtio_detach_controller", "Removes such a disk: its users see it vanish, and the connection ends.", kTrue,
       removes(StateKind::kBdev, "name") + changes_any(StateKind::kStore)},
      {required("name", &Detach::name, "which")}, bind_context(context, detach)));
}

}  // namespace sluice::rpc
