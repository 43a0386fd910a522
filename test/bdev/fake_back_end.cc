#include "test/bdev/fake_back_end.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "lib/base/check.h"

namespace sluice::test {
namespace {

using vhost::Request;

template <typename T>
T load(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

bool read_all(int fd, void* into, size_t bytes) {
  for (auto* place = static_cast<std::byte*>(into); bytes > 0;) {
    const ssize_t got = ::read(fd, place, bytes);
    if (got <= 0) return false;
    place += got;
    bytes -= static_cast<size_t>(got);
  }
  return true;
}

// The header, and a descriptor if there is one.
bool read_header(int socket, vhost::Header& header, UniqueFd& fd) {
  iovec iov{.iov_base = &header, .iov_len = sizeof(header)};
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(8 * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  if (got <= 0) return false;
  if (const cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr) fd.reset(load<int>(CMSG_DATA(part)));
  const auto have = static_cast<size_t>(got);
  return read_all(socket, reinterpret_cast<std::byte*>(&header) + have, sizeof(header) - have);
}

}  // namespace

FakeBackEnd::FakeBackEnd(std::string path, const Options& options) : path_(std::move(path)), options_(options) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  CHECK(path_.size() < sizeof(address.sun_path));
  std::memcpy(address.sun_path, path_.c_str(), path_.size() + 1);
  listener_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  CHECK(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  CHECK(::listen(listener_.get(), 8) == 0);
  wake_.reset(::eventfd(0, EFD_CLOEXEC));
  thread_ = std::thread([this] { run(); });
}

FakeBackEnd::~FakeBackEnd() {
  stop_ = true;
  const uint64_t one = 1;
  CHECK(::write(wake_.get(), &one, sizeof(one)) == sizeof(one));
  thread_.join();
  ::unlink(path_.c_str());
}

void FakeBackEnd::resize(uint64_t sectors) {
  const std::lock_guard lock(mutex_);
  options_.config.capacity = sectors;
  const vhost::Header header{
      .request = static_cast<uint32_t>(vhost::BackendRequest::kConfigChangeMsg), .flags = vhost::kVersion, .size = 0};
  CHECK(::write(channel_.get(), &header, sizeof(header)) == sizeof(header));
}

std::vector<vhost::BlkDiscardSegment> FakeBackEnd::ranges() const {
  const std::lock_guard lock(mutex_);
  return ranges_;
}

void FakeBackEnd::run() {
  while (!stop_) {
    std::array<pollfd, 2> fds{{{listener_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}}};
    if (::poll(fds.data(), fds.size(), -1) <= 0 || fds[0].revents == 0) continue;
    const UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket) continue;
    {
      const std::lock_guard lock(mutex_);
      now_ = options_;
      channel_.reset();
    }
    acknowledge_ = false;
    ring_ = {};
    ++connections_;
    serve(socket.get());
    if (memory_ != nullptr) ::munmap(std::exchange(memory_, nullptr), region_.size);
    if (lie_ == Lie::kSilence) lie_ = Lie::kNone;
  }
}

void FakeBackEnd::serve(int socket) {
  while (!stop_) {
    std::array<pollfd, 3> fds{{{socket, POLLIN, 0}, {wake_.get(), POLLIN, 0}, {ring_.kick.get(), POLLIN, 0}}};
    if (::poll(fds.data(), ring_.kick ? 3 : 2, -1) <= 0) continue;
    if (fds[0].revents != 0 && !handle(socket)) return;
    if (fds[2].revents == 0 || !ring_.enabled) continue;
    uint64_t kicks = 0;
    [[maybe_unused]] const ssize_t ignored = ::read(ring_.kick.get(), &kicks, sizeof(kicks));
    if (!serve_ring()) return;
  }
}

bool FakeBackEnd::reply(int socket, uint32_t request, const void* payload, size_t bytes) {
  vhost::Header header{.request = request, .flags = vhost::kReplyFlags, .size = static_cast<uint32_t>(bytes)};
  if (now_.set_up == SetUpLie::kOtherAnswer) header.request = static_cast<uint32_t>(Request::kGetStatus);
  if (now_.set_up == SetUpLie::kNotAReply) header.flags = vhost::kVersion;
  if (now_.set_up == SetUpLie::kHugePayload) header.size = 1U << 30;
  std::vector<std::byte> message(sizeof(header) + bytes);
  std::memcpy(message.data(), &header, sizeof(header));
  if (bytes > 0) std::memcpy(message.data() + sizeof(header), payload, bytes);
  const int times = now_.set_up == SetUpLie::kUnasked ? 2 : 1;
  for (int i = 0; i < times; ++i) {
    if (::send(socket, message.data(), message.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(message.size()))
      return false;
  }
  return true;
}

bool FakeBackEnd::handle(int socket) {
  vhost::Header header;
  UniqueFd fd;
  if (!read_header(socket, header, fd)) return false;
  std::vector<std::byte> payload(header.size);
  if (!read_all(socket, payload.data(), payload.size())) return false;
  if (now_.set_up == SetUpLie::kSilent) return true;
  if (now_.set_up == SetUpLie::kHangUp) return false;
  const auto number = [&](uint64_t value) {
    const bool cut = now_.set_up == SetUpLie::kShortFeatures;
    return reply(socket, header.request, &value, cut ? 4 : 8);
  };
  uint64_t refusal = 0;
  switch (static_cast<Request>(header.request)) {
    case Request::kGetFeatures:
      return number(now_.features);
    case Request::kGetProtocolFeatures:
      return number(now_.protocol_features);
    case Request::kSetProtocolFeatures:
      acknowledge_ = (load<uint64_t>(payload.data()) & vhost::kProtocolReplyAck) != 0;
      return true;
    case Request::kGetQueueNum:
      return number(now_.set_up == SetUpLie::kNoQueues ? 0 : now_.num_queues);
    case Request::kGetConfig: {
      const std::lock_guard lock(mutex_);
      if (now_.set_up == SetUpLie::kNoConfig) return reply(socket, header.request, nullptr, 0);
      std::memcpy(payload.data() + sizeof(vhost::ConfigHeader), &options_.config, sizeof(options_.config));
      return reply(socket, header.request, payload.data(), payload.size());
    }
    case Request::kSetBackendReqFd: {
      const std::lock_guard lock(mutex_);
      channel_ = std::move(fd);
      break;
    }
    case Request::kSetMemTable:
      if (now_.set_up == SetUpLie::kRefusesMemory) refusal = 1;
      region_ = load<vhost::MemoryRegion>(payload.data() + sizeof(vhost::MemTableHeader));
      memory_ = static_cast<std::byte*>(
          ::mmap(nullptr, region_.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd.get(), 0));
      CHECK(memory_ != MAP_FAILED);
      break;
    case Request::kSetVringNum:
      ring_.size = load<vhost::VringState>(payload.data()).num;
      break;
    case Request::kSetVringAddr:
      ring_.addresses = load<vhost::VringAddr>(payload.data());
      break;
    case Request::kSetVringKick:
      ring_.kick = std::move(fd);
      break;
    case Request::kSetVringCall:
      ring_.call = std::move(fd);
      break;
    case Request::kSetVringEnable:
      ring_.enabled = load<vhost::VringState>(payload.data()).num == 1;
      break;
    default:
      break;
  }
  if (!acknowledge_ || (header.flags & vhost::kNeedReplyFlag) == 0) return true;
  return reply(socket, header.request, &refusal, sizeof(refusal));
}

std::byte* FakeBackEnd::at(uint64_t address) const {
  CHECK(address - region_.guest_address < region_.size);
  return memory_ + (address - region_.guest_address);
}

bool FakeBackEnd::serve_ring() {
  for (;;) {
    if (lie_ == Lie::kSilence) return true;
    auto* avail = reinterpret_cast<uint16_t*>(at(ring_.addresses.avail));
    const uint16_t available = __atomic_load_n(avail + 1, __ATOMIC_ACQUIRE);
    if (available == ring_.next) return true;
    // Kicked at the next one, too (with EVENT_IDX).
    auto* used = at(ring_.addresses.used);
    __atomic_store_n(reinterpret_cast<uint16_t*>(used + vhost::split_avail_event_offset(ring_.size)), available,
                     __ATOMIC_SEQ_CST);
    while (ring_.next != available) {
      const uint16_t head = avail[2 + ring_.next++ % ring_.size];
      ++requests_;
      if (!serve_request(head)) return false;
    }
  }
}

std::vector<FakeBackEnd::Buffer> FakeBackEnd::chain(uint16_t head) {
  std::vector<Buffer> buffers;
  const std::byte* table = at(ring_.addresses.desc);
  for (uint16_t index = head;;) {
    const auto desc = load<vhost::SplitDesc>(table + index * sizeof(vhost::SplitDesc));
    if ((desc.flags & vhost::kDescIndirect) != 0) {
      table = at(desc.addr);
      index = 0;
      continue;
    }
    buffers.push_back({at(desc.addr), desc.len, (desc.flags & vhost::kDescWrite) != 0});
    if ((desc.flags & vhost::kDescNext) == 0) return buffers;
    index = desc.next;
  }
}

bool FakeBackEnd::serve_request(uint16_t head) {
  const std::vector<Buffer> buffers = chain(head);
  const auto header = load<vhost::BlkRequestHeader>(buffers.front().data);
  const auto type = static_cast<vhost::BlkRequestType>(header.type);
  uint32_t length = 1;
  for (size_t i = 1; i + 1 < buffers.size(); ++i) {
    if (!buffers[i].writable) continue;
    std::fill_n(buffers[i].data, buffers[i].length, kFill);
    length += buffers[i].length;
  }
  if (type == vhost::BlkRequestType::kDiscard || type == vhost::BlkRequestType::kWriteZeroes) {
    const std::lock_guard lock(mutex_);
    ranges_.push_back(load<vhost::BlkDiscardSegment>(buffers[1].data));
  }
  std::byte& status = *buffers.back().data;
  status = std::byte{0};
  switch (lie_ == Lie::kSilence ? Lie::kSilence : lie_.exchange(Lie::kNone)) {
    case Lie::kNone:
      use(head, length);
      break;
    case Lie::kIdOutOfRange:
      use(0xffff'fff0, length);
      break;
    case Lie::kIdNotInFlight:
      use(ring_.size - 1, length);
      break;
    case Lie::kUsedJump:
      use(head, length, 5000);
      break;
    case Lie::kLongLength:
      use(head, length + 1);
      break;
    case Lie::kShortRead:
      use(head, length - 1);
      break;
    case Lie::kNoStatus:
      status = std::byte{0xff};
      use(head, length);
      break;
    case Lie::kStrangeStatus:
      status = std::byte{77};
      use(head, length);
      break;
    case Lie::kUnsupported:
      status = std::byte{2};
      use(head, length);
      break;
    case Lie::kSilence:
      break;
    case Lie::kHangUp:
      return false;
  }
  return true;
}

void FakeBackEnd::use(uint32_t id, uint32_t length, uint16_t how_many) {
  std::byte* used = at(ring_.addresses.used);
  const vhost::SplitUsedElem element{.id = id, .len = length};
  std::memcpy(used + sizeof(vhost::SplitUsed) + ring_.used % ring_.size * sizeof(element), &element, sizeof(element));
  ring_.used = static_cast<uint16_t>(ring_.used + how_many);
  __atomic_store_n(reinterpret_cast<uint16_t*>(used) + 1, ring_.used, __ATOMIC_SEQ_CST);
  const uint64_t one = 1;
  CHECK(::write(ring_.call.get(), &one, sizeof(one)) == sizeof(one));
}

}  // namespace sluice::test
