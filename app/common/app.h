// App: what each of Sluice's programs stands on: signals, reactors, lightweight threads, and the modules that make
// block devices.
#pragma once

#include <functional>
#include <string_view>

#include "lib/base/cpu_mask.h"
#include "lib/base/result.h"
#include "lib/thread/await.h"
#include "lib/thread/task.h"
#include "lib/thread/thread_host.h"
#include "rpc/methods.h"

namespace sluice {

struct AppOptions {
  CpuMask cpumask;
  PollMode mode = PollMode::kInterrupt;
};

// Made by run_app() for its body, which runs on one lightweight thread: the first reactor's own.
struct App {
  ReactorGroup& reactors;
  ThreadDirectory& threads;
  Scheduler& scheduler;
  // The modules: a new one gets a line here, one in run_app() and one in rpc_context().
  AioModule& aio;
  UringModule& uring;
  VirtioModule& virtio;  // detach_all() before the block devices are removed
  // Set at the first SIGINT, SIGTERM or SIGHUP; a second one ends the process at once.
  Event stop;

  // What the RPC's methods work on. Borrows all of it.
  rpc::RpcContext rpc_context(BdevManager& bdevs, lvol::Stores& stores, rpc::Notifications& notifications,
                              vhost::Target& target);
};

// Runs `body` from its first to its last line, with reactors on the cores of the mask; then ends them. To be called
// before the process has a second thread. The result is the body's; 1, after a line in the log, when it could not run.
int run_app(const AppOptions& options, const std::function<Task<int>(App&)>& body);

// Logs "what: which step failed: why"; returns the process's result, 1.
int complain(std::string_view what, const Error& error);

}  // namespace sluice
