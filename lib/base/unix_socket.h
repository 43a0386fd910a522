// UNIX stream sockets: making a listener safely, connecting, and knowing who has connected.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"

namespace sluice {

// Listens on `path` with a non-blocking, close-on-exec socket of the given mode. The socket never exists with a wider
// mode. A socket file that nobody listens on any more is replaced; a live one of another process never is. Errors:
// ENAMETOOLONG (the path does not fit an address), EADDRINUSE (live, or not a socket), others of the system calls.
Result<UniqueFd> listen_unix(const std::string& path, mode_t mode);
// A close-on-exec socket, blocking unless `flags` has SOCK_NONBLOCK. Errors: ENAMETOOLONG, EINVAL (an empty path);
// those of connect(2), such as ENOENT, ECONNREFUSED and, if it does not block, EAGAIN (the backlog is full).
Result<UniqueFd> connect_unix(const std::string& path, int flags = 0);

// Why others than the owner of this process could put a socket of their own into a directory, in the place of one of
// ours; nullptr if they could not, or there is no such directory.
const char* who_else_may_write(const std::string& directory);

// The process that has connected a socket, as it was then.
struct PeerCredentials {
  pid_t pid = 0;
  uid_t uid = 0;
  std::vector<gid_t> gids;  // its group first, then the supplementary ones
};
// Errors: those of getsockopt(2).
Result<PeerCredentials> peer_credentials(int socket);

}  // namespace sluice
