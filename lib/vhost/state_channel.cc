#include "lib/vhost/state_channel.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

namespace sluice::vhost {

Result<StateChannel> StateChannel::open(UniqueFd fd) {
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return fail_errno("cannot look at a device state's descriptor");
  StateChannel channel{.fd = std::move(fd), .is_socket = S_ISSOCK(info.st_mode), .own_read = {}, .own_write = {}};
  if (channel.is_socket) return channel;
  if (!S_ISFIFO(info.st_mode)) return fail(EINVAL, "a device state's descriptor is neither a pipe nor a socket");
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) != 0) return fail_errno("cannot make a pipe");
  channel.own_read.reset(ends[0]);
  channel.own_write.reset(ends[1]);
  return channel;
}

Result<> StateChannel::write(std::span<const std::byte> bytes) const {
  ssize_t written = -1;
  if (is_socket) {
    written = ::send(fd.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  } else {
    if (::write(own_write.get(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()))
      return fail_errno("cannot write to a pipe");
    written = ::splice(own_read.get(), nullptr, fd.get(), nullptr, bytes.size(), SPLICE_F_NONBLOCK);
  }
  if (written < 0 && errno != EAGAIN) return fail_errno("a device state's descriptor cannot be written to");
  if (written != static_cast<ssize_t>(bytes.size())) return fail(EAGAIN, "a device state's descriptor is full");
  return {};
}

Result<size_t> StateChannel::read(std::span<std::byte> into) const {
  if (is_socket) {
    const ssize_t got = ::recv(fd.get(), into.data(), into.size(), MSG_DONTWAIT);
    if (got < 0) return fail_errno("a device state's descriptor cannot be read");
    return static_cast<size_t>(got);
  }
  const ssize_t moved = ::splice(fd.get(), nullptr, own_write.get(), nullptr, into.size(), SPLICE_F_NONBLOCK);
  if (moved < 0) return fail_errno("a device state's descriptor cannot be read");
  if (moved == 0) return 0U;
  const ssize_t got = ::read(own_read.get(), into.data(), static_cast<size_t>(moved));
  if (got != moved) return fail_errno("cannot read from a pipe");
  return static_cast<size_t>(got);
}

StateReader::~StateReader() {
  if (thread() != nullptr) thread()->remove_source(*this);
}

Result<> StateReader::start(LwThread& thread) {
  auto watched = thread.add_source(*this, channel_.fd.get(), EPOLLIN | EPOLLRDHUP | EPOLLET);
  if (watched) on_event(0);
  return watched;
}

void StateReader::on_event(uint32_t /*events*/) {
  while (!result_) {
    auto got = channel_.read(std::span(bytes_).subspan(size_));
    if (!got) {
      if (got.error().code == EAGAIN) return;
      if (got.error().code != EINTR) end(std::unexpected(got.error()));
    } else if (*got == 0) {
      end({});
    } else {
      size_ += *got;
      if (size_ > kMaxStateBytes) end(fail(EMSGSIZE, "a device state is too long"));
    }
  }
}

// The descriptor is closed at once: a writer that has more must not wait for a reader.
void StateReader::end(Result<> result) {
  result_ = result;
  if (thread() != nullptr) thread()->remove_source(*this);
  channel_ = {};
  ended_.set();
}

Task<Result<std::span<const std::byte>>> StateReader::finish(uint64_t deadline_ns) {
  Timer deadline("vhost_device_state", [this] {
    if (!result_) end(fail(ETIMEDOUT, "the end of a device state does not come"));
  });
  deadline.arm_at(*LwThread::current(), deadline_ns);
  while (!result_) co_await ended_.wait();
  if (!*result_) co_return std::unexpected(result_->error());
  co_return std::span<const std::byte>(bytes_).first(size_);
}

}  // namespace sluice::vhost
