#include "lib/vhost/controller.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "lib/base/descriptor_room.h"
#include "lib/base/unix_socket.h"

namespace sluice::vhost {

Controller::Controller(std::string name, std::string socket_path, UniqueFd listener, AllowedPeers allowed,
                       LwThread& thread, const std::vector<LwThread*>& queue_threads)
    : name_(std::move(name)),
      socket_path_(std::move(socket_path)),
      listener_fd_(std::move(listener)),
      allowed_(std::move(allowed)),
      thread_(thread),
      listener_(*this),
      retry_("vhost_accept_retry", [this] { look_again_.set(); }) {
  for (LwThread* queue_thread : queue_threads) places_.push_back({.thread = queue_thread, .channel = {}});
  if (places_.empty()) places_.push_back({.thread = &thread_, .channel = {}});
}

Controller::~Controller() {
  CHECK(session_ == nullptr && handle_ == nullptr);
  for (const Place& place : places_) CHECK(!place.channel);
}

std::vector<LwThread*> Controller::threads() const {
  std::vector<LwThread*> threads{&thread_};
  for (const Place& place : places_) {
    if (place.thread != &thread_) threads.push_back(place.thread);
  }
  return threads;
}

Result<> Controller::open(BdevManager& bdevs, const std::string& bdev_name, BlkDevice::Options options) {
  auto handle = bdevs.open(bdev_name, options.readonly ? BdevAccess::kRead : BdevAccess::kWrite, *this,
                           "vhost controller " + name_);
  if (!handle) return std::unexpected(handle.error());
  handle_ = std::move(*handle);
  device_ = std::make_unique<BlkDevice>(name_, handle_->bdev(), options);
  return {};
}

Task<Result<>> Controller::start() {
  co_return co_await call_on(thread_, [this] { return start_serving(); });
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
                      .packed_ring = device_->packed_ring(),
                      .any_memory_file = device_->any_memory_file(),
                      .allowed = allowed_,
                      .queue_threads = static_cast<uint32_t>(threads().size() - 1),
                      .coalescing = {},
                      .sessions = {}};
  co_await call_on(thread_, [this, &info] { return describe(info); });
  co_return info;
}

