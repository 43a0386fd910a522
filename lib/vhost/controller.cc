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
                       LwThread& thread, const std::vector<LwThread*>& queue_threads, bool takes_over)
    : name_(std::move(name)),
      socket_path_(std::move(socket_path)),
      listener_fd_(std::move(listener)),
      allowed_(std::move(allowed)),
      thread_(thread),
      owns_socket_file_(!takes_over),
      listener_(*this),
      takes_over_(takes_over),
      retry_("vhost_accept_retry", [this] { look_again_.set(); }) {
  for (LwThread* queue_thread : queue_threads) places_.push_back({.thread = queue_thread, .channel = {}});
  if (places_.empty()) places_.push_back({.thread = &thread_, .channel = {}});
}

Controller::~Controller() {
  CHECK(session_ == nullptr && bdev_ == nullptr);
  for (const Place& place : places_) CHECK(!place.channel);
}

std::vector<LwThread*> Controller::threads() const {
  std::vector<LwThread*> threads{&thread_};
  for (const Place& place : places_) {
    if (place.thread != &thread_) threads.push_back(place.thread);
  }
  return threads;
}

Result<> Controller::OpenBdev::open(BdevManager& bdevs, const std::string& name, bool readonly) {
  auto handle = bdevs.open(name, readonly ? BdevAccess::kRead : BdevAccess::kWrite, *this,
                           "vhost controller " + controller_.name_);
  if (!handle) return std::unexpected(handle.error());
  handle_ = std::move(*handle);
  return {};
}

// Not spawned when the controller is stopping: then stop() lets go of the bdev anyway.
void Controller::OpenBdev::on_remove() {
  removed_ = true;
  std::ignore = controller_.gate_.spawn(controller_.let_go_of_removed_bdev());
}

Result<> Controller::open(BdevManager& bdevs, const std::string& bdev_name, BlkDevice::Options options) {
  auto opened = std::make_unique<OpenBdev>(*this);
  if (auto result = opened->open(bdevs, bdev_name, options.readonly); !result) return result;
  bdev_ = std::move(opened);
  device_ = std::make_unique<BlkDevice>(name_, bdev_->bdev(), options);
  return {};
}

Task<Result<>> Controller::start() {
  co_await begin_change();
  const Result<> started = co_await call_on(thread_, [this] { return start_serving(bdev_->bdev()); });
  end_change();
  co_return started;
}

Task<Result<>> Controller::take_over(std::optional<SessionState> session) {
  Result<> taken = co_await start();
  if (taken && session) {
    taken = co_await call_on(thread_, [this, &session] { return take_over_session(std::move(*session)); });
  }
  co_return taken;
}

Task<> Controller::go_on() {
  owns_socket_file_ = true;
  co_await call_on(thread_, [this] { go_on_.set(); });
}

Task<> Controller::stop() {
  if (owns_socket_file_) ::unlink(socket_path_.c_str());
  co_await release();
}

Task<> Controller::release() {
  co_await call_on(thread_, [this] { return stop_serving(); });
  co_await gate_.close();
  bdev_.reset();
}

Task<> Controller::rest() {
  co_await call_on(thread_, [this] { return rest_session(); });
}

Task<> Controller::rest_session() {
  stopping_ = true;
  if (session_ != nullptr) co_await session_->rest();
}

Task<ControllerState> Controller::give_up() {
  co_await call_on(thread_, [this] {
    if (session_ != nullptr) session_->give_up();
  });
  co_await release();
  co_return ControllerState{
      .name = name_, .listener = std::move(listener_fd_), .session = std::exchange(given_up_, std::nullopt)};
}

