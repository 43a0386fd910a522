// Session: the messages about moving the guest to another host: the log of written pages, the device's state, its
// status.
#include "lib/vhost/device_state.h"
#include "lib/vhost/session.h"
#include "lib/vhost/state_channel.h"

namespace sluice::vhost {
namespace {

constexpr uint32_t kSaveState = 0;
constexpr uint32_t kLoadState = 1;
constexpr uint32_t kPhaseStopped = 0;

// Of SET_DEVICE_STATE_FD: "Bits 0-7 are 0 on success. Bit 8 is the invalid FD flag": we never send a descriptor back.
constexpr uint64_t kStateAccepted = kVringNoFdFlag;
constexpr uint64_t kStateRefused = kVringNoFdFlag | 1;

}  // namespace

// --- The log of written pages ---

// Answered even without need_reply, once nothing is marked in the former log any more: the front end reads that next. A
// refusal has no form that QEMU would notice, so one that does not ask for an acknowledgement ends the session.
Task<Session::Outcome> Session::set_log_base(WireMessage& message) {
  if ((protocol_features_ & kProtocolLogShmfd) == 0)
    co_return Outcome{.result = fail(EINVAL, "LOG_SHMFD was not negotiated")};
  if (message.fds.size() != 1) co_return Outcome{.result = fail(EINVAL, "a dirty log needs one descriptor")};
  auto log = DirtyLog::map(message.fds[0], payload_of<LogDescription>(message));
  if (!log) co_return Outcome{.result = std::unexpected(log.error())};
  report_overrun();
  log_ = std::move(*log);
  co_await use_log();
  co_return Outcome::answer(U64Payload{0});
}

// An eventfd that would tell the front end of each change of the log. It looks by itself, so this one is only closed.
Task<Session::Outcome> Session::set_log_fd(WireMessage& message) {
  if (message.fds.size() != 1) co_return Outcome{.result = fail(EINVAL, "the log's eventfd is missing")};
  co_return Outcome{};
}

std::shared_ptr<DirtyLog> Session::log_in_use() const { return (features_ & kFeatureLogAll) != 0 ? log_ : nullptr; }

Task<> Session::use_log() {
  co_await for_each_queue([log = log_in_use()](BlkQueue& queue) { queue.set_log(log); });
}

void Session::report_overrun() {
  if (log_ == nullptr || !log_->overrun()) return;
  if (uint64_t held_back = 0; log_limiter_.allow(thread_.now_ns(), held_back)) {
    log(LogLevel::kWarning, LogFlag::kVhost,
        "controller {}: session {}: the dirty log, {} bytes, had no room for all that was written: a guest that was "
        "migrated with it is damaged; the front end must size it by the highest guest address ({} such lines held "
        "back)",
        device_.name(), id_, log_->size_bytes(), held_back);
  }
}

// --- The device's state ---

Task<Session::Outcome> Session::set_device_state_fd(WireMessage& message) {
  Outcome outcome = Outcome::answer(U64Payload{kStateAccepted});
  outcome.result = co_await transfer_state(message);
  if (!outcome.result) outcome.set_reply(U64Payload{kStateRefused});
  co_return outcome;
}

Task<Result<>> Session::transfer_state(WireMessage& message) {
  const auto [direction, phase] = payload_of<DeviceStateTransfer>(message);
  loading_.reset();
  saved_ = fail(EINVAL, "no device state was transferred");
  if ((protocol_features_ & kProtocolDeviceState) == 0) co_return fail(EINVAL, "DEVICE_STATE was not negotiated");
  if (message.fds.size() != 1) co_return fail(EINVAL, "a device state needs one descriptor");
  if (direction > kLoadState || phase != kPhaseStopped)
    co_return fail(EINVAL, "a device state has an unknown direction or phase");
  bool busy = false;
  co_await for_each_queue([&busy](BlkQueue& queue) { busy |= queue.running() || queue.in_flight() > 0; });
  if (busy) co_return fail(EBUSY, "a device state is transferred only while all rings are stopped");
  auto channel = StateChannel::open(std::move(message.fds[0]));
  if (!channel) co_return std::unexpected(channel.error());
  if (direction == kSaveState) {
    const BlkConfig config = device_.config(writeback_);
    saved_ = channel->write(encode({.capacity = config.capacity,
                                    .block_size = config.blk_size,
                                    .readonly = device_.readonly(),
                                    .writeback = writeback_}));
    co_return saved_;
  }
  loading_ = std::make_unique<StateReader>(std::move(*channel));
  co_return loading_->start(thread_);
}

Task<Session::Outcome> Session::check_device_state(WireMessage&) {
  Outcome outcome = Outcome::answer(U64Payload{0});
  outcome.result = loading_ != nullptr ? co_await load_state() : saved_;
  if (!outcome.result) outcome.set_reply(U64Payload{1});
  loading_.reset();
  saved_ = fail(EINVAL, "no device state was transferred");
  co_return outcome;
}

Task<Result<>> Session::load_state() {
  auto bytes = co_await loading_->finish(thread_.now_ns() + kStateTimeoutNs);
  if (!bytes) co_return std::unexpected(bytes.error());
  auto state = decode(*bytes);
  if (!state) co_return std::unexpected(state.error());
  const BlkConfig config = device_.config(writeback_);
  if (state->block_size != config.blk_size) co_return fail(EINVAL, "the disk here has another block size");
  if (state->capacity > config.capacity) co_return fail(EINVAL, "the disk here is smaller");
  if (!state->readonly && device_.readonly()) co_return fail(EROFS, "the disk here is read-only");
  writeback_ = state->writeback;
  co_await for_each_queue([on = write_through()](BlkQueue& queue) { queue.set_write_through(on); });
  co_return Result<>{};
}

// --- Status ---

Task<Session::Outcome> Session::get_status(WireMessage&) {
  if ((protocol_features_ & kProtocolStatus) == 0)
    co_return Outcome{.result = fail(EINVAL, "STATUS was not negotiated"), .has_reply = true};
  co_return Outcome::answer(U64Payload{status_});
}

// 0 is not a reset of the rings: QEMU sends it first when it stops them, and asks for their bases afterwards.
Task<Session::Outcome> Session::set_status(WireMessage& message) {
  if ((protocol_features_ & kProtocolStatus) == 0)
    co_return Outcome{.result = fail(EINVAL, "STATUS was not negotiated")};
  const uint64_t status = payload_of<U64Payload>(message).value;
  if (status > UINT8_MAX) co_return Outcome{.result = fail(EINVAL, "a device status has 8 bits")};
  status_ = status;
  co_return Outcome{};
}

}  // namespace sluice::vhost
