#include "lib/vhost/passed_fd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <string>
#include <string_view>

namespace sluice::vhost {
namespace {

enum class FdKind : uint8_t { kEvent, kPipe, kSocket, kOther };

// By its name, which asks no file system.
Result<FdKind> kind_of(const UniqueFd& fd) {
  std::array<char, 64> link{};
  const std::string path = fmt::format("/proc/self/fd/{}", fd.get());
  const ssize_t length = ::readlink(path.c_str(), link.data(), link.size());
  if (length < 0) return fail_errno("cannot look at a descriptor");
  const std::string_view name(link.data(), static_cast<size_t>(length));
  if (name.starts_with("anon_inode:[eventfd")) return FdKind::kEvent;
  if (name.starts_with("pipe:")) return FdKind::kPipe;
  return name.starts_with("socket:") ? FdKind::kSocket : FdKind::kOther;
}

Result<> make_non_blocking(const UniqueFd& fd) {
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) != 0)
    return fail_errno("cannot make a descriptor non-blocking");
  return {};
}

// The ends of a pair have no names, as that of a connection to one of our own sockets has.
Result<> accept_socket(const UniqueFd& fd) {
  int type = 0;
  socklen_t length = sizeof(type);
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_TYPE, &type, &length) != 0 || type != SOCK_STREAM)
    return fail(EINVAL, "a socket is not one of bytes");
  sockaddr_storage peer{};
  length = sizeof(peer);
  if (::getpeername(fd.get(), reinterpret_cast<sockaddr*>(&peer), &length) != 0 || peer.ss_family != AF_UNIX ||
      length > sizeof(sa_family_t)) {
    return fail(EINVAL, "a socket is not one of a pair");
  }
  if (::shutdown(fd.get(), SHUT_RD) != 0) return fail_errno("cannot shut a socket for reading");
  // Its queue may have descriptors: read without room for them, they are dropped.
  std::array<char, 4096> dropped;
  while (::recv(fd.get(), dropped.data(), dropped.size(), MSG_DONTWAIT) > 0) continue;
  return make_non_blocking(fd);
}

}  // namespace

Result<> accept_kick(const UniqueFd& fd) {
  const auto kind = kind_of(fd);
  if (!kind) return std::unexpected(kind.error());
  if (*kind != FdKind::kEvent) return fail(EINVAL, "a kick descriptor is not an eventfd");
  return make_non_blocking(fd);
}

Result<> accept_call(const UniqueFd& fd) {
  const auto kind = kind_of(fd);
  if (!kind) return std::unexpected(kind.error());
  if (*kind == FdKind::kSocket) return accept_socket(fd);
  if (*kind == FdKind::kOther) return fail(EINVAL, "a call or error descriptor is not an eventfd, pipe or socket");
  return make_non_blocking(fd);
}

Result<> accept_channel(const UniqueFd& fd) {
  const auto kind = kind_of(fd);
  if (!kind) return std::unexpected(kind.error());
  if (*kind != FdKind::kSocket) return fail(EINVAL, "the back-end channel is not a socket");
  return accept_socket(fd);
}

}  // namespace sluice::vhost