Task<ControllerInfo> Controller::info() {
  ControllerInfo info{.name = name_,
                      .socket_path = socket_path_,
                      .cpumask = "",
                      .bdev_name = bdev_ != nullptr ? bdev_->bdev().name() : "",
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

void Controller::on_resize(const OpenBdev& which) {
  if (&which == bdev_.get()) tell_of_size();  // otherwise it is looked at when it is taken
}

void Controller::tell_of_size() {
  const uint64_t before = device_->size_bytes();
  device_->set_size_bytes(bdev_->bdev().size_bytes());
  if (device_->size_bytes() == before) return;
  std::ignore = gate_.spawn([](Controller& self) -> Task<> {
    co_await call_on(self.thread_, [&self] {
      if (self.session_ != nullptr) self.session_->notify_config_change();
    });
  }(*this));
}

Task<> Controller::begin_change() {
  while (changing_) co_await changed_.wait();
  changing_ = true;
}

void Controller::end_change() {
  changing_ = false;
  changed_.notify_all();
}

Task<> Controller::let_go_of_removed_bdev() {
  co_await begin_change();
  if (bdev_ != nullptr && bdev_->removed()) {  // it may have been replaced meanwhile
    log(LogLevel::kNotice, LogFlag::kVhost,
        "controller {}: bdev {} is removed; requests fail until there is another one (vhost_controller_set_bdev)",
        name_, bdev_->bdev().name());
    co_await call_on(thread_, [this] { return detach_bdev(); });
    bdev_.reset();
  }
  end_change();
}

Task<Result<>> Controller::set_bdev(BdevManager& bdevs, std::string bdev_name) {
  co_await begin_change();
  const Result<> replaced = co_await replace_bdev(bdevs, bdev_name);
  end_change();
  co_return replaced;
}

Task<Result<>> Controller::replace_bdev(BdevManager& bdevs, const std::string& name) {
  auto next = std::make_unique<OpenBdev>(*this);
  if (auto opened = next->open(bdevs, name, device_->readonly()); !opened) co_return opened;
  if (auto fits = device_->may_have(next->bdev()); !fits) co_return fits;
  auto moved = co_await call_on(thread_, [this, &bdev = next->bdev()] { return move_to(bdev); });
  if (!moved) co_return moved;
  bdev_ = std::move(next);
  log(LogLevel::kNotice, LogFlag::kVhost, "controller {}: its bdev is {} from now on", name_, bdev_->bdev().name());
  tell_of_size();
  co_return Result<>{};
}

// --- On the controller's thread ---

Task<Result<>> Controller::start_serving(Bdev& bdev) {
  auto channels = co_await open_channels(bdev);
  if (!channels) co_return std::unexpected(channels.error());
  exchange_channels(std::move(*channels));
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

// All or none.
Task<Result<Controller::Channels>> Controller::open_channels(Bdev& bdev) {
  Channels channels;
  for (const Place& place : places_) {
    auto channel = co_await run_on(*place.thread, [&place, &bdev] { return place.thread->get_channel(bdev); });
    if (!channel) {
      co_await close_channels(std::move(channels));
      co_return std::unexpected(channel.error());
    }
    channels.push_back(std::move(*channel));
  }
  co_return channels;
}

Task<> Controller::close_channels(Channels channels) {
  for (size_t i = 0; i < channels.size(); ++i) {
    co_await run_on(*places_[i].thread, [channel = std::move(channels[i])]() mutable { channel.reset(); });
  }
}

Controller::Channels Controller::exchange_channels(Channels channels) {
  channels.resize(places_.size());
  for (size_t i = 0; i < places_.size(); ++i) std::swap(places_[i].channel, channels[i]);
  return channels;
}

// What can fail does so before anything is touched.
Task<Result<>> Controller::move_to(Bdev& bdev) {
  auto channels = co_await open_channels(bdev);
  if (!channels) co_return std::unexpected(channels.error());
  Channels old = exchange_channels(std::move(*channels));  // which a session that starts meanwhile gets
  if (session_ != nullptr) {
    std::vector<BdevChannel*> present;
    for (const QueuePlace& place : queue_places()) present.push_back(place.channel);
    co_await session_->set_channels(present);
  }
  co_await close_channels(std::move(old));
  co_return Result<>{};
}

Task<> Controller::detach_bdev() {
  Channels old = exchange_channels({});  // a session that starts meanwhile has none
  if (session_ != nullptr) co_await session_->detach_bdev();
  co_await close_channels(std::move(old));
}

Task<> Controller::stop_serving() {
  stopping_ = true;
  go_on_.set();
  if (listener_.thread() != nullptr) thread_.remove_source(listener_);
  retry_.cancel();
  look_again_.set();
  if (session_ != nullptr) session_->close();
  co_await serving_.close();
  co_await close_channels(exchange_channels({}));
}

// One that had been connected to another controller of this name.
Task<Result<>> Controller::take_over_session(SessionState state) {
  connect(std::move(state.socket));
  co_return co_await session_->take_over(std::move(state));
}

// One front end after the other, until stop_serving().
Task<> Controller::serve_front_ends() {
  if (takes_over_) co_await go_on_.wait();
  if (session_ != nullptr) {
    if (!stopping_) co_await session_->go_on();
    co_await serve();
  }
  while (!stopping_) {
    Result<UniqueFd> socket = accept();
    if (socket) {
      if (admits(*socket)) {
        connect(std::move(*socket));
        co_await serve();
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

std::vector<QueuePlace> Controller::queue_places() const {
  std::vector<QueuePlace> places;
  for (const Place& place : places_) {
    places.push_back({.thread = place.thread, .channel = static_cast<BdevChannel*>(place.channel.get())});
  }
  return places;
}

void Controller::connect(UniqueFd socket) {
  const uint64_t id = next_session_id_++;
  log(LogLevel::kInfo, LogFlag::kVhost, "controller {}: a front end has connected, session {}", name_, id);
  session_ =
      std::make_unique<Session>(id, thread_, *device_, queue_places(), coalescing_, std::move(socket), log_limiter_);
}

Task<> Controller::serve() {
  co_await session_->run();
  given_up_ = session_->take_state();
  session_.reset();
}

}  // namespace sluice::vhost
