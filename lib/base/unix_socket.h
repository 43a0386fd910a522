// UNIX stream sockets: making a listener safely; connecting.
#pragma once

#include <sys/types.h>

#include <string>

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"

namespace sluice {

// Listens on `path` with a non-blocking, close-on-exec socket of the given mode. The socket never exists with a wider
// mode. A socket file that nobody listens on any more is replaced; a live one of another process never is. Errors:
// ENAMETOOLONG (the path does not fit an address), EADDRINUSE (live, or not a socket), others of the system calls.
Result<UniqueFd> listen_unix(const std::string& path, mode_t mode);
// A blocking, close-on-exec socket. Errors: ENAMETOOLONG, EINVAL (an empty path), those of connect(2).
Result<UniqueFd> connect_unix(const std::string& path);

}  // namespace sluice
