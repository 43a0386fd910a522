// A scripted vhost-user front end: it says exactly what a test tells it to, right or wrong, and never waits for ever.
//
// Channel is the transport: messages with descriptors over one UNIX stream socket. FrontEnd adds the requests of the
// protocol. What the back end does wrong is a return value (false, empty) with the reason in error(); nothing aborts.
//
// Thread:    any one at a time; every wait has a deadline.
// Ownership: descriptors passed to send are borrowed; received ones belong to the Message.
// Source:    Vhost-user Protocol, "Message Specification", "Communication", "VHOST_USER_PROTOCOL_F_REPLY_ACK".
#pragma once

#include <cstdint>
#include <cstring>
#include <iosfwd>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "app/conformance/guest_memory.h"
#include "lib/base/unique_fd.h"
#include "lib/virtio/wire.h"

namespace sluice::test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr int kTimeoutMs = 10'000;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
inline constexpr int kTimeoutMs = 10'000;
#else
inline constexpr int kTimeoutMs = 2'000;
#endif
#else
inline constexpr int kTimeoutMs = 2'000;
#endif
// How long a test watches for something that must not happen.
inline constexpr int kQuietMs = 50;

// A point in time that all waits of one operation share.
class Deadline {
 public:
  explicit Deadline(int timeout_ms);
  int left_ms() const;
  bool passed() const { return left_ms() == 0; }

 private:
  int64_t at_ms_;
};

// Waits for `events` of `fd`. Returns the events that are there, 0 if the deadline passed first.
short wait_for(int fd, short events, const Deadline& deadline);

template <typename T>
Bytes bytes_of(const T& value) {
  Bytes bytes(sizeof(T));
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}
Bytes operator+(Bytes left, const Bytes& right);

// n descriptors of the same open file, for messages that carry one per region.
std::vector<int> repeat(int fd, size_t n);

struct Message {
  vhost::Header header;
  Bytes payload;
  std::vector<UniqueFd> fds;

  // The payload as T, of exactly its size.
  template <typename T>
  std::optional<T> as() const {
    if (payload.size() != sizeof(T)) return std::nullopt;
    T value;
    std::memcpy(&value, payload.data(), sizeof(T));
    return value;
  }
};

class Channel {
 public:
  Channel() = default;
  explicit Channel(UniqueFd socket) : socket_(std::move(socket)) {}

  bool connected() const { return static_cast<bool>(socket_); }
  void close() { socket_.reset(); }
  int fd() const { return socket_.get(); }

  // Sends bytes as they are; the descriptors go with the first one. False: the peer closed, or reads nothing.
  bool send_bytes(std::span<const uint8_t> bytes, std::span<const int> fds = {});
  bool send_message(const vhost::Header& header, const Bytes& payload = {}, std::span<const int> fds = {});
  // The next whole message. Empty: none in time, or the peer closed.
  std::optional<Message> receive(int timeout_ms = kTimeoutMs);

  // Nothing arrives for a while and the connection stays open.
  bool stays_silent(int for_ms = kQuietMs) const;
  // The peer closes; what it still sends before that is thrown away.
  bool wait_closed(int timeout_ms = kTimeoutMs);

 private:
  // Reads exactly `size` bytes; descriptors go to `fds`, or are closed if null.
  bool read_exactly(uint8_t* to, size_t size, std::vector<UniqueFd>* fds, const Deadline& deadline);

  UniqueFd socket_;
};

// A connected pair for SET_BACKEND_REQ_FD: `local` listens for the back end's requests, `remote` is to be sent away.
struct BackendChannel {
  BackendChannel();
  Channel local;
  UniqueFd remote;
};

// What became of a message sent with need_reply.
enum class Verdict {
  kAccepted,  // acked with zero
  kRefused,   // acked with non-zero
  kClosed,    // the back end ended the session
  kSilent,    // none of it in time, or an answer that is no acknowledgement
};
const char* to_string(Verdict verdict);
void PrintTo(Verdict verdict, std::ostream* out);  // for GoogleTest's messages

