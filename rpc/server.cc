#include "rpc/server.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "lib/base/unix_socket.h"
#include "rpc/limits.h"

namespace sluice::rpc {
namespace {}  // namespace

struct Server::Client : Connection, ListHook<ClientTag> {
  explicit Client(UniqueFd socket) : Connection(std::move(socket)) {}
};

Result<std::unique_ptr<Server>> Server::listen(Options options, Dispatcher& dispatcher) {
  auto socket = listen_unix(options.path, options.mode);
  if (!socket) return std::unexpected(socket.error());
  return std::unique_ptr<Server>(new Server(std::move(options), std::move(*socket), dispatcher, true));
}

std::unique_ptr<Server> Server::adopt(Options options, UniqueFd socket, Dispatcher& dispatcher) {
  return std::unique_ptr<Server>(new Server(std::move(options), std::move(socket), dispatcher, false));
}

Server::Server(Options options, UniqueFd socket, Dispatcher& dispatcher, bool owns_file)
    : options_(std::move(options)),
      socket_(std::move(socket)),
      owns_file_(owns_file),
      dispatcher_(dispatcher),
      listener_(*this),
      accept_retry_("rpc_accept", [this] {
        if (watch_listener()) accept_all();
      }) {}

Server::~Server() { CHECK(gate_.closed()); }

Result<> Server::start() {
  owns_file_ = true;
  return watch_listener();
}

Result<> Server::watch_listener() {
  return LwThread::current()->add_source(listener_, socket_.get(), EPOLLIN | EPOLLET);
}

Task<> Server::close() {
  stop_listening();
  // First the file, then the socket: whoever finds the file finds somebody listening.
  if (owns_file_) ::unlink(options_.path.c_str());
  socket_.reset();
  co_await end_clients();
}

Task<UniqueFd> Server::give_up() {
  stop_listening();
  co_await end_clients();
  co_return std::move(socket_);
}

void Server::stop_listening() {
  accept_retry_.cancel();
  if (listener_.thread() != nullptr) listener_.thread()->remove_source(listener_);
}

Task<> Server::end_clients() {
  connected_.for_each([](Client& client) { client.hang_up(); });
  co_await gate_.close();
}

void Server::accept_all() {
  for (;;) {
    UniqueFd client(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (client) {
      admit(std::move(client));
    } else if (errno == EAGAIN) {
      return;
    } else if (errno != EINTR && errno != ECONNABORTED) {
      break;
    }
  }
  // Out of descriptors or memory. The client waits in the listener's queue; we look again after a while.
  const int code = errno;
  LwThread& thread = *LwThread::current();
  if (uint64_t held_back = 0; accept_log_.allow(thread.now_ns(), held_back)) {
    log(LogLevel::kWarning, LogFlag::kRpc, "{}: cannot accept a client now: {}", options_.path,
        ::strerrordesc_np(code));
  }
  if (listener_.thread() != nullptr) thread.remove_source(listener_);
  accept_retry_.arm_at(thread, thread.now_ns() + kAcceptRetryNs);
}

void Server::admit(UniqueFd socket) {
  if (clients_ < options_.max_clients) {
    gate_.spawn(serve(std::move(socket)));
    return;
  }
  const RpcError error = errno_error(EAGAIN, fmt::format("{} clients are connected, which is the limit", clients_));
  const std::string reply = Dispatcher::error_reply(error.code, error.message);
  // Fits the empty buffer of a new socket.
  static_cast<void>(::send(socket.get(), reply.data(), reply.size(), MSG_DONTWAIT | MSG_NOSIGNAL));
}

Task<> Server::serve(UniqueFd socket) {
  Client client(std::move(socket));
  if (!client.watch()) co_return;
  connected_.push_back(client);
  ++clients_;
  while (std::optional<std::string> request = co_await client.read_request()) {
    const std::string reply = co_await dispatcher_.handle(std::move(*request));
    if (!co_await client.write(reply)) break;
    co_await next_turn();
  }
  --clients_;
}

}  // namespace sluice::rpc
