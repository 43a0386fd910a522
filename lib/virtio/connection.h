// Connection: one vhost-user socket: whole messages in and out, without ever blocking the thread. For either side.
//
// A peer may be silent as long as it likes, which costs nothing. One that has begun a message, or does not take the one
// that is written to it, has kMessageDeadlineNs for all of it; only while it keeps us waiting is there a timer.
//
// Thread:     the one it is started on.
// Ownership:  owns the socket. One task reads, and one writes; no two at once.
// Source:     Vhost-user Protocol, "Message Specification", "Communication".
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "lib/base/clock.h"
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

// Real peers send a message, and read one, in one go.
inline constexpr uint64_t kMessageDeadlineNs = 5 * kNsPerSec;

// What a peer may send: front ends send requests on the main socket, and replies on the back end's channel.
enum class Incoming : uint8_t { kRequests, kReplies };

class Connection final : public EventSource {
 public:
  explicit Connection(UniqueFd socket, Incoming incoming = Incoming::kRequests)
      : socket_(std::move(socket)), incoming_(incoming) {}

  Result<> start(LwThread& thread);
  // Ends the reading and writing that is in progress, and all to come, with an error.
  void shut_down();
  // The same on this side only: the peer learns of it when the connection is destroyed. On its thread.
  void stop();

  // Ends reading between two messages: what the peer sends from then on stays in the socket.
  void pause();
  // Once it is paused and has left its thread.
  UniqueFd take_socket() { return std::move(socket_); }

  // Reads the next message. Errors: ECONNRESET (the peer has gone, also in the middle of a message); EPROTO (not a
  // vhost-user message, or too large); EMSGSIZE (more descriptors than a message may carry, or than this process may
  // open); EMFILE (a request's descriptors are those that this process keeps for itself); ETIMEDOUT (of half a message,
  // the other half); ECANCELED (paused).
  Task<Result<WireMessage>> read();
  // Writes a whole message, with at most kMaxFds descriptors, which stay the caller's. Errors: ECONNRESET; ETIMEDOUT
  // (the peer does not read).
  Task<Result<>> write(const Header& header, std::span<const std::byte> payload, std::span<const int> fds = {});

  void on_event(uint32_t events) override;

 private:
  class Patience;
  Task<Result<>> read_bytes(std::span<std::byte> into, std::vector<UniqueFd>* fds, Patience& patience);

  UniqueFd socket_;
  const Incoming incoming_;
  bool stopped_ = false;
  bool paused_ = false;
  Event readable_;
  Event writable_;
};

// The payload as a structure. Requires: it is large enough.
template <typename Payload>
Payload payload_of(const WireMessage& message) {
  Payload payload;
  std::memcpy(&payload, message.payload.data(), sizeof(payload));
  return payload;
}

// The bytes of a payload, or of a header.
template <typename Payload>
std::span<const std::byte> payload_bytes(const Payload& payload) {
  return std::as_bytes(std::span(&payload, 1));
}

}  // namespace sluice::vhost
