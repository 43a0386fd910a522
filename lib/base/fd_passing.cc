#include "lib/base/fd_passing.h"

#include <sys/socket.h>

#include <array>
#include <cstring>

#include "lib/base/check.h"

namespace sluice {
namespace {

struct Control {
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kMaxPassedFds * sizeof(int))> bytes;
};

}  // namespace

ssize_t send_with_fds(int socket, std::span<const std::byte> bytes, std::span<const int> fds, int flags) {
  CHECK(fds.size() <= kMaxPassedFds && (fds.empty() || !bytes.empty()));
  iovec iov{.iov_base = const_cast<std::byte*>(bytes.data()), .iov_len = bytes.size()};
  Control control{};
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.bytes.data();
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(part), fds.data(), fds.size_bytes());
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL | flags);
}

ssize_t receive_with_fds(int socket, std::span<std::byte> into, std::vector<UniqueFd>& fds, size_t max_fds,
                         bool& cut_off, int flags) {
  CHECK(max_fds <= kMaxPassedFds);
  iovec iov{.iov_base = into.data(), .iov_len = into.size()};
  Control control{};
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes.data();
  message.msg_controllen = CMSG_LEN(max_fds * sizeof(int));
  const ssize_t got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | flags);
  if (got < 0) return got;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(fd));
      fds.emplace_back(fd);
    }
  }
  cut_off = (message.msg_flags & MSG_CTRUNC) != 0;
  return got;
}

}  // namespace sluice
