#include "app/vhost/daemon.h"

#include <unistd.h>

#include <memory>
#include <optional>

#include "app/common/app.h"
#include "lib/base/log.h"
#include "lib/base/unix_socket.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/blocking_pool.h"
#include "lib/bdev/virtio/virtio_bdev.h"
#include "lib/lvol/stores.h"
#include "lib/vhost/target.h"
#include "rpc/config.h"
#include "rpc/methods.h"
#include "rpc/notifications.h"
#include "rpc/server.h"
#include "rpc/state_journal.h"
#include "rpc/state_keeper.h"
#include "rpc/version.h"

namespace sluice {
namespace {

// What outlives the daemon's lightweight thread: the pool's threads run on any core, so it is made before the reactors.
struct State {
  std::unique_ptr<rpc::StateJournal> journal;
  BlockingPool pool;
};

class Daemon {
 public:
  // `state`: null if none is kept.
  Daemon(const DaemonOptions& options, State* state, App& app) : options_(options), state_(state), app_(app) {}

  // On the application's lightweight thread: the whole life of the daemon. The result is the process's.
  Task<int> run() {
    BdevManager bdevs(app_.threads);
    rpc::Notifications notifications;
    bdevs.add_watcher(notifications);
    lvol::Stores stores(app_.threads, bdevs, notifications);
    vhost::Target target(app_.threads, bdevs,
                         {.socket_directory = options_.vhost_directory, .socket_mode = options_.vhost_socket_mode});
    rpc::RpcContext context = app_.rpc_context(bdevs, stores, notifications, target);
    rpc::MethodTable methods;
    rpc::add_all_methods(methods, context);
    rpc::DaemonObjects objects(context);
    std::optional<rpc::StateKeeper> keeper;
    if (state_ != nullptr) context.state = &keeper.emplace(*state_->journal, state_->pool, methods, objects);
    rpc::Dispatcher dispatcher(methods, context.state);

    // First of all, as it keeps a second daemon from touching what the first one serves.
    auto server = rpc::Server::listen({.path = options_.rpc_socket, .mode = options_.rpc_socket_mode}, dispatcher);
    if (!server) co_return complain("RPC socket " + options_.rpc_socket, server.error());

    const bool started = co_await start_serving(**server, dispatcher, context.state);
    if (started) co_await app_.stop.wait();

    bdevs.cancel_waits();
    co_await (*server)->close();
    if (keeper) co_await keeper->close();
    co_await stores.stop_holding();
    co_await target.remove_all();
    co_await stores.close_all();
    co_await app_.virtio.detach_all(bdevs);
    co_await bdevs.remove_all();
    co_return started ? 0 : 1;
  }

 private:
  // Clients that connect while the configuration is loaded wait, and find all of it.
  Task<bool> start_serving(rpc::Server& server, rpc::Dispatcher& dispatcher, rpc::StateKeeper* keeper) {
    if (keeper != nullptr) {
      if (auto loaded = keeper->load(); !loaded) {
        log(LogLevel::kError, LogFlag::kApp, "{}", loaded.error());
        co_return false;
      }
      if (!keeper->first_start()) co_await keeper->restore();
    }
    const bool has_state = keeper != nullptr && !keeper->first_start();
    if (has_state && !options_.config.empty()) {
      log(LogLevel::kNotice, LogFlag::kApp, "{} is not loaded: {} has a state already", options_.config,
          options_.state_dir);
    }
    if (!has_state && !options_.config.empty()) {
      const auto loaded = co_await rpc::load_config(dispatcher, options_.config);
      if (!loaded) {
        log(LogLevel::kError, LogFlag::kApp, "{}", loaded.error());
        co_return false;
      }
    }
    if (keeper != nullptr) {
      if (auto kept = co_await keeper->start(); !kept) {
        log(LogLevel::kError, LogFlag::kApp, "{}", kept.error().message);
        co_return false;
      }
    }
    if (auto served = server.start(); !served) {
      complain("RPC socket " + options_.rpc_socket, served.error());
      co_return false;
    }
    log(LogLevel::kNotice, LogFlag::kApp, "Sluice {} is ready: cores {}, RPC on {}", rpc::kVersion,
        options_.cpumask.to_string(), options_.rpc_socket);
    co_return true;
  }

  const DaemonOptions& options_;
  State* const state_;
  App& app_;
};

Task<int> run(const DaemonOptions& options, State* state, App& app) {
  Daemon daemon(options, state, app);
  co_return co_await daemon.run();
}

}  // namespace

int run_daemon(const DaemonOptions& options) {
  if (::access(options.vhost_directory.c_str(), W_OK | X_OK) != 0) {
    return complain("directory of vhost sockets " + options.vhost_directory, {errno, "cannot make sockets there"});
  }
  if (const char* why = who_else_may_write(options.vhost_directory)) {
    log(LogLevel::kWarning, LogFlag::kApp,
        "directory of vhost sockets {}: {}, and so put a socket of its own in the place of a disk's; chmod 0750 and "
        "chown it",
        options.vhost_directory, why);
  }
  std::optional<State> state;
  if (!options.state_dir.empty()) {
    auto journal = rpc::StateJournal::open(options.state_dir);
    if (!journal) {
      log(LogLevel::kError, LogFlag::kApp, "{}", journal.error());
      return 1;
    }
    if (!(*journal)->note().empty()) log(LogLevel::kWarning, LogFlag::kApp, "{}", (*journal)->note());
    state.emplace().journal = std::move(*journal);
  }
  return run_app({.cpumask = options.cpumask, .mode = options.mode},
                 [&](App& app) { return run(options, state ? &*state : nullptr, app); });
}

}  // namespace sluice
