// vhost_*: the controllers, through which guests use the block devices.
#include <fmt/format.h>

#include "lib/base/clock.h"
#include "lib/vhost/target.h"
#include "rpc/methods.h"

namespace sluice::rpc {
namespace {

constexpr std::string_view kTransport = "vhost_user_blk";

struct CreateController {
  std::string ctrlr;
  std::string dev_name;
  std::string cpumask;
  bool readonly = false;
  bool packed_ring = false;
  bool any_memory_file = false;
  std::vector<uint32_t> allowed_uids;
  std::vector<uint32_t> allowed_gids;
  uint32_t queue_threads = 0;
  std::string transport{kTransport};
};

struct GetControllers {
  std::optional<std::string> name;
};

struct DeleteController {
  std::string ctrlr;
};

struct SetCoalescing {
  std::string ctrlr;
  uint32_t delay_base_us = 0;
  uint32_t iops_threshold = 0;
};

Task<RpcResult> create_controller(RpcContext& context, CreateController params) {
  if (params.transport != kTransport) {
    co_return fail_rpc(EINVAL, fmt::format("there is no transport '{}', only {}", params.transport, kTransport));
  }
  vhost::Target::ControllerOptions options{.name = params.ctrlr,
                                           .bdev_name = params.dev_name,
                                           .cpumask = {},
                                           .readonly = params.readonly,
                                           .packed_ring = params.packed_ring,
                                           .any_memory_file = params.any_memory_file,
                                           .allowed = {.uids = params.allowed_uids, .gids = params.allowed_gids},
                                           .queue_threads = params.queue_threads};
  if (!params.cpumask.empty()) {
    const Result<CpuMask> cpumask = CpuMask::parse(params.cpumask);
    if (!cpumask) co_return fail_rpc(cpumask.error(), fmt::format("cpumask '{}'", params.cpumask));
    options.cpumask = *cpumask;
  }
  const Result<> created = co_await context.vhost.create_controller(std::move(options));
  if (!created) {
    co_return fail_rpc(created.error(), fmt::format("controller '{}' of bdev '{}'", params.ctrlr, params.dev_name));
  }
  co_return true;
}

Task<RpcResult> delete_controller(RpcContext& context, DeleteController params) {
  const Result<> removed = co_await context.vhost.remove_controller(params.ctrlr);
  if (!removed) co_return fail_rpc(removed.error(), fmt::format("controller '{}'", params.ctrlr));
  co_return true;
}

Task<RpcResult> set_coalescing(RpcContext& context, SetCoalescing params) {
  const Result<> set = co_await context.vhost.set_coalescing(
      params.ctrlr, {.delay_base_ns = params.delay_base_us * kNsPerUs, .iops_threshold = params.iops_threshold});
  if (!set) co_return fail_rpc(set.error(), fmt::format("controller '{}'", params.ctrlr));
  co_return true;
}

Json::Value to_json(const std::vector<uint32_t>& numbers) {
  Json::Value list(Json::arrayValue);
  for (const uint32_t number : numbers) list.append(number);
  return list;
}

Json::Value queues_json(const vhost::SessionInfo& session) {
  Json::Value list(Json::arrayValue);
  for (const vhost::SessionInfo::Queue& queue : session.queues) {
    Json::Value json(Json::objectValue);
    json["index"] = queue.index;
    json["running"] = queue.running;
    json["fault"] = queue.fault == vhost::RingFault::kNone ? Json::Value() : Json::Value(to_string(queue.fault));
    json["requests"] = queue.stats.requests;
    json["kicks"] = queue.stats.kicks;
    json["calls"] = queue.stats.calls;
    json["thread_id"] = queue.thread_id;
    list.append(std::move(json));
  }
  return list;
}

Json::Value to_json(const vhost::ControllerInfo& controller, bool with_queues) {
  Json::Value json(Json::objectValue);
  json["ctrlr"] = controller.name;
  json["cpumask"] = controller.cpumask;
  json["delay_base_us"] = controller.coalescing.delay_base_ns / kNsPerUs;
  json["iops_threshold"] = controller.coalescing.iops_threshold;
  json["socket"] = controller.socket_path;
  json["allowed_uids"] = to_json(controller.allowed.uids);
  json["allowed_gids"] = to_json(controller.allowed.gids);
  json["sessions"] = Json::Value(Json::arrayValue);
  for (const vhost::SessionInfo& session : controller.sessions) {
    Json::Value entry(Json::objectValue);
    entry["vid"] = session.id;
    entry["id"] = session.id;
    entry["name"] = fmt::format("{}s{}", controller.name, session.id);
    entry["started"] = session.started;
    entry["max_queues"] = session.max_queues;
    entry["inflight_task_cnt"] = session.in_flight;
    if (with_queues) entry["queues"] = queues_json(session);
    json["sessions"].append(std::move(entry));
  }
  Json::Value& block = json["backend_specific"]["block"];
  block["readonly"] = controller.readonly;
  block["packed_ring"] = controller.packed_ring;
  block["any_memory_file"] = controller.any_memory_file;
  block["bdev"] = controller.bdev_name.empty() ? Json::Value() : Json::Value(controller.bdev_name);
  block["transport"] = std::string(kTransport);
  return json;
}

// Queues are described only when one controller is asked for: some clients read no more than 8 KiB of the list of all.
Task<RpcResult> get_controllers(RpcContext& context, GetControllers params) {
  const auto controllers = co_await context.vhost.list(params.name.value_or(""));
  if (params.name && (params.name->empty() || controllers.empty())) {
    co_return fail_rpc(ENODEV, fmt::format("controller '{}' does not exist", *params.name));
  }
  Json::Value list(Json::arrayValue);
  for (const vhost::ControllerInfo& controller : controllers) list.append(to_json(controller, params.name.has_value()));
  co_return list;
}

}  // namespace

Task<Json::Value> vhost_config(RpcContext& context) {
  const auto controllers = co_await context.vhost.list();
  const std::string anywhere = context.threads.all_cpus().to_string();
  Json::Value calls(Json::arrayValue);
  for (const vhost::ControllerInfo& controller : controllers) {
    if (controller.bdev_name.empty()) continue;  // its disk was pulled out: there is nothing to make again
    Json::Value call(Json::objectValue);
    call["method"] = "vhost_create_blk_controller";
    call["params"]["ctrlr"] = controller.name;
    call["params"]["dev_name"] = controller.bdev_name;
    call["params"]["readonly"] = controller.readonly;
    if (controller.packed_ring) call["params"]["packed_ring"] = true;
    if (controller.any_memory_file) call["params"]["any_memory_file"] = true;
    if (!controller.allowed.uids.empty()) call["params"]["allowed_uids"] = to_json(controller.allowed.uids);
    if (!controller.allowed.gids.empty()) call["params"]["allowed_gids"] = to_json(controller.allowed.gids);
    // "Anywhere" is left out, so that it also holds on a host with other cores.
    if (controller.cpumask != anywhere) call["params"]["cpumask"] = controller.cpumask;
    if (controller.queue_threads > 0) call["params"]["queue_threads"] = controller.queue_threads;
    calls.append(std::move(call));
    if (controller.coalescing.delay_base_ns == 0) continue;
    Json::Value coalescing(Json::objectValue);
    coalescing["method"] = "vhost_controller_set_coalescing";
    coalescing["params"]["ctrlr"] = controller.name;
    coalescing["params"]["delay_base_us"] = controller.coalescing.delay_base_ns / kNsPerUs;
    coalescing["params"]["iops_threshold"] = controller.coalescing.iops_threshold;
    calls.append(std::move(coalescing));
  }
  co_return calls;
}

void add_vhost_methods(MethodTable& table, RpcContext& context) {
  table.add(make_method<CreateController>(
      {"vhost_create_blk_controller", "Offers a bdev to a guest, on a vhost-user-blk socket.", kTrue},
      {required("ctrlr", &CreateController::ctrlr, "its name, which is also the socket's in the directory of sockets"),
       required("dev_name", &CreateController::dev_name, "the bdev's name, alias or uuid"),
       optional("cpumask", &CreateController::cpumask,
                "cores that may serve it: \"0x5\" or \"[0,2]\"; any when left out"),
       optional("readonly", &CreateController::readonly, "the guest may not write"),
       optional(
           "packed_ring", &CreateController::packed_ring,
           "offers packed virtqueues as well, which the guest's monitor has to ask for, too (QEMU: packed=on); a guest "
           "that uses them loses its disk when the daemon restarts"),
       optional(
           "queue_threads", &CreateController::queue_threads,
           "how many lightweight threads of their own its queues are spread over, each on a core of cpumask; 0: all "
           "are served by the controller's"),
       optional("allowed_uids", &CreateController::allowed_uids,
                "users whose processes may connect; any that the socket's mode lets in when neither this nor "
                "allowed_gids is given"),
       optional("allowed_gids", &CreateController::allowed_gids,
                "groups whose processes may connect, as their own group or a supplementary one"),
       optional(
           "any_memory_file", &CreateController::any_memory_file,
           "the guest's memory may be in any file, not only in a memfd or on tmpfs or hugetlbfs; whoever serves the "
           "guest then waits for the file system under it"),
       optional("transport", &CreateController::transport, "vhost_user_blk is the only one")},
      bind_context(context, create_controller)));
  table.add(make_method<GetControllers>(
      {"vhost_get_controllers",
       "Lists the controllers, or one of them with its queues.",
       {"array",
        "{ctrlr, cpumask, delay_base_us, iops_threshold, socket, allowed_uids, allowed_gids, sessions: [{vid, id, "
        "name, "
        "started, max_queues, inflight_task_cnt, queues: [{index, running, fault, requests, kicks, calls, "
        "thread_id}]}], "
        "backend_specific: {block: {readonly, packed_ring, any_memory_file, bdev, transport}}}"}},
      {optional("name", &GetControllers::name, "which; all when left out")}, bind_context(context, get_controllers)));
  table.add(make_method<DeleteController>(
      {"vhost_delete_controller", "Removes a controller and its socket; requests in flight complete first.", kTrue},
      {required("ctrlr", &DeleteController::ctrlr, "which")}, bind_context(context, delete_controller)));
  table.add(make_method<SetCoalescing>(
      {"vhost_controller_set_coalescing",
       "Lets a busy queue tell its guest of completions later, so that each interrupt tells of more; never with fewer "
       "than four requests in flight.",
       kTrue},
      {required("ctrlr", &SetCoalescing::ctrlr, "which"),
       required("delay_base_us", &SetCoalescing::delay_base_us,
                "how much later at twice the threshold, twice that at three times, and so on, up to 10 ms; 0: never"),
       required("iops_threshold", &SetCoalescing::iops_threshold,
                "requests a second of one queue up to which nothing is held back")},
      bind_context(context, set_coalescing)));
}

}  // namespace sluice::rpc
