#include "app/common/app.h"

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
#include "lib/bdev/uring/uring_bdev.h"
#include "lib/bdev/virtio/virtio_bdev.h"
#include "lib/reactor/reactor_group.h"
#include "lib/thread/scheduler.h"
#include "lib/thread/thread_directory.h"
#include "lib/vhost/target.h"

namespace sluice {
namespace {

// Each guest takes a dozen descriptors; the usual soft limit of 1,024 is there for programs that use select().
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    log(LogLevel::kWarning, LogFlag::kApp, "cannot raise the limit of open files: {}", ::strerrordesc_np(errno));
  }
}

// The signals that end the program, as a descriptor. To be called before there is a second thread, which would take
// them.
UniqueFd catch_signals() {
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGUSR1, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of who writes it
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

Task<int> run_body(App& app, int signal_fd, const std::function<Task<int>(App&)>& body) {
  SignalSource signals(signal_fd, app.stop);
  if (auto added = LwThread::current()->add_source(signals, signal_fd, EPOLLIN); !added) {
    co_return complain("signals", added.error());
  }
  const int result = co_await body(app);
  co_await app.scheduler.stop();
  co_return result;
}

}  // namespace

rpc::RpcContext App::rpc_context(BdevManager& bdevs, lvol::Stores& stores, rpc::Notifications& notifications,
                                 vhost::Target& target) {
  return {.reactors = reactors,
          .threads = threads,
          .scheduler = scheduler,
          .bdevs = bdevs,
          .aio = aio,
          .uring = uring,
          .virtio = virtio,
          .stores = stores,
          .notifications = notifications,
          .vhost = target,
          .request_shutdown = [](int signal) { ::kill(::getpid(), signal); }};
}

int run_app(const AppOptions& options, const std::function<Task<int>(App&)>& body) {
  raise_descriptor_limit();
  const UniqueFd signals = catch_signals();
  if (!signals) return complain("signals", {errno, "cannot make a signalfd"});

  AioModule aio;
  UringModule uring;
  VirtioModule virtio;
  auto reactors = ReactorGroup::create(options.cpumask, options.mode);
  if (!reactors) return complain("cores " + options.cpumask.to_string(), reactors.error());
  ThreadDirectory threads(**reactors);
  for (const auto& reactor : (*reactors)->reactors()) threads.list(reactor->home());
  Scheduler scheduler(threads);

  // The application's lightweight thread is the first reactor's own: it lives as long as there is anything to do.
  LwThread& home = (*reactors)->reactors().front()->home();
  App app{.reactors = **reactors,
          .threads = threads,
          .scheduler = scheduler,
          .aio = aio,
          .uring = uring,
          .virtio = virtio,
          .stop = {}};
  int result = 1;
  (*reactors)->start();
  post_to(home, [&] {
    start(run_body(app, signals.get(), body), [&](int value) {
      result = value;
      (*reactors)->request_stop();
    });
  });
  (*reactors)->join();
  return result;
}

int complain(std::string_view what, const Error& error) {
  log(LogLevel::kError, LogFlag::kApp, "{}: {}: {}", what, error.what, ::strerrordesc_np(error.code));
  return 1;
}

}  // namespace sluice
