#include "lib/vhost/session.h"

#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "lib/base/descriptor_room.h"
#include "lib/vhost/passed_fd.h"
#include "lib/vhost/state_channel.h"

namespace sluice::vhost {
namespace {

constexpr uint64_t kOfferedProtocolFeatures =
    kProtocolMq | kProtocolReplyAck | kProtocolConfig | kProtocolBackendReq | kProtocolInflightShmfd |
    kProtocolConfigureMemSlots | kProtocolResetDevice | kProtocolLogShmfd | kProtocolDeviceState | kProtocolStatus;

}  // namespace

// What a message must look like before its handler sees it. A request without a handler is refused.
struct Session::Rule {
  Handler handler = nullptr;
  size_t min_payload = 0;
  size_t max_payload = 0;
  size_t max_fds = 0;
  // Not supported, and the front end would wait for a reply of a form of its own: the session has to end.
  bool unanswerable = false;
};

const std::array<Session::Rule, kMaxRequest + 1>& Session::rules() {
  static const auto table = [] {
    std::array<Rule, kMaxRequest + 1> rules{};
    const auto at = [&rules](Request request) -> Rule& { return rules[static_cast<size_t>(request)]; };
    const auto fixed = [&at](Request request, Handler handler, size_t payload, size_t fds = 0) {
      at(request) = {.handler = handler, .min_payload = payload, .max_payload = payload, .max_fds = fds};
    };
    fixed(Request::kGetFeatures, &Session::get_features, 0);
    fixed(Request::kSetFeatures, &Session::set_features, sizeof(U64Payload));
    fixed(Request::kGetProtocolFeatures, &Session::get_protocol_features, 0);
    fixed(Request::kSetProtocolFeatures, &Session::set_protocol_features, sizeof(U64Payload));
    fixed(Request::kSetOwner, &Session::accept_silently, 0);
    fixed(Request::kResetOwner, &Session::accept_silently, 0);
    fixed(Request::kGetQueueNum, &Session::get_queue_num, 0);
    fixed(Request::kGetMaxMemSlots, &Session::get_max_mem_slots, 0);
    at(Request::kSetMemTable) = {&Session::set_mem_table, sizeof(MemTableHeader), kMaxPayloadSize, kMaxRegions};
    fixed(Request::kAddMemReg, &Session::add_mem_reg, sizeof(SingleMemoryRegion), 1);
    // The descriptor of a region that is removed is superfluous, but front ends send it.
    fixed(Request::kRemMemReg, &Session::rem_mem_reg, sizeof(SingleMemoryRegion), 1);
    fixed(Request::kSetVringNum, &Session::set_vring_num, sizeof(VringState));
    fixed(Request::kSetVringAddr, &Session::set_vring_addr, sizeof(VringAddr));
    fixed(Request::kSetVringBase, &Session::set_vring_base, sizeof(VringState));
    fixed(Request::kGetVringBase, &Session::get_vring_base, sizeof(VringState));
    fixed(Request::kSetVringKick, &Session::set_vring_kick, sizeof(U64Payload), 1);
    fixed(Request::kSetVringCall, &Session::set_vring_call, sizeof(U64Payload), 1);
    fixed(Request::kSetVringErr, &Session::set_vring_err, sizeof(U64Payload), 1);
    fixed(Request::kSetVringEnable, &Session::set_vring_enable, sizeof(VringState));
    fixed(Request::kSetBackendReqFd, &Session::set_backend_req_fd, 0, 1);
    // Any size: what does not fit the configuration space is answered as an error.
    at(Request::kGetConfig) = {&Session::get_config, sizeof(ConfigHeader), kMaxPayloadSize};
    at(Request::kSetConfig) = {&Session::set_config, sizeof(ConfigHeader), kMaxPayloadSize};
    fixed(Request::kResetDevice, &Session::reset_device, 0);
    fixed(Request::kGetInflightFd, &Session::get_inflight_fd, sizeof(InflightDescription));
    fixed(Request::kSetInflightFd, &Session::set_inflight_fd, sizeof(InflightDescription), 1);
    fixed(Request::kSetLogBase, &Session::set_log_base, sizeof(LogDescription), 1);
    fixed(Request::kSetLogFd, &Session::set_log_fd, 0, 1);
    fixed(Request::kSetDeviceStateFd, &Session::set_device_state_fd, sizeof(DeviceStateTransfer), 1);
    fixed(Request::kCheckDeviceState, &Session::check_device_state, 0);
    fixed(Request::kGetStatus, &Session::get_status, 0);
    fixed(Request::kSetStatus, &Session::set_status, sizeof(U64Payload));
    for (const Request request : {Request::kCreateCryptoSession, Request::kPostcopyAdvise, Request::kGetSharedObject,
                                  Request::kGetShmemConfig, Request::kGetVringBaseSkipDrain}) {
      at(request).unanswerable = true;
    }
    return rules;
  }();
  return table;
}

Session::Session(uint64_t id, LwThread& thread, const BlkDevice& device, std::vector<QueuePlace> places,
                 const Coalescing& coalescing, UniqueFd socket, LogLimiter& log_limiter)
    : id_(id),
      thread_(thread),
      device_(device),
      places_(std::move(places)),
      coalescing_(coalescing),
      log_limiter_(log_limiter),
      connection_(std::move(socket)) {}

Task<> Session::run() {
  Result<> going = connection_.start(thread_);
  while (going) {
    if (budget_ == 0) {
      co_await next_turn();
      budget_ = kMessageBudget;
    }
    --budget_;
    auto message = co_await connection_.read();
    if (!message) {
      going = std::unexpected(message.error());
      break;
    }
    going = co_await handle(*message);
  }
  if (going.error().code == ECANCELED) {
    rested_.set();
    co_await leave_.wait();
    state_ = co_await state_to_leave();
    log(LogLevel::kInfo, LogFlag::kVhost, "controller {}: session {} is handed over", device_.name(), id_);
  } else if (going.error().code == ECONNRESET) {
    log(LogLevel::kInfo, LogFlag::kVhost, "controller {}: session {} ends: {}", device_.name(), id_,
        going.error().what);
  } else if (uint64_t held_back = 0; log_limiter_.allow(thread_.now_ns(), held_back)) {
    log(LogLevel::kWarning, LogFlag::kVhost, "controller {}: session {} ends: {} ({} such lines held back)",
        device_.name(), id_, going.error().what, held_back);
  }
  co_await tear_down();
}

Session::~Session() = default;

Task<Result<>> Session::handle(WireMessage& message) {
  log(LogLevel::kDebug, LogFlag::kVhost, "controller {}: session {}: message {}, flags {:#x}, {} bytes, {} descriptors",
      device_.name(), id_, message.header.request, message.header.flags, message.header.size, message.fds.size());
  // Before the handler runs: SET_PROTOCOL_FEATURES that brings REPLY_ACK is itself to be acknowledged (UML waits for
  // it).
  bool acknowledge = message.need_reply() && (protocol_features_ & kProtocolReplyAck) != 0;
  // What nobody knows and nobody waits for does no harm: it is passed over.
  bool harmless = true;
  Outcome outcome{.result = fail(EOPNOTSUPP, "the message is not supported")};
  if (message.header.request <= kMaxRequest) {
    const Rule& rule = rules()[message.header.request];
    if (rule.unanswerable) co_return fail(EPROTO, "a message that was not negotiated wants an answer");
    if (rule.handler != nullptr) {
      harmless = false;
      if (message.header.size < rule.min_payload || message.header.size > rule.max_payload)
        co_return fail(EPROTO, "a message has the wrong size");
      if (message.fds.size() > rule.max_fds) {
        outcome.result = fail(EPROTO, "a message has too many descriptors");
      } else {
        outcome = co_await (this->*rule.handler)(message);
      }
    }
  }
  message.fds.clear();
  if (message.request() == Request::kSetProtocolFeatures && message.need_reply())
    acknowledge |= (protocol_features_ & kProtocolReplyAck) != 0;

  if (!outcome.result) {
    if (uint64_t held_back = 0; log_limiter_.allow(thread_.now_ns(), held_back)) {
      log(LogLevel::kWarning, LogFlag::kVhost,
          "controller {}: session {}: message {} is refused: {} ({} such lines held back)", device_.name(), id_,
          message.header.request, outcome.result.error().what, held_back);
    }
  }
  if (outcome.has_reply && (outcome.result || !outcome.reply.empty())) {
    const Header header{
        .request = message.header.request, .flags = kReplyFlags, .size = static_cast<uint32_t>(outcome.reply.size())};
    const int fd = outcome.fd.get();
    co_return co_await connection_.write(header, outcome.reply, std::span(&fd, outcome.fd ? 1 : 0));
  }
  if (!outcome.result) {
    // A front end that waits for a reply gets a refusal; one that does not could not know, and must not go on.
    if (!harmless && (outcome.has_reply || !acknowledge)) co_return outcome.result;
  }
  if (!acknowledge) co_return Result<>{};
  const Header header{.request = message.header.request, .flags = kReplyFlags, .size = sizeof(U64Payload)};
  const U64Payload ack{.value = outcome.result ? 0U : 1U};
  co_return co_await connection_.write(header, std::as_bytes(std::span(&ack, 1)));
}

Task<> Session::tear_down() {
  rested_.set();
  if (connection_.thread() != nullptr) thread_.remove_source(connection_);
  loading_.reset();
  co_await for_each_queue([](BlkQueue& queue) { return queue.end(); });
  report_overrun();
  co_await visitors_.close();
  for (auto& queue : queues_) {
    if (queue != nullptr) co_await run_on(queue->owner(), [&queue] { queue.reset(); });
  }
}

Task<> Session::detach_bdev() {
  for (QueuePlace& place : places_) place.channel = nullptr;
  if (!visitors_.enter()) co_return;  // the session has ended: nothing is in flight
  co_await for_each_queue([](BlkQueue& queue) { return queue.detach_bdev(); });
  visitors_.leave();
}

Task<> Session::set_channels(const std::vector<BdevChannel*>& channels) {
  if (!visitors_.enter()) co_return;
  held_ = true;
  co_await for_each_queue([](BlkQueue& queue) { queue.hold(); });
  co_await for_each_queue([](BlkQueue& queue) { return queue.stop(); });
  for (size_t i = 0; i < places_.size(); ++i) places_[i].channel = channels[i];
  co_await go_on();
  visitors_.leave();
}

Task<> Session::go_on() {
  held_ = false;
  for (const auto& queue : queues_) {
    if (queue == nullptr) continue;
    co_await run_on(queue->owner(), [&queue = *queue, setup = setup(*queue)] { return queue.resume(setup); });
  }
}

Task<Result<>> Session::take_over(SessionState state) {
  if ((state.features & ~device_.features()) != 0 || (state.protocol_features & ~kOfferedProtocolFeatures) != 0)
    co_return fail(ENOTSUP, "a front end has negotiated a feature that is not offered here");
  features_ = state.features;
  protocol_features_ = state.protocol_features;
  rings_enabled_ = state.rings_enabled;
  writeback_ = state.writeback;
  backend_channel_ = std::move(state.backend_channel);
  memory_ = std::move(state.memory);
  status_ = state.status;
  inflight_ = std::move(state.inflight);
  log_ = std::move(state.log);
  held_ = true;
  for (RingState& ring : state.rings) {
    if (ring.index >= kMaxQueues) co_return fail(ENOTSUP, "a front end has more queues than there are here");
    if (queues_[ring.index] == nullptr) co_await make_queue(ring.index);
    BlkQueue& taken = *queues_[ring.index];
    co_await run_on(taken.owner(), [&taken, &ring] { taken.take_over(std::move(ring)); });
  }
  co_return Result<>{};
}

Task<> Session::rest() {
  if (!visitors_.enter()) co_return;
  connection_.pause();
  co_await rested_.wait();
  visitors_.leave();
}

Task<SessionState> Session::state_to_leave() {
  thread_.remove_source(connection_);
  SessionState state{.socket = connection_.take_socket(),
                     .features = features_,
                     .protocol_features = protocol_features_,
                     .rings_enabled = rings_enabled_,
                     .writeback = writeback_,
                     .status = status_,
                     .backend_channel = std::move(backend_channel_),
                     .memory = memory_,
                     .inflight = inflight_,
                     .log = log_,
                     .rings = {}};
  co_await for_each_queue([](BlkQueue& queue) { queue.hold(); });
  for (const auto& queue : queues_) {
    if (queue == nullptr) continue;
    state.rings.push_back(co_await run_on(queue->owner(), [&queue = *queue] { return queue.give_up(); }));
  }
  co_return state;
}

Task<> Session::set_coalescing(Coalescing coalescing) {
  coalescing_ = coalescing;
  if (!visitors_.enter()) co_return;  // the queues are going
  co_await for_each_queue([&coalescing](BlkQueue& queue) { queue.set_coalescing(coalescing); });
  visitors_.leave();
}

void Session::notify_config_change() {
  if (!backend_channel_) return;
  // Without need_reply, and without waiting for anything: the front end answers with a GET_CONFIG, from inside its
  // handler, which could not be served while this waited.
  const Header header{.request = static_cast<uint32_t>(BackendRequest::kConfigChangeMsg), .flags = kVersion, .size = 0};
  if (::send(backend_channel_.get(), &header, sizeof(header), MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof(header)) {
    log(LogLevel::kWarning, LogFlag::kVhost,
        "controller {}: session {}: the front end could not be told of the new capacity: {}", device_.name(), id_,
        std::strerror(errno));
  }
}

Task<SessionInfo> Session::info() {
  SessionInfo info{.id = id_};
  if (!visitors_.enter()) co_return info;
  co_await for_each_queue([&info, packed = (features_ & kFeatureRingPacked) != 0](BlkQueue& queue) {
    info.started |= queue.running();
    info.in_flight += queue.in_flight();
    info.queues.push_back({.index = queue.index(),
                           .running = queue.running(),
                           .fault = queue.fault(),
                           .size = queue.size(),
                           .packed = packed,
                           .in_flight = queue.in_flight(),
                           .stats = queue.stats(),
                           .thread_id = queue.owner().id()});
  });
  visitors_.leave();
  co_return info;
}

Task<BlkQueue*> Session::queue(uint32_t index) {
  if (index >= kMaxQueues) co_return nullptr;
  if (queues_[index] == nullptr) {
    // Each may have three descriptors. Who has a few queues already gets no more when many are in use by others.
    const auto made = std::ranges::count_if(queues_, [](const auto& other) { return other != nullptr; });
    if (made >= kFewQueues && next_descriptor_room(connection_.fd()) != DescriptorRoom::kPlenty) co_return nullptr;
    co_await make_queue(index);
  }
  co_return queues_[index].get();
}

Task<> Session::make_queue(uint32_t index) {
  std::unique_ptr<BlkQueue>& queue = queues_[index];
  LwThread& owner = *places_[index % places_.size()].thread;
  const Coalescing coalescing = coalescing_;
  queue = co_await run_on(owner, [this, index, &owner, &coalescing] {
    return std::make_unique<BlkQueue>(index, owner, device_, coalescing, log_limiter_);
  });
  if (coalescing_ != coalescing) {  // changed meanwhile, for those queues that there were
    co_await run_on(owner, [&queue, present = coalescing_] { queue->set_coalescing(present); });
  }
  if (held_) co_await run_on(owner, [&queue] { queue->hold(); });
}

BlkQueue::Setup Session::setup(const BlkQueue& queue) const {
  return {.map = memory_,
          .inflight = inflight_,
          .features = features_,
          .channel = places_[queue.index() % places_.size()].channel,
          .log = log_in_use(),
          .write_through = write_through(),
          .enabled_by_default = rings_enabled_};
}

// Starts or stops a ring, as its state now demands.
Task<> Session::update(BlkQueue& queue) {
  co_await run_on(queue.owner(), [&queue, setup = setup(queue)] { return queue.update(setup); });
}

Task<> Session::update_all() {
  for (const auto& queue : queues_) {
    if (queue != nullptr) co_await update(*queue);
  }
}

// "The device MUST flush before it completes a write" when the driver cannot ask for a flush: it has accepted neither
// FLUSH nor CONFIG_WCE, or has turned the write cache off.
bool Session::write_through() const {
  if ((features_ & kBlkFeatureConfigWce) != 0) return !writeback_;
  return (features_ & kBlkFeatureFlush) == 0;
}

// --- Negotiation ---

Task<Session::Outcome> Session::accept_silently(WireMessage&) { co_return Outcome{}; }

Task<Session::Outcome> Session::get_features(WireMessage&) {
  co_return Outcome::answer(U64Payload{device_.features()});
}

Task<Session::Outcome> Session::set_features(WireMessage& message) {
  const uint64_t features = payload_of<U64Payload>(message).value;
  if ((features & ~device_.features()) != 0) co_return Outcome{.result = fail(EINVAL, "a feature was not offered")};
  // A driver that can switch the cache but not flush it: "the device MUST initialize writeback to 0".
  constexpr uint64_t kCache = kBlkFeatureConfigWce | kBlkFeatureFlush;
  if ((features & kCache) == kBlkFeatureConfigWce && (features_ & kCache) != kBlkFeatureConfigWce) writeback_ = false;
  features_ = features;
  if ((features & kFeatureProtocolFeatures) == 0) rings_enabled_ = true;
  // The ring's format cannot change under way: of a running ring only what concerns requests is taken over.
  co_await for_each_queue([on = write_through()](BlkQueue& queue) { queue.set_write_through(on); });
  co_await use_log();
  co_await update_all();
  co_return Outcome{};
}

Task<Session::Outcome> Session::get_protocol_features(WireMessage&) {
  co_return Outcome::answer(U64Payload{kOfferedProtocolFeatures});
}

Task<Session::Outcome> Session::set_protocol_features(WireMessage& message) {
  const uint64_t features = payload_of<U64Payload>(message).value;
  protocol_features_ = features & kOfferedProtocolFeatures;
  if (features != protocol_features_) co_return Outcome{.result = fail(EINVAL, "a protocol feature was not offered")};
  co_return Outcome{};
}

Task<Session::Outcome> Session::get_queue_num(WireMessage&) { co_return Outcome::answer(U64Payload{kMaxQueues}); }

Task<Session::Outcome> Session::get_max_mem_slots(WireMessage&) { co_return Outcome::answer(U64Payload{kMaxMemSlots}); }

Task<Session::Outcome> Session::set_backend_req_fd(WireMessage& message) {
  if ((protocol_features_ & kProtocolBackendReq) == 0)
    co_return Outcome{.result = fail(EINVAL, "BACKEND_REQ was not negotiated")};
  if (message.fds.size() != 1) co_return Outcome{.result = fail(EINVAL, "the back-end channel needs one descriptor")};
  if (auto taken = accept_channel(message.fds[0]); !taken) co_return Outcome{.result = taken};
  backend_channel_ = std::move(message.fds[0]);
  co_return Outcome{};
}

// --- Configuration space ---

Task<Session::Outcome> Session::get_config(WireMessage& message) {
  const auto request = payload_of<ConfigHeader>(message);
  const BlkConfig config = device_.config(writeback_);
  std::array<std::byte, kMaxConfigSize> space{};
  std::memcpy(space.data(), &config, sizeof(config));
  if (request.size > kMaxConfigSize || request.offset > kMaxConfigSize - request.size ||
      message.payload.size() != config_message_size(request.size)) {
    co_return Outcome{.reply = {}, .has_reply = true};  // "a zero-length payload indicates an error"
  }
  Outcome answer = Outcome::answer(request);
  answer.reply.insert(answer.reply.end(), space.begin() + request.offset,
                      space.begin() + request.offset + request.size);
  co_return answer;
}

Task<Session::Outcome> Session::set_config(WireMessage& message) {
  const auto request = payload_of<ConfigHeader>(message);
  if (request.size > kMaxConfigSize || message.payload.size() != config_message_size(request.size))
    co_return Outcome{.result = fail(EINVAL, "a configuration write is shorter than it says")};
  if (request.offset != offsetof(BlkConfig, writeback) || request.size != 1)
    co_return Outcome{.result = fail(EINVAL, "only the write cache setting can be written")};
  const auto value = static_cast<uint8_t>(message.payload[sizeof(ConfigHeader)]);
  if (value > 1) co_return Outcome{.result = fail(EINVAL, "the write cache setting is 0 or 1")};
  writeback_ = value == 1;
  co_await for_each_queue([on = write_through()](BlkQueue& queue) { queue.set_write_through(on); });
  co_return Outcome{};
}

// The device as after a connection, but for its memory and what was negotiated of the protocol.
Task<Session::Outcome> Session::reset_device(WireMessage&) {
  co_await for_each_queue([](BlkQueue& queue) -> Task<> {
    co_await queue.stop();
    queue.reset();
  });
  features_ = 0;
  rings_enabled_ = false;
  writeback_ = true;
  status_ = 0;
  inflight_.reset();
  co_return Outcome{};
}

}  // namespace sluice::vhost
