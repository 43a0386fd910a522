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

Result<UniqueFd> connect_unix(const std::string& path, int flags) {
  const auto address = address_of(path);
  if (!address) return std::unexpected(address.error());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0));
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

const char* who_else_may_write(const std::string& directory) {
  struct stat info{};
  if (::stat(directory.c_str(), &info) != 0) return nullptr;
  if (info.st_uid != 0 && info.st_uid != ::geteuid()) return "it belongs to another user";
  // In a directory with the sticky bit only the owner of a file can replace it.
  if ((info.st_mode & S_ISVTX) != 0) return nullptr;
  if ((info.st_mode & S_IWOTH) != 0) return "anybody may write to it";
  return (info.st_mode & S_IWGRP) != 0 ? "its group may write to it" : nullptr;
}

Result<PeerCredentials> peer_credentials(int socket) {
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return fail_errno("cannot tell who connects");
  PeerCredentials credentials{.pid = peer.pid, .uid = peer.uid, .gids = {peer.gid}};
  std::vector<gid_t> groups(64);
  size = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
  int asked = ::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &size);
  if (asked != 0 && errno == ERANGE) {  // `size` is what it takes
    groups.resize(size / sizeof(gid_t));
    asked = ::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &size);
  }
  if (asked != 0) return fail_errno("cannot tell the groups of who connects");
  groups.resize(size / sizeof(gid_t));
  credentials.gids.insert(credentials.gids.end(), groups.begin(), groups.end());
  return credentials;
}

}  // namespace sluice
