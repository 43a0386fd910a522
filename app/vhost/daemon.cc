#include "app/vhost/daemon.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cstring>
#include <memory>

#include "lib/base/log.h"
#include "lib/base/unique_fd.h"
#include "lib/bdev/aio/aio_bdev.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/reactor/reactor_group.h"
#include "lib/thread/thread_directory.h"
#include "lib/vhost/target.h"
#include "rpc/config.h"
#include "rpc/methods.h"
#include "rpc/server.h"
#include "rpc/version.h"

namespace sluice {
namespace {

int complain(std::string_view what, const Error& error) {
  log(LogLevel::kError, LogFlag::kApp, "{}: {}: {}", what, error.what, ::strerrordesc_np(error.code));
  return 1;
}

// Each guest takes a dozen descriptors; the usual soft limit of 1,024 is there for programs that use select().
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    log(LogLevel::kWarning, LogFlag::kApp, "cannot raise the limit of open files: {}", ::strerrordesc_np(errno));
  }
}

// The signals that end the daemon, as a descriptor. To be called before there is a second thread, which would take
// them.
UniqueFd catch_signals() {
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGUSR1, SIG_IGN);
  sigset_t signals;
  ::sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&signals, signal);
  CHECK(::pthread_sigmask(SIG_BLOCK, &signals, nullptr) == 0);
  return UniqueFd(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
}

// Sets an event at the first signal, and ends the process at the second.
class SignalSource final : public EventSource {
 public:
  SignalSource(int fd, Event& stop) : signal_fd_(fd), stop_(stop) {}

  void on_event(uint32_t) override {
    signalfd_siginfo info{};
    while (::read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
      const char* name = ::sigabbrev_np(static_cast<int>(info.ssi_signo));
      if (std::exchange(seen_, true)) {
        log(LogLevel::kWarning, LogFlag::kApp, "SIG{} again: ending at once", name);
        ::_exit(1);
      }
      log(LogLevel::kNotice, LogFlag::kApp, "SIG{}: shutting down", name);
      stop_.set();
    }
  }

 private:
  const int signal_fd_;
  Event& stop_;
  bool seen_ = false;
};

class Daemon {
 public:
  Daemon(const DaemonOptions& options, int signal_fd, ReactorGroup& reactors, ThreadDirectory& threads, AioModule& aio)
      : options_(options), signal_fd_(signal_fd), reactors_(reactors), threads_(threads), aio_(aio) {}

  // On the application's lightweight thread: the whole life of the daemon. The result is the process's.
  Task<int> run() {
    BdevManager bdevs(threads_);
    vhost::Target target(threads_, bdevs,
                         {.socket_directory = options_.vhost_directory, .socket_mode = options_.vhost_socket_mode});
    rpc::RpcContext context{.reactors = reactors_,
                            .threads = threads_,
                            .bdevs = bdevs,
                            .aio = aio_,
                            .vhost = target,
                            .request_shutdown = raise};
    rpc::MethodTable methods;
    rpc::add_all_methods(methods, context);
    rpc::Dispatcher dispatcher(methods);

    SignalSource signals(signal_fd_, stop_);
    if (auto added = LwThread::current()->add_source(signals, signal_fd_, EPOLLIN); !added) {
      co_return complain("signals", added.error());
    }
    // First of all, as it keeps a second daemon from touching what the first one serves.
    auto server = rpc::Server::listen({.path = options_.rpc_socket, .mode = options_.rpc_socket_mode}, dispatcher);
    if (!server) co_return complain("RPC socket " + options_.rpc_socket, server.error());

    const bool started = co_await start_serving(**server, dispatcher);
    if (started) co_await stop_.wait();

    bdevs.cancel_waits();
    co_await (*server)->close();
    co_await target.remove_all();
    co_await bdevs.remove_all();
    co_return started ? 0 : 1;
  }

 private:
  static void raise(int signal) { ::kill(::getpid(), signal); }

  // Clients that connect while the configuration is loaded wait, and find all of it.
  Task<bool> start_serving(rpc::Server& server, rpc::Dispatcher& dispatcher) {
    if (!options_.config.empty()) {
      const auto loaded = co_await rpc::load_config(dispatcher, options_.config);
      if (!loaded) {
        log(LogLevel::kError, LogFlag::kApp, "{}", loaded.error());
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
  const int signal_fd_;
  ReactorGroup& reactors_;
  ThreadDirectory& threads_;
  AioModule& aio_;
  Event stop_;
};

}  // namespace

int run_daemon(const DaemonOptions& options) {
  raise_descriptor_limit();
  const UniqueFd signals = catch_signals();
  if (!signals) return complain("signals", {errno, "cannot make a signalfd"});
  if (::access(options.vhost_directory.c_str(), W_OK | X_OK) != 0) {
    return complain("directory of vhost sockets " + options.vhost_directory, {errno, "cannot make sockets there"});
  }

  AioModule aio;
  auto reactors = ReactorGroup::create(options.cpumask, options.mode);
  if (!reactors) return complain("cores " + options.cpumask.to_string(), reactors.error());
  ThreadDirectory threads(**reactors);
  for (const auto& reactor : (*reactors)->reactors()) threads.list(reactor->home());

  // The application's lightweight thread is the first reactor's own: it lives as long as there is anything to do.
  LwThread& app = (*reactors)->reactors().front()->home();
  Daemon daemon(options, signals.get(), **reactors, threads, aio);
  int result = 1;
  (*reactors)->start();
  post_to(app, [&] {
    start(daemon.run(), [&](int value) {
      result = value;
      (*reactors)->request_stop();
    });
  });
  (*reactors)->join();
  return result;
}

}  // namespace sluice
