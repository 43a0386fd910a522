// notify_*: what happened since a client last asked.
#include "rpc/methods.h"
#include "rpc/notifications.h"

namespace sluice::rpc {
namespace {

struct GetNotifications {
  uint64_t id = 0;
  uint64_t max = Notifications::kKept;
};

Task<RpcResult> get_types(NoParams) {
  Json::Value list(Json::arrayValue);
  for (const std::string_view type : Notifications::kTypes) list.append(std::string(type));
  co_return list;
}

Task<RpcResult> get_notifications(RpcContext& context, GetNotifications params) {
  Json::Value list(Json::arrayValue);
  for (const Notifications::Notification& notification : context.notifications.list(params.id, params.max)) {
    Json::Value json(Json::objectValue);
    json["id"] = notification.id;
    json["type"] = std::string(notification.type);
    json["ctx"] = notification.context;
    if (notification.percent) json["percent"] = *notification.percent;
    list.append(std::move(json));
  }
  co_return list;
}

}  // namespace

void add_notify_methods(MethodTable& table, RpcContext& context) {
  table.add(make_method<NoParams>(
      {"notify_get_types", "Lists the types of notifications.", {"array", "names"}, nothing()}, {}, get_types));
  table.add(make_method<GetNotifications>(
      {"notify_get_notifications",
       "Lists what happened, oldest first; only the last 1024 notifications are kept.",
       {"array", "{id, type, ctx: the name of the bdev or store, percent: of lvol_store_usage_*: the threshold}"},
       nothing()},
      {optional("id", &GetNotifications::id, "the first to list: one more than the last that is known"),
       optional("max", &GetNotifications::max, "how many at most")},
      bind_context(context, get_notifications)));
}

}  // namespace sluice::rpc
