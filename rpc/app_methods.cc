// rpc_*, framework_*, spdk_*: the daemon itself.
#include <fmt/format.h>
#include <signal.h>

#include <iterator>

#include "lib/base/unix_socket.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/malloc/malloc_bdev.h"
#include "lib/lvol/stores.h"
#include "lib/vhost/target.h"
#include "rpc/describe.h"
#include "rpc/methods.h"
#include "rpc/state_keeper.h"
#include "rpc/version.h"

namespace sluice::rpc {
namespace {

enum class KillSignal : uint8_t { kInt, kTerm, kQuit, kHup, kKill, kUsr1 };
constexpr std::string_view kKillSignalNames[] = {"SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGKILL", "SIGUSR1"};
constexpr int kKillSignals[] = {SIGINT, SIGTERM, SIGQUIT, SIGHUP, SIGKILL, SIGUSR1};
static_assert(std::size(kKillSignalNames) == std::size(kKillSignals));

struct Subsystem {
  std::string_view name;
  std::string_view depends_on;  // empty: nothing
  std::vector<StateKind> kinds;
};
// In the order in which a saved configuration is loaded.
const Subsystem kSubsystems[] = {{"log", "", {StateKind::kLog}},
                                 {"scheduler", "", {StateKind::kScheduler}},
                                 {"bdev", "", {StateKind::kBdev, StateKind::kStore}},
                                 {"vhost_blk", "bdev", {StateKind::kController}}};

struct GetMethods {
  bool current = false;
  bool include_aliases = false;
};

struct Kill {
  KillSignal sig_name = KillSignal::kTerm;
};

struct HandOverParams {
  std::string socket;
};

struct GetConfig {
  std::string name;
  bool with_batches = false;
};

Json::Value method_names(const MethodTable& table, const GetMethods& params) {
  Json::Value names(Json::arrayValue);
  for (const auto& [name, method] : table.all()) {
    names.append(std::string(name));
    if (!params.include_aliases) continue;
    for (const std::string_view alias : method.info.aliases) names.append(std::string(alias));
  }
  return names;
}

Task<RpcResult> get_version(NoParams) {
  Json::Value json(Json::objectValue);
  json["version"] = fmt::format("Sluice v{}", kVersion);
  json["fields"]["major"] = kVersionMajor;
  json["fields"]["minor"] = kVersionMinor;
  json["fields"]["patch"] = kVersionPatch;
  json["fields"]["suffix"] = "";
  co_return json;
}

Task<RpcResult> kill_instance(RpcContext& context, Kill params) {
  context.request_shutdown(kKillSignals[static_cast<size_t>(params.sig_name)]);
  co_return true;
}

Task<RpcResult> get_subsystems(NoParams) {
  Json::Value list(Json::arrayValue);
  for (const Subsystem& subsystem : kSubsystems) {
    Json::Value json(Json::objectValue);
    json["subsystem"] = std::string(subsystem.name);
    json["depends_on"] = Json::Value(Json::arrayValue);
    if (!subsystem.depends_on.empty()) json["depends_on"].append(std::string(subsystem.depends_on));
    list.append(std::move(json));
  }
  co_return list;
}

Task<Json::Value> config_of(RpcContext& context, const Subsystem& subsystem) {
  Json::Value calls(Json::arrayValue);
  for (const StateKind kind : subsystem.kinds) {
    if (kind == StateKind::kStore && !(co_await context.stores.stores()).empty()) {
      calls.append(Json::Value(Json::objectValue))["method"] = "bdev_wait_for_examine";
      calls[calls.size() - 1]["params"] = Json::Value(Json::objectValue);
    }
    for (const StateObject& object : co_await describe_state(context, kind)) {
      for (const Json::Value& call : object.calls) calls.append(call);
    }
  }
  co_return calls;
}

Task<RpcResult> get_config(RpcContext& context, GetConfig params) {
  for (const Subsystem& subsystem : kSubsystems) {
    if (subsystem.name == params.name) co_return co_await config_of(context, subsystem);
  }
  co_return fail_rpc(EINVAL,
                     fmt::format("there is no subsystem '{}'; framework_get_subsystems lists them", params.name));
}

// What another process cannot go on with.
Task<std::expected<void, RpcError>> check_can_be_handed_over(RpcContext& context) {
  if (const std::string half_made = context.state == nullptr ? "" : context.state->half_made(); !half_made.empty()) {
    co_return fail_rpc(EBUSY, fmt::format("{} could be made again only in part: delete it, or help it (state_get_info "
                                          "says why) and call state_retry",
                                          half_made));
  }
  for (Bdev* bdev : context.bdevs.list()) {
    if (bdev->product_name() == std::string_view(kMallocProductName)) {
      co_return fail_rpc(EOPNOTSUPP, fmt::format("malloc bdev '{}' would lose its content; delete it", bdev->name()));
    }
  }
  for (const vhost::ControllerInfo& controller : co_await context.vhost.list()) {
    if (controller.bdev_name.empty()) {
      co_return fail_rpc(ENODEV, fmt::format("controller '{}' has lost its bdev; delete it, or give it another one "
                                             "(vhost_controller_set_bdev)",
                                             controller.name));
    }
  }
  co_return std::expected<void, RpcError>{};
}

Task<RpcResult> hand_over(RpcContext& context, HandOverParams params) {
  if (!context.hand_over) co_return fail_rpc(EOPNOTSUPP, "this program has nothing to hand over");
  if (const auto can = co_await check_can_be_handed_over(context); !can) co_return std::unexpected(can.error());
  auto successor = connect_unix(params.socket);
  if (!successor) co_return fail_rpc(successor.error(), fmt::format("the successor's socket '{}'", params.socket));
  context.hand_over(std::move(*successor));
  co_return true;
}

// The daemon answers only once it is initialised.
Task<RpcResult> already_done(NoParams) { co_return true; }

}  // namespace

template <>
struct EnumNames<KillSignal> {
  static constexpr std::span<const std::string_view> kNames = kKillSignalNames;
};

Task<Json::Value> current_config(RpcContext& context) {
  Json::Value json(Json::objectValue);
  json["subsystems"] = Json::Value(Json::arrayValue);
  for (const Subsystem& subsystem : kSubsystems) {
    Json::Value entry(Json::objectValue);
    entry["subsystem"] = std::string(subsystem.name);
    entry["config"] = co_await config_of(context, subsystem);
    json["subsystems"].append(std::move(entry));
  }
  co_return json;
}

void add_app_methods(MethodTable& table, RpcContext& context) {
  table.add(
      make_method<GetMethods>({"rpc_get_methods", "Lists the methods.", {"array", "names"}, nothing()},
                              {optional("current", &GetMethods::current, "only those callable now, which all are"),
                               optional("include_aliases", &GetMethods::include_aliases, "also their older names")},
                              [&table](GetMethods params) { return detail::finished(method_names(table, params)); }));
  table.add(make_method<NoParams>(
      {"rpc_discover", "Describes the methods.", {"object", "an OpenRPC document"}, nothing(), {"rpc.discover"}}, {},
      [&table](NoParams) { return detail::finished(describe(table)); }));
  table.add(make_method<NoParams>({"spdk_get_version",
                                   "Tells the version.",
                                   {"object", "version, fields {major, minor, patch, suffix}"},
                                   nothing()},
                                  {}, get_version));
  table.add(make_method<Kill>(
      {"spdk_kill_instance", "Sends the daemon a signal: SIGINT and SIGTERM end it cleanly.", kTrue, nothing()},
      {required("sig_name", &Kill::sig_name, "which")}, bind_context(context, kill_instance)));
  table.add(make_method<HandOverParams>({"framework_hand_over",
                                         "Hands guests, sockets and configuration over to another daemon, and ends; "
                                         "sluice-vhost --upgrade-from calls it. Goes on as before if that fails.",
                                         kTrue, nothing()},
                                        {required("socket", &HandOverParams::socket, "where the other daemon listens")},
                                        bind_context(context, hand_over)));
  table.add(make_method<NoParams>({"framework_get_subsystems",
                                   "Lists what has a configuration, in the order in which it is loaded.",
                                   {"array", "{subsystem, depends_on: [name]}"},
                                   nothing()},
                                  {}, get_subsystems));
  table.add(make_method<GetConfig>(
      {"framework_get_config",
       "Lists the calls that make a subsystem's present state again.",
       {"array", "{method, params}"},
       nothing()},
      {required("name", &GetConfig::name, "the subsystem"),
       optional("with_batches", &GetConfig::with_batches, "accepted for compatibility; no effect")},
      bind_context(context, get_config)));
  table.add(make_method<NoParams>(
      {"framework_start_init", "For compatibility: the daemon is initialised when it answers.", kTrue, nothing()}, {},
      already_done));
  table.add(make_method<NoParams>(
      {"framework_wait_init", "For compatibility: the daemon is initialised when it answers.", kTrue, nothing()}, {},
      already_done));
}

}  // namespace sluice::rpc
