#include "app/vhost/daemon.h"

#include <unistd.h>

#include <filesystem>
#include <memory>
#include <optional>

#include "app/common/app.h"
#include "app/vhost/hand_over.h"
#include "lib/base/clock.h"
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
  std::unique_ptr<rpc::StateJournal> journal;  // null: none is kept
  BlockingPool pool;
};

class Daemon {
 public:
  Daemon(const DaemonOptions& options, State& state, App& app) : options_(options), state_(state), app_(app) {}

  // On the application's lightweight thread: the whole life of the daemon. The result is the process's.
  Task<int> run() {
    std::optional<rpc::HandOver> left;
    if (!options_.upgrade_from.empty()) {
      auto predecessor = ask_for_hand_over(options_.upgrade_from);
      if (!predecessor) co_return refuse(predecessor.error());
      predecessor_ = std::move(*predecessor);
      auto received = rpc::receive_hand_over(predecessor_.get());
      if (!received) co_return refuse(received.error());
      left = std::move(*received);
    }
    while (true) {
      const int result = co_await serve(left);
      if (!left) co_return result;
      if (pass_on(std::move(successor_), *left)) {
        log(LogLevel::kNotice, LogFlag::kApp, "the successor serves after {} us; this one ends",
            (now_ns() - paused_ns_) / kNsPerUs);
        co_return 0;
      }
    }
  }

 private:
  // With what another one has left, if there is such. Sets `left` anew if this one hands over as well.
  Task<int> serve(std::optional<rpc::HandOver>& left) {
    const bool takes_over = left.has_value();
    const std::string directory = absolute(takes_over ? left->vhost_directory : options_.vhost_directory);
    const std::string rpc_path = takes_over ? left->rpc_path : options_.rpc_socket;
    BdevManager bdevs(app_.threads);
    rpc::Notifications notifications;
    bdevs.add_watcher(notifications);
    lvol::Stores stores(app_.threads, bdevs, notifications);
    vhost::Target target(app_.threads, bdevs,
                         {.socket_directory = takes_over ? directory : options_.vhost_directory,
                          .socket_mode = options_.vhost_socket_mode});
    rpc::RpcContext context = app_.rpc_context(bdevs, stores, notifications, target);
    context.hand_over = [this](UniqueFd successor) {
      successor_ = std::move(successor);
      app_.stop.set();
    };
    rpc::MethodTable methods;
    rpc::add_all_methods(methods, context);
    rpc::DaemonObjects objects(context);
    std::optional<rpc::StateKeeper> keeper;
    if (takes_over && left->state_directory) {
      auto journal = rpc::StateJournal::adopt(left->state_path, std::move(left->state_directory));
      if (!journal) co_return refuse(journal.error());
      state_.journal = std::move(*journal);
    }
    if (state_.journal) context.state = &keeper.emplace(*state_.journal, state_.pool, methods, objects);
    rpc::Dispatcher dispatcher(methods, context.state);

    // First of all, as it keeps a second daemon from touching what the first one serves.
    const rpc::Server::Options rpc_options{.path = rpc_path, .mode = options_.rpc_socket_mode};
    auto server = takes_over ? rpc::Server::adopt(rpc_options, std::move(left->rpc_listener), dispatcher)
                             : rpc::Server::listen(rpc_options, dispatcher);
    if (!server) co_return complain("RPC socket " + rpc_path, server.error());

    const bool started =
        co_await (takes_over ? take_over(target, methods, context.state, *left) : load(dispatcher, context.state)) &&
        open(**server, rpc_path);
    if (started) co_await app_.stop.wait();

    left.reset();
    bdevs.cancel_waits();
    if (started && successor_) {
      left.emplace();
      left->rpc_listener = co_await (*server)->give_up();
      left->rpc_path = absolute(rpc_path);
      left->vhost_directory = directory;
      left->config = co_await rpc::current_config(context);
      if (keeper) {
        co_await keeper->close();
        left->state_path = absolute(std::filesystem::path(state_.journal->path()).parent_path());
        left->state_directory = state_.journal->give_up();
      }
      co_await stores.stop_holding();
      paused_ns_ = now_ns();
      left->controllers = co_await target.give_up();
      log(LogLevel::kNotice, LogFlag::kApp, "{} controllers are to be handed over; all requests were done after {} us",
          left->controllers.size(), (now_ns() - paused_ns_) / kNsPerUs);
    } else {
      co_await (*server)->close();
      if (keeper) co_await keeper->close();
      co_await stores.stop_holding();
      co_await target.remove_all();
    }
    co_await stores.close_all();
    co_await app_.virtio.detach_all(bdevs);
    co_await bdevs.remove_all();
    if (left) {
      log(LogLevel::kNotice, LogFlag::kApp, "all bdevs are closed after {} us", (now_ns() - paused_ns_) / kNsPerUs);
    }
    co_return started ? 0 : 1;
  }

