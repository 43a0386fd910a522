#include "lib/bdev/virtio/front_end.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "lib/bdev/virtio/limits.h"

namespace sluice::virtio {
namespace {

using vhost::payload_bytes;
using vhost::Request;
using vhost::U64Payload;
using vhost::WireMessage;

constexpr uint64_t kWantedProtocolFeatures =
    vhost::kProtocolMq | vhost::kProtocolReplyAck | vhost::kProtocolBackendReq | vhost::kProtocolConfig;

}  // namespace

FrontEnd::FrontEnd(LwThread& thread, UniqueFd socket, Events& events)
    : thread_(thread),
      events_(events),
      connection_(std::move(socket), vhost::Incoming::kReplies),
      patience_("virtio_patience", [this] {
        timed_out_ = true;
        shut_down();
      }) {}

void FrontEnd::shut_down() {
  connection_.shut_down();
  if (backend_channel_ != nullptr) backend_channel_->shut_down();
}

Task<> FrontEnd::close() {
  shut_down();
  co_await gate_.close();
  if (connection_.thread() != nullptr) thread_.remove_source(connection_);
  if (backend_channel_ != nullptr && backend_channel_->thread() != nullptr) thread_.remove_source(*backend_channel_);
}

// --- Messages ---

Task<> FrontEnd::read_replies() {
  for (;;) {
    auto message = co_await connection_.read();
    // An answer that nobody waits for is one lie too many.
    if (!message || !asking_ || answer_) break;
    answer_ = std::move(*message);
    answered_.set();
  }
  end();
}

Task<> FrontEnd::read_backend_requests() {
  for (;;) {
    auto message = co_await backend_channel_->read();
    if (!message) break;
    if (message->header.request == static_cast<uint32_t>(vhost::BackendRequest::kConfigChangeMsg)) {
      events_.on_config_change();
    }
    if (!message->need_reply() || (protocol_features_ & vhost::kProtocolReplyAck) == 0) continue;
    const bool known = message->header.request == static_cast<uint32_t>(vhost::BackendRequest::kConfigChangeMsg);
    const U64Payload ack{.value = known ? 0U : 1U};
    const vhost::Header header{
        .request = message->header.request, .flags = vhost::kReplyFlags, .size = sizeof(U64Payload)};
    if (auto sent = co_await backend_channel_->write(header, payload_bytes(ack)); !sent) break;
  }
}

void FrontEnd::end() {
  if (std::exchange(lost_, true)) return;
  shut_down();
  answered_.set();
  events_.on_connection_lost();
}

Task<Result<WireMessage>> FrontEnd::exchange(Request request, uint32_t flags, std::span<const std::byte> payload,
                                             std::span<const int> fds) {
  CHECK(!asking_);
  const Result<> gone = fail(ECONNRESET, "the back end has closed the connection, or broken the protocol");
  if (lost_) co_return std::unexpected(gone.error());
  asking_ = true;
  patience_.arm_at(thread_, thread_.now_ns() + kAnswerNs);
  const vhost::Header header{.request = static_cast<uint32_t>(request),
                             .flags = vhost::kVersion | flags,
                             .size = static_cast<uint32_t>(payload.size())};
  Result<> sent = co_await connection_.write(header, payload, fds);
  if (sent) co_await answered_.wait();
  patience_.cancel();
  asking_ = false;
  std::optional<WireMessage> answer = std::exchange(answer_, std::nullopt);
  if (timed_out_) co_return fail(ETIMEDOUT, "the back end does not answer (it may be serving another front end)");
  if (!sent) co_return std::unexpected(sent.error());
  if (!answer) co_return std::unexpected(gone.error());
  if (answer->header.request != header.request) co_return fail(EPROTO, "the back end answers another question");
  co_return std::move(*answer);
}

Task<Result<>> FrontEnd::tell(Request request, std::span<const std::byte> payload, std::span<const int> fds) {
  if ((protocol_features_ & vhost::kProtocolReplyAck) == 0) {
    if (lost_) co_return fail(ECONNRESET, "the back end has closed the connection");
    const vhost::Header header{.request = static_cast<uint32_t>(request),
                               .flags = vhost::kVersion,
                               .size = static_cast<uint32_t>(payload.size())};
    co_return co_await connection_.write(header, payload, fds);
  }
  auto answer = co_await exchange(request, vhost::kNeedReplyFlag, payload, fds);
  if (!answer) co_return std::unexpected(answer.error());
  if (answer->payload.size() != sizeof(U64Payload)) co_return fail(EPROTO, "an acknowledgement has the wrong size");
  if (vhost::payload_of<U64Payload>(*answer).value != 0) {
    co_return fail(ECONNREFUSED, "the back end has refused a step of the set-up");
  }
  co_return Result<>{};
}

Task<Result<WireMessage>> FrontEnd::ask(Request request, std::span<const std::byte> payload) {
  return exchange(request, 0, payload, {});
}

Task<Result<uint64_t>> FrontEnd::ask_u64(Request request) {
  auto answer = co_await ask(request);
  if (!answer) co_return std::unexpected(answer.error());
  if (answer->payload.size() != sizeof(U64Payload)) co_return fail(EPROTO, "an answer has the wrong size");
  co_return vhost::payload_of<U64Payload>(*answer).value;
}

// --- The device ---

Task<Result<DeviceInfo>> FrontEnd::negotiate(uint32_t queue_size, bool packed_ring) {
  if (auto started = connection_.start(thread_); !started) co_return std::unexpected(started.error());
  CHECK(gate_.spawn(read_replies()));
  if (auto told = co_await tell(Request::kSetOwner, {}); !told) co_return std::unexpected(told.error());
  const auto offered = co_await ask_u64(Request::kGetFeatures);
  if (!offered) co_return std::unexpected(offered.error());
  if ((*offered & vhost::kFeatureProtocolFeatures) == 0)
    co_return fail(ENOTSUP, "the back end has no protocol features");
  const auto protocol = co_await ask_u64(Request::kGetProtocolFeatures);
  if (!protocol) co_return std::unexpected(protocol.error());
  if ((*protocol & vhost::kProtocolConfig) == 0) co_return fail(ENOTSUP, "the back end has no configuration space");
  const U64Payload accepted_protocol{*protocol & kWantedProtocolFeatures};
  if (auto told = co_await tell(Request::kSetProtocolFeatures, payload_bytes(accepted_protocol)); !told) {
    co_return std::unexpected(told.error());
  }
  protocol_features_ = accepted_protocol.value;

  uint64_t queues = 1;
  if ((protocol_features_ & vhost::kProtocolMq) != 0) {
    const auto counted = co_await ask_u64(Request::kGetQueueNum);
    if (!counted) co_return std::unexpected(counted.error());
    if (*counted == 0) co_return fail(EPROTO, "the back end has no queue");
    queues = *counted;
  }
  if (auto opened = co_await open_backend_channel(); !opened) co_return std::unexpected(opened.error());
  features_ = *offered & DeviceInfo::wanted_features();
  // Our packed rings hold indirect tables only.
  if (!packed_ring || (features_ & vhost::kFeatureIndirectDesc) == 0) features_ &= ~vhost::kFeatureRingPacked;
  auto device = co_await read_config(queue_size);
  if (!device) co_return device;
  if (!device->has(vhost::kBlkFeatureMq)) device->num_queues = UINT16_MAX;  // GET_QUEUE_NUM alone tells
  device->num_queues = static_cast<uint16_t>(std::min<uint64_t>(device->num_queues, queues));
  const U64Payload accepted{features_};
  if (auto told = co_await tell(Request::kSetFeatures, payload_bytes(accepted)); !told) {
    co_return std::unexpected(told.error());
  }
  co_return device;
}

Task<Result<DeviceInfo>> FrontEnd::read_config(uint32_t queue_size) {
  struct {
    vhost::ConfigHeader header{.offset = 0, .size = sizeof(vhost::BlkConfig), .flags = 0};
    vhost::BlkConfig config;
  } message;
  static_assert(sizeof(message) == vhost::config_message_size(sizeof(vhost::BlkConfig)));
  auto answer = co_await ask(Request::kGetConfig, payload_bytes(message));
  if (!answer) co_return std::unexpected(answer.error());
  if (answer->payload.size() != sizeof(message)) co_return fail(EPROTO, "the back end's configuration space is short");
  std::memcpy(&message, answer->payload.data(), sizeof(message));
  if (message.header.offset != 0 || message.header.size != sizeof(vhost::BlkConfig)) {
    co_return fail(EPROTO, "the back end answers with another part of its configuration space");
  }
  co_return DeviceInfo::parse(message.config, features_, queue_size);
}

// Through which the back end tells of a new capacity.
Task<Result<>> FrontEnd::open_backend_channel() {
  if ((protocol_features_ & vhost::kProtocolBackendReq) == 0) co_return Result<>{};
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()) != 0) {
    co_return fail_errno("cannot create a pair of sockets");
  }
  backend_channel_ = std::make_unique<vhost::Connection>(UniqueFd(ends[0]));
  const UniqueFd theirs(ends[1]);
  if (auto started = backend_channel_->start(thread_); !started) co_return started;
  CHECK(gate_.spawn(read_backend_requests()));
  const int fd = theirs.get();
  co_return co_await tell(Request::kSetBackendReqFd, {}, std::span(&fd, 1));
}