Task<> Controller::set_coalescing(Coalescing coalescing) {
  co_await call_on(thread_, [this, &coalescing] { return take_over(coalescing); });
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

Task<Result<>> Controller::start_serving() {
  if (auto opened = co_await open_channels(); !opened) co_return opened;
  auto watched = thread_.add_source(listener_, listener_fd_.get(), EPOLLIN | EPOLLET);
  if (watched) std::ignore = serving_.spawn(serve_front_ends());
  co_return watched;
}

Task<> Controller::describe(ControllerInfo& info) {
  info.cpumask = thread_.cpumask().to_string();
  info.coalescing = coalescing_;
  if (session_ != nullptr) info.sessions.push_back(co_await session_->info());
}

Task<> Controller::take_over(Coalescing coalescing) {
  coalescing_ = coalescing;
  if (session_ != nullptr) co_await session_->set_coalescing(coalescing);
}

Task<Result<>> Controller::open_channels() {
  if (!opening_.enter()) co_return fail(ENODEV, "the bdev is being removed");
  Result<> opened;
  for (Place& place : places_) {
    opened = co_await run_on(*place.thread, [&place, &bdev = handle_->bdev()]() -> Result<> {
      auto channel = place.thread->get_channel(bdev);
      if (!channel) return std::unexpected(channel.error());
      place.channel = std::move(*channel);
      return {};
    });
    if (!opened) break;
  }
  opening_.leave();
  co_return opened;
}

Task<> Controller::close_channels() {
  for (Place& place : places_) {
    co_await run_on(*place.thread, [channel = std::move(place.channel)]() mutable { channel.reset(); });
  }
}

Task<> Controller::detach_bdev() {
  co_await opening_.close();
  bdev_gone_ = true;  // a session that starts meanwhile does not get the channels
  if (session_ != nullptr) co_await session_->detach_bdev();
  co_await close_channels();
}

Task<> Controller::stop_serving() {
  stopping_ = true;
  if (listener_.thread() != nullptr) thread_.remove_source(listener_);
  retry_.cancel();
  look_again_.set();
  if (session_ != nullptr) session_->close();
  co_await serving_.close();
  co_await close_channels();
}

// One front end after the other, until stop_serving().
Task<> Controller::serve_front_ends() {
  while (!stopping_) {
    Result<UniqueFd> socket = accept();
    if (socket) {
      if (admits(*socket)) {
        co_await serve(std::move(*socket));
      } else {
        socket->reset();
      }
      // Front ends that go at once must not keep this thread from everything else.
      co_await next_turn();
      continue;
    }
    const Error error = socket.error();
    if (error.code == EINTR || error.code == ECONNABORTED) continue;
    if (error.code != EAGAIN) {
      // The edge that told of this front end will not come again.
      retry_.arm_at(thread_, thread_.now_ns() + kAcceptRetryNs);
      if (uint64_t held_back = 0; log_limiter_.allow(thread_.now_ns(), held_back)) {
        log(LogLevel::kError, LogFlag::kVhost,
            "controller {}: cannot accept a front end: {}: {}; raise the limit of open files (ulimit -n) ({} such "
            "lines held back)",
            name_, error.what, std::strerror(error.code), held_back);
      }
    }
    co_await look_again_.wait();
  }
}

// A front end for which there is no descriptor but of the reserve waits in the backlog.
Result<UniqueFd> Controller::accept() {
  const auto room = next_descriptor_room(listener_fd_.get());
  if (!room || *room == DescriptorRoom::kReserve) {
    pollfd waiting{.fd = listener_fd_.get(), .events = POLLIN, .revents = 0};
    if (::poll(&waiting, 1, 0) == 0) return fail(EAGAIN, "nobody waits");
    return fail(EMFILE, "what is left of the descriptors is not for guests");
  }
  UniqueFd socket(::accept4(listener_fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!socket) return fail_errno("accept");
  return socket;
}

bool Controller::admits(const UniqueFd& socket) {
  if (allowed_.uids.empty() && allowed_.gids.empty()) return true;
  const auto peer = peer_credentials(socket.get());
  if (peer) {
    const auto in = [](uint32_t id, const std::vector<uint32_t>& allowed) {
      return std::ranges::find(allowed, id) != allowed.end();
    };
    if (in(peer->uid, allowed_.uids) ||
        std::ranges::any_of(peer->gids, [&](gid_t gid) { return in(gid, allowed_.gids); }))
      return true;
  }
  if (uint64_t held_back = 0; log_limiter_.allow(thread_.now_ns(), held_back)) {
    log(LogLevel::kWarning, LogFlag::kVhost,
        "controller {}: process {} of user {}, group {}, is not let in: {} ({} such lines held back)", name_,
        peer ? peer->pid : -1, peer ? static_cast<int64_t>(peer->uid) : -1,
        peer ? static_cast<int64_t>(peer->gids.front()) : -1,
        peer ? "neither is among allowed_uids or allowed_gids" : peer.error().what, held_back);
  }
  return false;
}

Task<> Controller::serve(UniqueFd socket) {
  const uint64_t id = next_session_id_++;
  log(LogLevel::kInfo, LogFlag::kVhost, "controller {}: a front end has connected, session {}", name_, id);
  std::vector<QueuePlace> places;
  for (const Place& place : places_) {
    auto* const channel = bdev_gone_ ? nullptr : static_cast<BdevChannel*>(place.channel.get());
    places.push_back({.thread = place.thread, .channel = channel});
  }
  session_ =
      std::make_unique<Session>(id, thread_, *device_, std::move(places), coalescing_, std::move(socket), log_limiter_);
  co_await session_->run();
  session_.reset();
}

}  // namespace sluice::vhost
