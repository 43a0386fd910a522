#include "lib/virtio/connection.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "lib/base/descriptor_room.h"
#include "lib/base/fd_passing.h"

namespace sluice::vhost {

Result<> Connection::start(LwThread& thread) {
  return thread.add_source(*this, socket_.get(), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
}

void Connection::shut_down() { ::shutdown(socket_.get(), SHUT_RDWR); }

void Connection::stop() {
  stopped_ = true;
  readable_.set();
  writable_.set();
}

void Connection::pause() {
  paused_ = true;
  readable_.set();
}

void Connection::on_event(uint32_t events) {
  if ((events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) readable_.set();
  if ((events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0) writable_.set();
}

// What is left of a peer's time for one message. Its timer runs from when it first keeps us waiting, and is not put off
// by the bytes that it lets drip in.
class Connection::Patience {
 public:
  explicit Patience(Event& wake)
      : timer_("vhost_message_deadline", [this, &wake] {
          over_ = true;
          wake.set();
        }) {}

  void begin(LwThread& thread) {
    if (!timer_.armed() && !over_) timer_.arm_at(thread, thread.now_ns() + kMessageDeadlineNs);
  }
  bool over() const { return over_; }

 private:
  bool over_ = false;
  Timer timer_;
};

Task<Result<WireMessage>> Connection::read() {
  WireMessage message;
  Patience patience(readable_);
  if (auto got = co_await read_bytes(std::as_writable_bytes(std::span(&message.header, 1)), &message.fds, patience);
      !got) {
    co_return std::unexpected(got.error());
  }
  const bool reply = (message.header.flags & kReplyFlag) != 0;
  if ((message.header.flags & kVersionMask) != kVersion || reply != (incoming_ == Incoming::kReplies)) {
    co_return fail(EPROTO, incoming_ == Incoming::kRequests ? "this is not a vhost-user request"
                                                            : "this is not a vhost-user reply");
  }
  if (message.header.size > kMaxPayloadSize) co_return fail(EPROTO, "a message announces too large a payload");
  message.payload.resize(message.header.size);
  if (auto got = co_await read_bytes(message.payload, nullptr, patience); !got) co_return std::unexpected(got.error());
  co_return message;
}

// Descriptors travel with the first byte of a message; `fds` is where to put them. Elsewhere the kernel drops them.
Task<Result<>> Connection::read_bytes(std::span<std::byte> into, std::vector<UniqueFd>* fds, Patience& patience) {
  bool begun = fds == nullptr;  // with a header there is a message already
  while (!into.empty()) {
    if (stopped_) co_return fail(ECONNRESET, "the connection is being closed");
    // As long as descriptors may come, nothing of the message has.
    if (paused_ && fds != nullptr) co_return fail(ECANCELED, "the connection is paused");
    bool cut_off = false;
    const ssize_t got = fds != nullptr ? receive_with_fds(socket_.get(), into, *fds, kMaxFds, cut_off, MSG_DONTWAIT)
                                       : ::recv(socket_.get(), into.data(), into.size(), MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
      if (errno == EINTR) continue;
      if (patience.over()) co_return fail(ETIMEDOUT, "the peer has sent a part of a message, and not the rest in time");
      if (begun) patience.begin(*thread());
      co_await readable_.wait();
      continue;
    }
    if (got < 0) co_return fail_errno("cannot read from the peer");
    if (got == 0) co_return fail(ECONNRESET, "the peer has closed the connection");
    if (fds != nullptr) {
      if (cut_off)
        co_return fail(EMSGSIZE, "a message carries more descriptors than it may, or than this process may open");
      if (incoming_ == Incoming::kRequests && std::ranges::any_of(*fds, [](const UniqueFd& fd) {
            return descriptor_room(fd.get()) == DescriptorRoom::kReserve;
          })) {
        co_return fail(EMFILE, "so many descriptors are open that the rest is kept; raise the limit (ulimit -n)");
      }
      fds = nullptr;
    }
    begun = true;
    into = into.subspan(static_cast<size_t>(got));
  }
  co_return Result<>{};
}

Task<Result<>> Connection::write(const Header& header, std::span<const std::byte> payload, std::span<const int> fds) {
  std::array<std::byte, sizeof(Header) + kMaxPayloadSize> buffer{};
  CHECK(payload.size() <= kMaxPayloadSize && fds.size() <= kMaxFds);
  std::memcpy(buffer.data(), &header, sizeof(header));
  if (!payload.empty()) std::memcpy(buffer.data() + sizeof(header), payload.data(), payload.size());
  std::span<std::byte> left = std::span(buffer).first(sizeof(header) + payload.size());
  Patience patience(writable_);
  while (!left.empty()) {
    if (stopped_) co_return fail(ECONNRESET, "the connection is being closed");
    const ssize_t sent = send_with_fds(socket_.get(), left, fds, MSG_DONTWAIT);  // these with the first byte
    if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
      if (errno == EINTR) continue;
      if (patience.over()) co_return fail(ETIMEDOUT, "the peer does not read what is written to it");
      patience.begin(*thread());
      co_await writable_.wait();
      continue;
    }
    if (sent < 0) co_return fail(errno == EPIPE ? ECONNRESET : errno, "cannot write to the peer");
    left = left.subspan(static_cast<size_t>(sent));
    fds = {};
  }
  co_return Result<>{};
}

}  // namespace sluice::vhost
