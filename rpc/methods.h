// The methods of a daemon, one file per library they are about, and what they work on.
// Thread: the application's lightweight thread.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "lib/base/unique_fd.h"
#include "rpc/log_settings.h"
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
class StateKeeper;

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
  // How it began: only what differs is part of a configuration.
  LogSettings log_at_start{};
  // Null: the daemon keeps no state.
  StateKeeper* state = nullptr;
};

// An object, or a group of settings, that is part of a configuration: the calls that make it again, in an order in
// which they succeed. Null calls: it is there, but cannot be made again as it is now.
struct StateObject {
  std::string name;
  Json::Value calls{Json::arrayValue};
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
void add_state_methods(MethodTable& table, RpcContext& context);

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
  add_state_methods(table, context);
}

// What there is of one kind: all of it, or what has the name. Calls are {"method", "params"}.
Task<std::vector<StateObject>> describe_state(RpcContext& context, StateKind kind, std::string name = "");
// The parts of describe_state().
Task<std::vector<StateObject>> log_state(RpcContext& context);
Task<std::vector<StateObject>> scheduler_state(RpcContext& context);
Task<Json::Value> reactor_config(RpcContext& context);  // part of the scheduler's
Task<std::vector<StateObject>> bdev_state(RpcContext& context, std::string name);
Task<std::vector<StateObject>> store_state(RpcContext& context, std::string name);
Task<std::vector<StateObject>> controller_state(RpcContext& context, std::string name);
// Of all kinds, as a file: {"subsystems": [...]}.
Task<Json::Value> current_config(RpcContext& context);

// A handler that takes the context first: bind_context(context, create_malloc).
template <typename P>
auto bind_context(RpcContext& context, Task<RpcResult> (*handler)(RpcContext&, P)) {
  return [&context, handler](P params) { return handler(context, std::move(params)); };
}

}  // namespace sluice::rpc
