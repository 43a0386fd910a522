// state_*: what a state directory keeps, and what of it could not be made again. Also: what there is to keep.
#include <fmt/format.h>

#include "lib/bdev/bdev_manager.h"
#include "rpc/methods.h"
#include "rpc/state_keeper.h"

namespace sluice::rpc {

template <>
struct EnumNames<StateKind> {
  static constexpr std::span<const std::string_view> kNames = kStateKindNames;
};

namespace {

struct Forget {
  StateKind kind = StateKind::kBdev;
  std::string name;
};

std::unexpected<RpcError> no_state() {
  return fail_rpc(EOPNOTSUPP, "this daemon keeps no state: start it with --state-dir");
}

Json::Value failures_json(const StateKeeper::Info& info) {
  Json::Value list(Json::arrayValue);
  for (const StateKeeper::Failure& failure : info.failures) {
    Json::Value json(Json::objectValue);
    json["kind"] = std::string(kStateKindNames[static_cast<size_t>(failure.kind)]);
    json["name"] = failure.name;
    json["error"] = failure.error;
    json["calls"] = failure.calls;
    list.append(std::move(json));
  }
  return list;
}

Task<RpcResult> get_info(RpcContext& context, NoParams) {
  if (context.state == nullptr) co_return no_state();
  const StateKeeper::Info info = context.state->info();
  Json::Value json(Json::objectValue);
  json["file"] = info.path;
  json["size"] = info.size_bytes;
  json["objects"] = info.objects;
  json["writes"] = info.writes;
  json["error"] = info.error.empty() ? Json::Value() : Json::Value(info.error);
  json["failed"] = failures_json(info);
  co_return json;
}

Task<RpcResult> retry(RpcContext& context, NoParams) {
  if (context.state == nullptr) co_return no_state();
  Json::Value json(Json::objectValue);
  json["made"] = co_await context.state->retry();
  if (auto settled = co_await context.state->settle(); !settled) co_return std::unexpected(settled.error());
  json["failed"] = failures_json(context.state->info());
  co_return json;
}

Task<RpcResult> forget(RpcContext& context, Forget params) {
  if (context.state == nullptr) co_return no_state();
  const auto forgotten = co_await context.state->forget(params.kind, params.name);
  if (!forgotten) co_return std::unexpected(forgotten.error());
  if (*forgotten) co_return true;
  co_return fail_rpc(ENOENT, fmt::format("there is no {} '{}' that could not be made again; state_get_info lists them",
                                         kStateKindNames[static_cast<size_t>(params.kind)], params.name));
}

}  // namespace

Task<std::vector<StateObject>> describe_state(RpcContext& context, StateKind kind, std::string name) {
  switch (kind) {
    case StateKind::kLog:
      return log_state(context);
    case StateKind::kScheduler:
      return scheduler_state(context);
    case StateKind::kBdev:
      return bdev_state(context, std::move(name));
    case StateKind::kStore:
      return store_state(context, std::move(name));
    case StateKind::kController:
      return controller_state(context, std::move(name));
  }
  CHECK(false);
}

std::string DaemonObjects::name_of(StateKind kind, const std::string& name) const {
  const Bdev* bdev = kind == StateKind::kBdev ? context_.bdevs.find(name) : nullptr;
  return bdev == nullptr ? name : bdev->name();
}

Task<std::vector<StateObject>> DaemonObjects::describe(StateKind kind, std::string name) {
  return describe_state(context_, kind, std::move(name));
}

void add_state_methods(MethodTable& table, RpcContext& context) {
  constexpr const char* kFailed = "failed: [{kind, name, error, calls: [{method, params}]}] (could not be made again)";
  static const std::string info_help =
      fmt::format("file, size, objects, writes, error (null, or why nothing can be kept now), {}", kFailed);
  static const std::string retry_help = fmt::format("made (how many), {}", kFailed);
  table.add(make_method<NoParams>(
      {"state_get_info", "Tells what the state directory keeps.", {"object", info_help}, nothing()}, {},
      bind_context(context, get_info)));
  table.add(make_method<NoParams>(
      {"state_retry", "Tries to make what could not be made again after a restart.", {"object", retry_help}, nothing()},
      {}, bind_context(context, retry)));
  table.add(make_method<Forget>(
      {"state_forget", "Drops what could not be made again; deleting a bdev or controller of that name does the same.",
       kTrue, nothing()},
      {required("kind", &Forget::kind, "as state_get_info names it"),
       required("name", &Forget::name, "likewise; \"\" of log and scheduler")},
      bind_context(context, forget)));
}

}  // namespace sluice::rpc