  // What the state directory keeps, or else the configuration.
  Task<bool> load(rpc::Dispatcher& dispatcher, rpc::StateKeeper* keeper) {
    if (keeper != nullptr) {
      if (!ok(keeper->load())) co_return false;
      if (!keeper->first_start()) co_await keeper->restore();
    }
    const bool has_state = keeper != nullptr && !keeper->first_start();
    if (has_state && !options_.config.empty()) {
      log(LogLevel::kNotice, LogFlag::kApp, "{} is not loaded: {} has a state already", options_.config,
          options_.state_dir);
    }
    if (!has_state && !options_.config.empty() && !ok(co_await rpc::load_config(dispatcher, options_.config)))
      co_return false;
    if (keeper != nullptr) {
      if (auto kept = co_await keeper->start(); !kept) {
        log(LogLevel::kError, LogFlag::kApp, "{}", kept.error().message);
        co_return false;
      }
    }
    co_return true;
  }

  // Everything is made, and waits for the predecessor to say that it serves nobody any more.
  Task<bool> take_over(vhost::Target& target, const rpc::MethodTable& methods, rpc::StateKeeper* keeper,
                       rpc::HandOver& left) {
    if (keeper != nullptr && !ok(keeper->load())) co_return false;
    target.take_over(std::move(left.controllers));
    // Nothing of it is kept anew before it is sure that this one goes on.
    rpc::Dispatcher dispatcher(methods, nullptr);
    if (!ok(co_await rpc::load_config(dispatcher, std::move(left.config), "that is taken over"))) co_return false;
    if (predecessor_) {
      if (auto confirmed = confirm_hand_over(predecessor_.get()); !confirmed) {
        complain("the daemon behind " + options_.upgrade_from, confirmed.error());
        co_return false;
      }
      predecessor_.reset();
    }
    co_await target.go_on();
    // Guests go on even if it fails, which the keeper has told then.
    if (keeper != nullptr) std::ignore = co_await keeper->take_over();
    co_return true;
  }

  // Clients that connect while the configuration is loaded wait, and find all of it.
  bool open(rpc::Server& server, const std::string& rpc_path) {
    if (auto served = server.start(); !served) {
      complain("RPC socket " + rpc_path, served.error());
      return false;
    }
    log(LogLevel::kNotice, LogFlag::kApp, "Sluice {} is ready: cores {}, RPC on {}", rpc::kVersion,
        options_.cpumask.to_string(), rpc_path);
    return true;
  }

  static bool ok(const std::expected<void, std::string>& loaded) {
    if (!loaded) log(LogLevel::kError, LogFlag::kApp, "{}", loaded.error());
    return loaded.has_value();
  }

  static int refuse(const std::string& why) {
    log(LogLevel::kError, LogFlag::kApp, "nothing is taken over: {}", why);
    return 1;
  }

  // The other daemon may have another working directory.
  static std::string absolute(const std::string& path) {
    std::error_code error;
    const auto absolute = std::filesystem::absolute(path, error);
    return error ? path : absolute.lexically_normal().string();
  }

  const DaemonOptions& options_;
  State& state_;
  App& app_;
  UniqueFd predecessor_;    // until it serves nobody any more
  UniqueFd successor_;      // once it has been asked for
  uint64_t paused_ns_ = 0;  // when guests began to wait for it
};

Task<int> run(const DaemonOptions& options, State& state, App& app) {
  Daemon daemon(options, state, app);
  co_return co_await daemon.run();
}

}  // namespace

int run_daemon(const DaemonOptions& options) {
  const bool takes_over = !options.upgrade_from.empty();  // the other one's directory
  if (!takes_over && ::access(options.vhost_directory.c_str(), W_OK | X_OK) != 0) {
    return complain("directory of vhost sockets " + options.vhost_directory, {errno, "cannot make sockets there"});
  }
  if (const char* why = takes_over ? nullptr : who_else_may_write(options.vhost_directory)) {
    log(LogLevel::kWarning, LogFlag::kApp,
        "directory of vhost sockets {}: {}, and so put a socket of its own in the place of a disk's; chmod 0750 and "
        "chown it",
        options.vhost_directory, why);
  }
  State state;
  if (!options.state_dir.empty()) {
    auto journal = rpc::StateJournal::open(options.state_dir);
    if (!journal) {
      log(LogLevel::kError, LogFlag::kApp, "{}", journal.error());
      return 1;
    }
    if (!(*journal)->note().empty()) log(LogLevel::kWarning, LogFlag::kApp, "{}", (*journal)->note());
    state.journal = std::move(*journal);
  }
  return run_app({.cpumask = options.cpumask, .mode = options.mode},
                 [&](App& app) { return run(options, state, app); });
}

}  // namespace sluice
