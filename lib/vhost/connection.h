// Connection: one vhost-user socket: whole messages in and out, without ever blocking the thread.
//
// Thread:     the session's.
// Ownership:  owns the socket. One task reads, and writes; no two at once.
// Source:     Vhost-user Protocol, "Message Specification", "Communication".
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"
#include "lib/thread/await.h"
#include "lib/thread/event_source.h"
#include "lib/virtio/wire.h"

namespace sluice::vhost {

struct WireMessage {
  Header header;
  std::vector<std::byte> payload;
  std::vector<UniqueFd> fds;

  Request request() const { return static_cast<Request>(header.request); }
  bool need_reply() const { return (header.flags & kNeedReplyFlag) != 0; }
};

class Connection final : public EventSource {
 public:
  explicit Connection(UniqueFd socket) : socket_(std::move(socket)) {}

  Result<> start(LwThread& thread);
  // Ends the reading and writing that is in progress, and all to come, with an error.
  void shut_down();

  // Reads the next message. Errors: ECONNRESET (the peer has gone, also in the middle of a message); EPROTO (not a
  // vhost-user message, or too large); EMSGSIZE (more descriptors than a message may carry).
  Task<Result<WireMessage>> read();
  // Writes a whole message, with at most one descriptor.
  Task<Result<>> write(const Header& header, std::span<const std::byte> payload);

  void on_event(uint32_t events) override;

 private:
  Task<Result<>> read_bytes(std::span<std::byte> into, std::vector<UniqueFd>* fds);

  UniqueFd socket_;
  Event readable_;
  Event writable_;
};

}  // namespace sluice::vhost