Task<Result<>> FrontEnd::start(const SharedMemory& memory, std::span<const std::unique_ptr<VirtioQueue>> queues,
                               const DeviceInfo& device) {
  struct {
    vhost::MemTableHeader header{.num_regions = 1};
    vhost::MemoryRegion region;
  } table{.region = memory.region()};
  static_assert(sizeof(table) == vhost::mem_table_size(1));
  const int fd = memory.fd();
  if (auto told = co_await tell(Request::kSetMemTable, payload_bytes(table), std::span(&fd, 1)); !told) co_return told;
  for (const auto& queue : queues) {
    queue->reset_ring(device);
    if (auto started = co_await start_queue(*queue); !started) co_return started;
  }
  for (const auto& queue : queues) {
    const vhost::VringState enabled{.index = queue->index(), .num = 1};
    if (auto told = co_await tell(Request::kSetVringEnable, payload_bytes(enabled)); !told) co_return told;
  }
  // Where nothing is acknowledged, the answer to a question tells that what came before it has been dealt with.
  if (auto fence = co_await ask_u64(Request::kGetFeatures); !fence) co_return std::unexpected(fence.error());
  co_return Result<>{};
}

Task<Result<>> FrontEnd::start_queue(const VirtioQueue& queue) {
  const vhost::VringState size{.index = queue.index(), .num = queue.size()};
  if (auto told = co_await tell(Request::kSetVringNum, payload_bytes(size)); !told) co_return told;
  const vhost::VringState base{.index = queue.index(), .num = queue.base()};
  if (auto told = co_await tell(Request::kSetVringBase, payload_bytes(base)); !told) co_return told;
  const vhost::VringAddr addresses = queue.addresses();
  if (auto told = co_await tell(Request::kSetVringAddr, payload_bytes(addresses)); !told) co_return told;
  const U64Payload index{queue.index()};
  const int call = queue.call_fd();
  if (auto told = co_await tell(Request::kSetVringCall, payload_bytes(index), std::span(&call, 1)); !told)
    co_return told;
  const int kick = queue.kick_fd();
  co_return co_await tell(Request::kSetVringKick, payload_bytes(index), std::span(&kick, 1));
}

}  // namespace sluice::virtio
