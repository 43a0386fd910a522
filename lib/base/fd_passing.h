// Descriptors that travel with bytes over a UNIX socket.
//
// Thread: any.
// Source: unix(7), "SCM_RIGHTS"; cmsg(3).
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <span>
#include <vector>

#include "lib/base/unique_fd.h"

namespace sluice {

inline constexpr size_t kMaxPassedFds = 253;  // the kernel's limit for one message

// As sendmsg() with MSG_NOSIGNAL and `flags`. The descriptors go with the first byte and stay the caller's.
// Requires: fds.size() <= kMaxPassedFds; bytes, if there are descriptors.
ssize_t send_with_fds(int socket, std::span<const std::byte> bytes, std::span<const int> fds, int flags = 0);

// As recvmsg() with `flags`; what descriptors come is put behind those of `fds`, close-on-exec. `cut_off`: there were
// more than `max_fds`, or than this process may open; those are lost.
// Requires: max_fds <= kMaxPassedFds.
ssize_t receive_with_fds(int socket, std::span<std::byte> into, std::vector<UniqueFd>& fds, size_t max_fds,
                         bool& cut_off, int flags = 0);

}  // namespace sluice
