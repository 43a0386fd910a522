#include "app/conformance/front_end.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <iterator>
#include <ostream>

#include "lib/base/fd_passing.h"

namespace sluice::test {
namespace {

using vhost::Request;

int64_t now_ms() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1'000'000;
}

void set_nonblocking(int fd) { ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK); }

}  // namespace

Deadline::Deadline(int timeout_ms) : at_ms_(now_ms() + timeout_ms) {}

int Deadline::left_ms() const { return static_cast<int>(std::max<int64_t>(0, at_ms_ - now_ms())); }

short wait_for(int fd, short events, const Deadline& deadline) {
  for (;;) {
    pollfd poll{.fd = fd, .events = events, .revents = 0};
    int ready = ::poll(&poll, 1, deadline.left_ms());
    if (ready > 0) return poll.revents;
    if (ready == 0) return 0;
    if (errno != EINTR) return POLLERR;
  }
}

Bytes operator+(Bytes left, const Bytes& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

std::vector<int> repeat(int fd, size_t n) { return std::vector<int>(n, fd); }

// ---- Channel

bool Channel::send_bytes(std::span<const uint8_t> bytes, std::span<const int> fds) {
  Deadline deadline(kTimeoutMs);
  size_t sent = 0;
  while (sent < bytes.size()) {
    const ssize_t n = send_with_fds(fd(), std::as_bytes(bytes.subspan(sent)), sent == 0 ? fds : std::span<const int>());
    if (n > 0) {
      sent += static_cast<size_t>(n);
    } else if (n < 0 && errno == EAGAIN) {
      if (wait_for(fd(), POLLOUT, deadline) == 0) return false;
    } else if (n < 0 && errno != EINTR) {
      return false;
    }
  }
  return true;
}

bool Channel::send_message(const vhost::Header& header, const Bytes& payload, std::span<const int> fds) {
  return send_bytes(bytes_of(header) + payload, fds);
}

bool Channel::read_exactly(uint8_t* to, size_t size, std::vector<UniqueFd>* fds, const Deadline& deadline) {
  size_t done = 0;
  while (done < size) {
    std::vector<UniqueFd> received;
    bool cut_off = false;
    const ssize_t n = receive_with_fds(fd(), std::as_writable_bytes(std::span(to + done, size - done)), received,
                                       vhost::kMaxFds, cut_off, MSG_DONTWAIT);
    if (n == 0) return false;
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN || wait_for(fd(), POLLIN, deadline) == 0) return false;
      continue;
    }
    done += static_cast<size_t>(n);
    if (fds != nullptr) std::ranges::move(received, std::back_inserter(*fds));
  }
  return true;
}

std::optional<Message> Channel::receive(int timeout_ms) {
  Deadline deadline(timeout_ms);
  Message message;
  uint8_t header[sizeof(vhost::Header)];
  if (!read_exactly(header, sizeof(header), &message.fds, deadline)) return std::nullopt;
  std::memcpy(&message.header, header, sizeof(header));
  if (message.header.size > vhost::kMaxPayloadSize) return std::nullopt;
  message.payload.resize(message.header.size);
  if (!read_exactly(message.payload.data(), message.payload.size(), nullptr, deadline)) return std::nullopt;
  return message;
}

bool Channel::stays_silent(int for_ms) const { return wait_for(fd(), POLLIN, Deadline(for_ms)) == 0; }

bool Channel::wait_closed(int timeout_ms) {
  Deadline deadline(timeout_ms);
  for (;;) {
    if (wait_for(fd(), POLLIN, deadline) == 0) return false;
    uint8_t byte = 0;
    ssize_t n = ::recv(fd(), &byte, 1, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return true;
  }
}

BackendChannel::BackendChannel() {
  int pair[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return;
  set_nonblocking(pair[0]);
  local = Channel(UniqueFd(pair[0]));
  remote.reset(pair[1]);
}

const char* to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::kAccepted:
      return "accepted";
    case Verdict::kRefused:
      return "refused";
    case Verdict::kClosed:
      return "session closed";
    case Verdict::kSilent:
      return "no proper acknowledgement";
  }
  return "?";
}

void PrintTo(Verdict verdict, std::ostream* out) { *out << to_string(verdict); }

FdProbe::FdProbe() {
  int pipe[2] = {-1, -1};
  if (::pipe2(pipe, O_CLOEXEC) != 0) return;
  watched_.reset(pipe[0]);
  probe_.reset(pipe[1]);
}

bool FdProbe::closed_by_peer(int timeout_ms) const {
  return (wait_for(watched_.get(), POLLIN, Deadline(timeout_ms)) & POLLHUP) != 0;
}

// ---- FrontEnd

bool FrontEnd::fail(std::string why) {
  error_ = std::move(why);
  return false;
}

bool FrontEnd::connect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return fail("socket path too long");
  path.copy(address.sun_path, path.size());
  // Non-blocking from the start: a listener whose backlog is full would keep a blocking connect for ever.
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  Deadline deadline(kTimeoutMs);
  while (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno != EAGAIN || deadline.passed()) return fail("connect: " + std::string(std::strerror(errno)));
    ::usleep(1000);
  }
  channel_ = Channel(std::move(socket));
  dead_ = false;
  return true;
}

void FrontEnd::die_after(int messages, bool half) {
  budget_ = messages;
  die_in_the_middle_ = half;
}

