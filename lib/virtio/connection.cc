#include "lib/virtio/connection.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "lib/base/descriptor_room.h"

namespace sluice::vhost {

Result<UniqueFd> Connection::connect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return fail(ENAMETOOLONG, "a socket path has 1 to 107 characters");
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return fail_errno("cannot create a socket");
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return fail_errno("cannot connect to the socket");
  }
  return socket;
}

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
    iovec iov{.iov_base = into.data(), .iov_len = into.size()};
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kMaxFds * sizeof(int))> control{};
    msghdr header{};
    header.msg_iov = &iov;
    header.msg_iovlen = 1;
    if (fds != nullptr) {
      header.msg_control = control.data();
      header.msg_controllen = control.size();
    }
    const ssize_t got = ::recvmsg(socket_.get(), &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
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
      for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
        const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; ++i) {
          int fd = -1;
          std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(fd));
          fds->emplace_back(fd);
        }
      }
      if ((header.msg_flags & MSG_CTRUNC) != 0)
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
    iovec iov{.iov_base = left.data(), .iov_len = left.size()};
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kMaxFds * sizeof(int))> control{};
    msghdr message{};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    if (!fds.empty()) {  // with the first byte
      message.msg_control = control.data();
      message.msg_controllen = CMSG_SPACE(fds.size_bytes());
      cmsghdr* part = CMSG_FIRSTHDR(&message);
      part->cmsg_level = SOL_SOCKET;
      part->cmsg_type = SCM_RIGHTS;
      part->cmsg_len = CMSG_LEN(fds.size_bytes());
      std::memcpy(CMSG_DATA(part), fds.data(), fds.size_bytes());
    }
    const ssize_t sent = ::sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
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
