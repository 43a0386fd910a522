// The methods of a daemon, one file per library they are about, and what they work on.
// Thread: the application's lightweight thread.
#pragma once

#include <functional>

#include "lib/base/unique_fd.h"
#include "rpc/method.h"

namespace sluice {
class AioModule;
class BdevManager;
class ReactorGroup;
class Scheduler;
class ThreadDirectory;
class UringModule;
class VirtioModule;
namespace lvol {
class Stores;
}
namespace vhost {
class Target;
}
}  // namespace sluice

namespace sluice::rpc {

class Notifications;

// The parts of a daemon. Borrowed.
struct RpcContext {
  ReactorGroup& reactors;
  ThreadDirectory& threads;
  Scheduler& scheduler;
  BdevManager& bdevs;
  AioModule& aio;
  UringModule& uring;
  VirtioModule& virtio;
  lvol::Stores& stores;
  Notifications& notifications;
  vhost::Target& vhost;
  // Does with the process what this signal does.
  std::function<void(int signal)> request_shutdown;
  // Hands everything over to the daemon on the other end of the socket, soon, and ends. Empty where there is none to do
  // so.
  std::function<void(UniqueFd successor)> hand_over{};
};

// Each adds its methods; they borrow the context, and the table where they describe it.
void add_app_methods(MethodTable& table, RpcContext& context);
void add_log_methods(MethodTable& table);
void add_reactor_methods(MethodTable& table, RpcContext& context);
void add_thread_methods(MethodTable& table, RpcContext& context);
void add_scheduler_methods(MethodTable& table, RpcContext& context);
void add_bdev_methods(MethodTable& table, RpcContext& context);
void add_lvol_methods(MethodTable& table, RpcContext& context);
void add_lvol_copy_methods(MethodTable& table, RpcContext& context);   // part of add_lvol_methods()
void add_lvol_space_methods(MethodTable& table, RpcContext& context);  // likewise
void add_notify_methods(MethodTable& table, RpcContext& context);
void add_vhost_methods(MethodTable& table, RpcContext& context);

inline void add_all_methods(MethodTable& table, RpcContext& context) {
  add_app_methods(table, context);
  add_log_methods(table);
  add_reactor_methods(table, context);
  add_thread_methods(table, context);
  add_scheduler_methods(table, context);
  add_bdev_methods(table, context);
  add_lvol_methods(table, context);
  add_notify_methods(table, context);
  add_vhost_methods(table, context);
}

// The calls that make again what there is now: [{"method", "params"}], in an order in which they succeed.
Task<Json::Value> scheduler_config(RpcContext& context);
Task<Json::Value> reactor_config(RpcContext& context);  // part of the scheduler's
Task<Json::Value> bdev_config(RpcContext& context);
Task<Json::Value> lvol_config(RpcContext& context);  // part of the bdevs'
Task<Json::Value> vhost_config(RpcContext& context);
// Of all of these, as a file: {"subsystems": [...]}.
Task<Json::Value> current_config(RpcContext& context);

// A handler that takes the context first: bind_context(context, create_malloc).
template <typename P>
auto bind_context(RpcContext& context, Task<RpcResult> (*handler)(RpcContext&, P)) {
  return [&context, handler](P params) { return handler(context, std::move(params)); };
}

}  // namespace sluice::rpc