bool FrontEnd::send(Request request, const Bytes& payload, std::span<const int> fds, uint32_t flags) {
  Bytes bytes = bytes_of(vhost::Header{static_cast<uint32_t>(request), flags, static_cast<uint32_t>(payload.size())});
  bytes = bytes + payload;
  if (budget_ == 0) {
    if (die_in_the_middle_) channel_.send_bytes(std::span(bytes).first(bytes.size() / 2), fds);
    channel_.close();
    dead_ = true;
  }
  if (dead_) return fail("died as told");
  if (budget_ > 0) budget_--;
  messages_sent_++;
  if (!channel_.send_bytes(bytes, fds))
    return fail("sending request " + std::to_string(static_cast<uint32_t>(request)));
  return true;
}

std::optional<Message> FrontEnd::query(Request request, const Bytes& payload, std::span<const int> fds,
                                       uint32_t flags) {
  if (acknowledge_everything_) flags |= vhost::kNeedReplyFlag;
  if (!send(request, payload, fds, flags)) return std::nullopt;
  auto reply = receive();
  auto number = static_cast<uint32_t>(request);
  if (!reply) {
    fail("no reply to request " + std::to_string(number));
    return std::nullopt;
  }
  if (reply->header.request != number || (reply->header.flags & ~vhost::kNeedReplyFlag) != vhost::kReplyFlags) {
    fail("wrong header in the reply to request " + std::to_string(number) + ": request " +
         std::to_string(reply->header.request) + ", flags " + std::to_string(reply->header.flags));
    return std::nullopt;
  }
  return reply;
}

std::optional<uint64_t> FrontEnd::get_u64(Request request, uint32_t flags) {
  auto reply = query(request, {}, {}, flags);
  if (!reply) return std::nullopt;
  auto value = reply->as<uint64_t>();
  if (!value) fail("reply to request " + std::to_string(static_cast<uint32_t>(request)) + " is not 8 bytes");
  return value;
}

bool FrontEnd::command(Request request, const Bytes& payload, std::span<const int> fds) {
  if (!acknowledge_everything_) return send(request, payload, fds);
  Verdict verdict = judge(request, payload, fds);
  if (verdict == Verdict::kAccepted) return true;
  return fail("request " + std::to_string(static_cast<uint32_t>(request)) + ": " + to_string(verdict));
}

Verdict FrontEnd::judge(Request request, const Bytes& payload, std::span<const int> fds) {
  // A send that fails halfway still leaves a verdict to be read: the back end may close at the first bytes.
  send(request, payload, fds, vhost::kVersion | vhost::kNeedReplyFlag);
  return dead_ ? Verdict::kClosed : judge_ack(request);
}

Verdict FrontEnd::judge_ack(Request request) {
  auto reply = receive();
  if (!reply) return channel_.wait_closed(0) ? Verdict::kClosed : Verdict::kSilent;
  auto value = reply->as<uint64_t>();
  if (!value || reply->header.request != static_cast<uint32_t>(request) || reply->header.flags != vhost::kReplyFlags)
    return Verdict::kSilent;
  return *value == 0 ? Verdict::kAccepted : Verdict::kRefused;
}

bool FrontEnd::fence() { return get_u64(Request::kGetFeatures).has_value(); }

bool FrontEnd::set_mem_table(const GuestMemory& memory) {
  return command(Request::kSetMemTable, mem_table_payload(memory.regions()),
                 repeat(memory.fd(), memory.regions().size()));
}

bool FrontEnd::add_mem_reg(const GuestMemory& memory, size_t region) {
  return command(Request::kAddMemReg, mem_reg_payload(memory.regions()[region]), repeat(memory.fd(), 1));
}

bool FrontEnd::set_vring_fd(Request request, uint32_t index, int fd) {
  uint64_t value = index | (fd < 0 ? vhost::kVringNoFdFlag : 0);
  return command(request, bytes_of(value), repeat(fd, fd < 0 ? 0 : 1));
}

std::optional<uint32_t> FrontEnd::get_vring_base(uint32_t index) {
  auto reply = query(Request::kGetVringBase, bytes_of(vhost::VringState{index, 0}));
  if (!reply) return std::nullopt;
  auto state = reply->as<vhost::VringState>();
  if (!state || state->index != index) {
    fail("wrong reply to GET_VRING_BASE");
    return std::nullopt;
  }
  return state->num;
}

std::optional<Bytes> FrontEnd::get_config(uint32_t offset, uint32_t size, uint32_t flags) {
  auto reply = query(Request::kGetConfig, bytes_of(vhost::ConfigHeader{offset, size, flags}) + Bytes(size));
  if (!reply) return std::nullopt;
  if (reply->payload.size() != vhost::config_message_size(size)) {
    fail("GET_CONFIG answered with " + std::to_string(reply->payload.size()) + " bytes");
    return std::nullopt;
  }
  return Bytes(reply->payload.begin() + sizeof(vhost::ConfigHeader), reply->payload.end());
}

bool FrontEnd::set_config(uint32_t offset, const Bytes& data, uint32_t flags) {
  return command(Request::kSetConfig,
                 bytes_of(vhost::ConfigHeader{offset, static_cast<uint32_t>(data.size()), flags}) + data);
}

Bytes mem_table_payload(std::span<const vhost::MemoryRegion> regions) {
  Bytes payload = bytes_of(vhost::MemTableHeader{.num_regions = static_cast<uint32_t>(regions.size())});
  for (const auto& region : regions) payload = payload + bytes_of(region);
  return payload;
}

Bytes mem_reg_payload(const vhost::MemoryRegion& region) {
  return bytes_of(vhost::SingleMemoryRegion{.region = region});
}

}  // namespace sluice::test
