#include "rpc/connection.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>

#include "rpc/dispatcher.h"
#include "rpc/limits.h"

namespace sluice::rpc {

Connection::Connection(UniqueFd socket) : socket_(std::move(socket)), framer_(kMaxRequestBytes) {}

Connection::~Connection() {
  // While the descriptor is still open, which the base class's destructor would not see.
  if (thread() != nullptr) thread()->remove_source(*this);
}

Result<> Connection::watch() {
  // Edges, so that a client that sends while its request runs, or never reads, wakes us once and not for ever.
  return LwThread::current()->add_source(*this, socket_.get(), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
}

void Connection::on_event(uint32_t) { activity_.set(); }

void Connection::hang_up() {
  closing_ = true;
  activity_.set();
}

Task<std::optional<std::string>> Connection::read_request() {
  std::string request;
  while (!closing_) {
    const JsonFramer::Status status = framer_.next(request);
    if (status == JsonFramer::Status::kValue) co_return request;
    if (status == JsonFramer::Status::kNeedMore) {
      const Read read = read_some();
      if (read == Read::kSome) continue;
      if (read == Read::kLater) {
        co_await activity_.wait();
        continue;
      }
    }
    if (const std::string reply = complaint(status, framer_.inside_value()); !reply.empty()) co_await write(reply);
    break;
  }
  co_return std::nullopt;
}

std::string Connection::complaint(JsonFramer::Status status, bool inside_value) {
  switch (status) {
    case JsonFramer::Status::kGarbage:
      return Dispatcher::error_reply(kParseError, "Parse error: a request begins with '{' or '['");
    case JsonFramer::Status::kTooLong:
      return Dispatcher::error_reply(
          kInvalidRequest, fmt::format("Invalid request: longer than the limit of {} bytes", kMaxRequestBytes));
    case JsonFramer::Status::kNeedMore:
      if (inside_value) return Dispatcher::error_reply(kParseError, "Parse error: the stream ends within a request");
      return "";
    case JsonFramer::Status::kValue:
      return "";
  }
  return "";
}

Connection::Read Connection::read_some() {
  char chunk[kReadChunkBytes];
  for (;;) {
    const ssize_t count = ::recv(socket_.get(), chunk, sizeof(chunk), MSG_DONTWAIT);
    if (count > 0) {
      framer_.append({chunk, static_cast<size_t>(count)});
      return Read::kSome;
    }
    if (count < 0 && errno == EINTR) continue;
    return count < 0 && errno == EAGAIN ? Read::kLater : Read::kEnd;
  }
}

Task<bool> Connection::write(std::string_view bytes) {
  bool timed_out = false;
  Timer deadline("rpc_write", [&] {
    timed_out = true;
    activity_.set();
  });
  while (!bytes.empty()) {
    const ssize_t count = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count > 0) {
      bytes.remove_prefix(static_cast<size_t>(count));
      deadline.cancel();
      continue;
    }
    if (count < 0 && errno == EINTR) continue;
    // While the server closes, nobody waits for a client that does not read.
    if (count == 0 || errno != EAGAIN || timed_out || closing_) co_return false;
    if (!deadline.armed()) deadline.arm_at(*LwThread::current(), LwThread::current()->now_ns() + kWriteTimeoutNs);
    co_await activity_.wait();
  }
  co_return true;
}

}  // namespace sluice::rpc
