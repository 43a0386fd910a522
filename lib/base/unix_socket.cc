#include "lib/base/unix_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

namespace sluice {
namespace {

// Many virtual machines may connect in the same instant, at the start of a host.
constexpr int kBacklog = 1024;

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty()) return fail(EINVAL, "the socket path is empty");
  if (path.size() >= sizeof(address.sun_path))
    return fail(ENAMETOOLONG, "the socket path is longer than 107 characters");
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

Result<> remove_stale(const sockaddr_un& address) {
  struct stat info{};
  if (::lstat(address.sun_path, &info) != 0) {
    if (errno == ENOENT) return {};
    return fail_errno("cannot look at the socket path");
  }
  if (!S_ISSOCK(info.st_mode)) return fail(EADDRINUSE, "the path exists and is not a socket");
  UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe) return fail_errno("cannot create a socket");
  // A refused connection is the one sign that the owner is gone. EAGAIN means alive, with a full backlog.
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ||
      errno != ECONNREFUSED) {
    return fail(EADDRINUSE, "another process listens on this socket");
  }
  if (::unlink(address.sun_path) != 0 && errno != ENOENT) return fail_errno("cannot remove the stale socket");
  return {};
}

}  // namespace

Result<UniqueFd> connect_unix(const std::string& path) {
  const auto address = address_of(path);
  if (!address) return std::unexpected(address.error());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno("cannot create a socket");
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(*address)) != 0)
    return fail_errno("cannot connect to the socket");
  return fd;
}

Result<UniqueFd> listen_unix(const std::string& path, mode_t mode) {
  const auto made = address_of(path);
  if (!made) return std::unexpected(made.error());
  const sockaddr_un& address = *made;

  if (auto removed = remove_stale(address); !removed) return std::unexpected(removed.error());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fail_errno("cannot create a socket");
  // On Linux, bind() gives the file the socket's own mode less the umask: set before bind, it is never wider.
  if (::fchmod(fd.get(), mode) != 0) return fail_errno("cannot set the socket's mode");
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
    return fail_errno("cannot bind the socket");
  if (::chmod(path.c_str(), mode) != 0 || ::listen(fd.get(), kBacklog) != 0) {
    const int code = errno;
    ::unlink(path.c_str());
    return fail(code, "cannot listen on the socket");
  }
  return fd;
}

}  // namespace sluice
