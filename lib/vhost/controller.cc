#include "lib/vhost/controller.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

namespace sluice::vhost {

Controller::Controller(std::string name, std::string socket_path, UniqueFd listener, LwThread& thread)
    : name_(std::move(name)),
      socket_path_(std::move(socket_path)),
      listener_fd_(std::move(listener)),
      thread_(thread),
      listener_(*this),
      retry_("vhost_accept_retry", [this] { look_again_.set(); }) {}

Controller::~Controller() { CHECK(session_ == nullptr && !channel_ && handle_ == nullptr); }

Result<> Controller::open(BdevManager& bdevs, const std::string& bdev_name, bool readonly) {
  auto handle = bdevs.open(bdev_name, !readonly, *this, "vhost controller " + name_);
  if (!handle) return std::unexpected(handle.error());
  handle_ = std::move(*handle);
  device_ = std::make_unique<BlkDevice>(name_, handle_->bdev(), readonly);
  return {};
}

Task<Result<>> Controller::start() {
  co_return co_await call_on(thread_, [this] { return start_listening(); });
}

Task<> Controller::stop() {
  ::unlink(socket_path_.c_str());
  co_await call_on(thread_, [this] { return stop_serving(); });
  co_await gate_.close();
  handle_.reset();
}

Task<ControllerInfo> Controller::info() {
  ControllerInfo info{.name = name_,
                      .socket_path = socket_path_,
                      .cpumask = "",
                      .bdev_name = handle_ != nullptr ? handle_->bdev().name() : "",
                      .readonly = device_->readonly(),
                      .sessions = {}};
  co_await call_on(thread_, [this, &info] {
    info.cpumask = thread_.cpumask().to_string();
    if (session_ != nullptr) info.sessions.push_back(session_->info());
  });
  co_return info;
}

// --- On the application's thread ---

void Controller::on_resize() {
  device_->set_size_bytes(handle_->bdev().size_bytes());
  std::ignore = gate_.spawn([](Controller& self) -> Task<> {
    co_await call_on(self.thread_, [&self] {
      if (self.session_ != nullptr) self.session_->notify_config_change();
    });
  }(*this));
}

// Not spawned when the controller is stopping: then stop() lets go of the bdev anyway.
void Controller::on_remove() {
  log(LogLevel::kNotice, LogFlag::kVhost, "controller {}: bdev {} is removed; its requests fail from now on", name_,
      handle_->bdev().name());
  std::ignore = gate_.spawn(let_go_of_bdev());
}

Task<> Controller::let_go_of_bdev() {
  co_await call_on(thread_, [this] { return detach_bdev(); });
  handle_.reset();
}

// --- On the controller's thread ---

Result<> Controller::start_listening() {
  auto channel = thread_.get_channel(handle_->bdev());
  if (!channel) return std::unexpected(channel.error());
  channel_ = std::move(*channel);
  auto watched = thread_.add_source(listener_, listener_fd_.get(), EPOLLIN | EPOLLET);
  if (watched) std::ignore = serving_.spawn(serve_front_ends());
  return watched;
}

Task<> Controller::detach_bdev() {
  // Taken at once, so that a session that starts meanwhile does not get it.
  const ChannelRef channel = std::move(channel_);
  if (session_ != nullptr) co_await session_->detach_bdev();
  CHECK(!channel || static_cast<BdevChannel*>(channel.get())->in_flight() == 0);
}

Task<> Controller::stop_serving() {
  stopping_ = true;
  if (listener_.thread() != nullptr) thread_.remove_source(listener_);
  retry_.cancel();
  look_again_.set();
  if (session_ != nullptr) session_->close();
  co_await serving_.close();
  channel_.reset();
}

// One front end after the other, until stop_serving().
Task<> Controller::serve_front_ends() {
  while (!stopping_) {
    UniqueFd socket(::accept4(listener_fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (socket) {
      co_await serve(std::move(socket));
      // Front ends that go at once must not keep this thread from everything else.
      co_await next_turn();
      continue;
    }
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (errno != EAGAIN) {
      // The edge that told of this front end will not come again.
      retry_.arm_at(thread_, thread_.now_ns() + kAcceptRetryNs);
      if (uint64_t held_back = 0; log_limiter_.allow(thread_.now_ns(), held_back)) {
        log(LogLevel::kError, LogFlag::kVhost,
            "controller {}: cannot accept a front end: {}; raise the limit of open files (ulimit -n) ({} such lines "
            "held back)",
            name_, std::strerror(errno), held_back);
      }
    }
    co_await look_again_.wait();
  }
}

Task<> Controller::serve(UniqueFd socket) {
  const uint64_t id = next_session_id_++;
  log(LogLevel::kInfo, LogFlag::kVhost, "controller {}: a front end has connected, session {}", name_, id);
  session_ = std::make_unique<Session>(id, thread_, *device_, static_cast<BdevChannel*>(channel_.get()),
                                       std::move(socket), log_limiter_);
  co_await session_->run();
  session_.reset();
}

}  // namespace sluice::vhost