// Tells whether the peer has closed every copy of a descriptor that it was sent.
class FdProbe {
 public:
  FdProbe();
  // To be sent. Drop it with forget() after the last send, so that only the peer's copies count.
  int fd() const { return probe_.get(); }
  void forget() { probe_.reset(); }
  bool closed_by_peer(int timeout_ms = kTimeoutMs) const;

 private:
  UniqueFd watched_;
  UniqueFd probe_;
};

class FrontEnd {
 public:
  bool connect(const std::string& path);
  Channel& channel() { return channel_; }
  const std::string& error() const { return error_; }

  // All requests from now on carry need_reply and wait for the ack, as front ends built on rust-vmm do.
  void acknowledge_everything(bool on) { acknowledge_everything_ = on; }
  // Closes the connection instead of sending the message after the next `messages`; with `half`, in the middle of it.
  void die_after(int messages, bool half = false);
  bool dead() const { return dead_; }
  int messages_sent() const { return messages_sent_; }

  bool send(vhost::Request request, const Bytes& payload = {}, std::span<const int> fds = {},
            uint32_t flags = vhost::kVersion);
  std::optional<Message> receive(int timeout_ms = kTimeoutMs) { return channel_.receive(timeout_ms); }

  // A request with an answer of its own: checks the answer's header. That it may repeat the need_reply flag, which is
  // wrong, is for the one case that is about flags: the others go on.
  std::optional<Message> query(vhost::Request request, const Bytes& payload = {}, std::span<const int> fds = {},
                               uint32_t flags = vhost::kVersion);
  std::optional<uint64_t> get_u64(vhost::Request request, uint32_t flags = vhost::kVersion);

  // A request without one: sends it, and waits for an ack if everything is acknowledged. True: sent, and not refused.
  bool command(vhost::Request request, const Bytes& payload = {}, std::span<const int> fds = {});
  // The same with need_reply, whatever was agreed.
  Verdict judge(vhost::Request request, const Bytes& payload = {}, std::span<const int> fds = {});
  Verdict judge_ack(vhost::Request request);
  // True once the back end has worked through all that was sent before (GET_FEATURES as a fence).
  bool fence();

  // The protocol's requests. Those that return bool go through command().
  bool set_u64(vhost::Request request, uint64_t value) { return command(request, bytes_of(value)); }
  bool set_mem_table(const GuestMemory& memory);
  bool add_mem_reg(const GuestMemory& memory, size_t region);
  bool set_vring_num(uint32_t index, uint32_t num) { return vring_state(vhost::Request::kSetVringNum, index, num); }
  bool set_vring_base(uint32_t index, uint32_t num) { return vring_state(vhost::Request::kSetVringBase, index, num); }
  bool set_vring_enable(uint32_t index, bool on) { return vring_state(vhost::Request::kSetVringEnable, index, on); }
  bool set_vring_addr(const vhost::VringAddr& addr) { return command(vhost::Request::kSetVringAddr, bytes_of(addr)); }
  // SET_VRING_KICK, _CALL and _ERR; without a descriptor (-1) the payload says so.
  bool set_vring_fd(vhost::Request request, uint32_t index, int fd);
  std::optional<uint32_t> get_vring_base(uint32_t index);
  std::optional<Bytes> get_config(uint32_t offset, uint32_t size, uint32_t flags = 0);
  bool set_config(uint32_t offset, const Bytes& data, uint32_t flags = 0);

 private:
  bool vring_state(vhost::Request request, uint32_t index, uint32_t num) {
    return command(request, bytes_of(vhost::VringState{index, num}));
  }
  bool fail(std::string why);

  Channel channel_;
  std::string error_;
  bool acknowledge_everything_ = false;
  int budget_ = -1;  // messages until death; negative: lives
  bool die_in_the_middle_ = false;
  bool dead_ = false;
  int messages_sent_ = 0;
};

// Payloads that tests alter before sending.
Bytes mem_table_payload(std::span<const vhost::MemoryRegion> regions);
Bytes mem_reg_payload(const vhost::MemoryRegion& region);

}  // namespace sluice::test
