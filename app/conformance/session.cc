#include "app/conformance/session.h"

#include <unistd.h>

#include <algorithm>

namespace sluice::test {
namespace {

using vhost::Request;

constexpr uint64_t kIdentitySize = 16 << 20;

// The specification's size of the structure that UML sends whatever the number of regions.
constexpr size_t kUmlRegions = 2;

uint64_t wanted_protocol(Dialect dialect) {
  using namespace vhost;
  constexpr uint64_t kCommon = kProtocolMq | kProtocolReplyAck | kProtocolConfig;
  switch (dialect) {
    case Dialect::kQemu72:
    case Dialect::kQemu9:
      return (dialect == Dialect::kQemu9 ? kProtocolDeviceState : 0) | kCommon | kProtocolLogShmfd |
             kProtocolBackendReq | kProtocolBackendSendFd | kProtocolHostNotifier | kProtocolInflightShmfd |
             kProtocolConfigureMemSlots | kProtocolResetDevice | kProtocolStatus;
    case Dialect::kFirecracker:
      return kProtocolConfig;
    case Dialect::kCloudHypervisor:
      return kCommon | kProtocolConfigureMemSlots | kProtocolInflightShmfd | kProtocolLogShmfd | kProtocolBackendReq |
             kProtocolDeviceState;
    case Dialect::kLibblkio:
      return kCommon | kProtocolConfigureMemSlots;
    case Dialect::kUml:
      return kProtocolReplyAck | kProtocolBackendReq | kProtocolConfig;
    case Dialect::kSpdkInitiator:
      return kProtocolMq | kProtocolConfig;
  }
  return 0;
}

uint64_t unwanted_features(Dialect dialect) {
  return dialect == Dialect::kFirecracker ? vhost::kFeatureIndirectDesc | vhost::kBlkFeatureMq : 0;
}

}  // namespace

uint64_t driver_features() {
  using namespace vhost;
  return kFeatureVersion1 | kFeatureIndirectDesc | kFeatureEventIdx | kFeatureRingPacked | kFeatureProtocolFeatures |
         kBlkFeatureSizeMax | kBlkFeatureSegMax | kBlkFeatureRo | kBlkFeatureBlkSize | kBlkFeatureFlush |
         kBlkFeatureTopology | kBlkFeatureConfigWce | kBlkFeatureMq | kBlkFeatureDiscard | kBlkFeatureWriteZeroes;
}

const char* to_string(Dialect dialect) {
  switch (dialect) {
    case Dialect::kQemu72:
      return "Qemu72";
    case Dialect::kQemu9:
      return "Qemu9";
    case Dialect::kFirecracker:
      return "Firecracker";
    case Dialect::kCloudHypervisor:
      return "CloudHypervisor";
    case Dialect::kLibblkio:
      return "Libblkio";
    case Dialect::kUml:
      return "Uml";
    case Dialect::kSpdkInitiator:
      return "SpdkInitiator";
  }
  return "?";
}

Session::Session(SessionOptions options)
    : options_(std::move(options)),
      memory_(options_.dialect == Dialect::kLibblkio ? GuestMemory::identity(kIdentitySize)
                                                     : GuestMemory(options_.layout)) {}

bool Session::open(const std::string& path) {
  bool done = shake_hands(path);
  // Rings are there even if the back end is not, so that a failed test can go on to its end.
  if (queues_.empty() || (done && !opened_)) make_queues();
  opened_ = opened_ || done;
  return done;
}

bool Session::shake_hands(const std::string& path) {
  Deadline deadline(kTimeoutMs);
  for (;;) {
    if (!front_end_.connect(path)) return false;
    front_end_.acknowledge_everything(false);
    memory_sent_ = false;
    int before = front_end_.messages_sent();
    if (handshake()) return true;
    bool turned_away = front_end_.messages_sent() - before <= 2 && !front_end_.dead();
    if (!turned_away || deadline.passed()) return false;
    ::usleep(2000);
  }
}

bool Session::handshake() {
  switch (options_.dialect) {
    case Dialect::kQemu72:
    case Dialect::kQemu9:
      return handshake_qemu();
    case Dialect::kFirecracker:
      return handshake_firecracker();
    case Dialect::kCloudHypervisor:
      return handshake_cloud_hypervisor();
    case Dialect::kLibblkio:
    case Dialect::kSpdkInitiator:
      return handshake_features_first();
    case Dialect::kUml:
      return handshake_uml();
  }
  return false;
}

bool Session::start() {
  switch (options_.dialect) {
    case Dialect::kQemu72:
    case Dialect::kQemu9:
      return start_qemu();
    case Dialect::kFirecracker:
      return start_firecracker();
    case Dialect::kCloudHypervisor:
      return start_cloud_hypervisor();
    case Dialect::kLibblkio:
      return start_libblkio();
    case Dialect::kUml:
      return start_uml();
    case Dialect::kSpdkInitiator:
      return start_spdk();
  }
  return false;
}

bool Session::stop() {
  auto stop_rings = [this] { return for_each_queue([this](uint32_t i) { return stop_ring(i); }); };
  switch (options_.dialect) {
    case Dialect::kQemu72:
    case Dialect::kQemu9:
      // The guest resets the device, which arrives before the rings are stopped and must not reset them.
      if (has_protocol(vhost::kProtocolStatus) && !front_end_.set_u64(Request::kSetStatus, 0)) return false;
      return enable_all(false) && stop_rings();
    case Dialect::kCloudHypervisor:
      return enable_all(false) && stop_rings();
    case Dialect::kSpdkInitiator:
      return stop_rings();
    case Dialect::kFirecracker:
    case Dialect::kLibblkio:
    case Dialect::kUml:
      return true;
  }
  return false;
}

void Session::make_queues() {
  size_t count = options_.dialect == Dialect::kUml || options_.dialect == Dialect::kFirecracker
                     ? 1
                     : std::min<size_t>(options_.num_queues, max_queues_);
  queues_.clear();
  for (size_t i = 0; i < count; i++) {
    Queue queue;
    queue.ring = std::make_unique<RingDriver>(memory_, RingDriver::Options{.size = options_.queue_size,
                                                                           .packed = has(vhost::kFeatureRingPacked),
                                                                           .event_idx = has(vhost::kFeatureEventIdx),
                                                                           .start_index = options_.start_index});
    queue.blk = std::make_unique<BlkDriver>(memory_, *queue.ring);
    queue.base = queue.ring->base();
    queues_.push_back(std::move(queue));
  }
}

// ---- Handshakes

// Eventfds of its own; those of the rings replace them when the driver starts.
bool Session::send_spare_eventfds() {
  for (uint32_t i = 0; i < std::min<uint32_t>(options_.num_queues, max_queues_); i++) {
    RingDriver spare(memory_, {.size = 2});
    if (!send(Request::kSetVringCall, i, spare.call_fd()) || !send(Request::kSetVringErr, i, spare.err_fd()))
      return false;
  }
  return true;
}

bool Session::handshake_qemu() {
  return get_features() && get_protocol_features(wanted_protocol(options_.dialect)) && set_protocol_features() &&
         get_queue_num() && get_mem_slots() && send_backend_channel() && front_end_.command(Request::kSetOwner) &&
         get_features() && send_spare_eventfds() && read_config(57);
}

bool Session::handshake_firecracker() {
  return front_end_.command(Request::kSetOwner) && get_features() &&
         get_protocol_features(wanted_protocol(options_.dialect)) && set_protocol_features() &&
         read_config(sizeof(vhost::BlkConfig), 1);
}

bool Session::handshake_cloud_hypervisor() {
  if (!front_end_.command(Request::kSetOwner) || !get_features() ||
      !get_protocol_features(wanted_protocol(options_.dialect)) || !set_protocol_features())
    return false;
  front_end_.acknowledge_everything(has_protocol(vhost::kProtocolReplyAck));
  return get_queue_num() && read_config(sizeof(vhost::BlkConfig), 1);
}

bool Session::handshake_features_first() {
  if (!front_end_.command(Request::kSetOwner) || !get_features() || !set_features() ||
      !get_protocol_features(wanted_protocol(options_.dialect)))
    return false;
  if (!set_protocol_features()) return false;
  if (options_.dialect == Dialect::kSpdkInitiator)
    // It asks for all of the space; a case of its own is about back ends that have no more than the structure.
    return get_queue_num() && (read_config(vhost::kMaxConfigSize) || read_config(sizeof(vhost::BlkConfig)));
  front_end_.acknowledge_everything(true);
  return get_queue_num() && get_mem_slots() && read_config(sizeof(vhost::BlkConfig));
}

bool Session::handshake_uml() {
  if (!front_end_.command(Request::kSetOwner) || !get_features() ||
      !get_protocol_features(wanted_protocol(options_.dialect)))
    return false;
  // From here on it waits for everything, for the message that agrees to acknowledgements first of all.
  front_end_.acknowledge_everything(has_protocol(vhost::kProtocolReplyAck));
  if (!set_protocol_features() || !send_backend_channel()) return false;
  front_end_.acknowledge_everything(has_protocol(vhost::kProtocolReplyAck));
  for (uint32_t size = 8; size <= 52; size += 4)
    if (!read_config(size)) return false;
  return read_config(sizeof(vhost::BlkConfig));
}

// ---- Starts

bool Session::start_qemu() {
  auto calls = [this] {
    return for_each_queue([this](uint32_t i) { return send(Request::kSetVringCall, i, ring(i).call_fd()); });
  };
  auto status = [this](uint64_t value) {
    return !has_protocol(vhost::kProtocolStatus) || front_end_.set_u64(Request::kSetStatus, value);
  };
  constexpr uint64_t kDriverOk = 0xf;
  bool ready = set_features() && status(0xb) && exchange_inflight() && calls() && set_features() && status(0xb);
  if (!ready || !send_memory()) return false;
  bool rings = for_each_queue([this](uint32_t i) {
    return set_up_ring(i) && send(Request::kSetVringErr, i, ring(i).err_fd()) && connect_ring(i);
  });
  return rings && enable_all(true) && status(kDriverOk);
}

bool Session::start_firecracker() {
  if (!set_features() || !send_memory()) return false;
  auto& fe = front_end_;
  return for_each_queue([&](uint32_t i) { return fe.set_vring_num(i, ring(i).size()); }) &&
         for_each_queue([&](uint32_t i) {
           return fe.set_vring_addr(ring(i).vring_addr(i)) && fe.set_vring_base(i, base(i)) && connect_ring(i);
         }) &&
         enable_all(true);
}

bool Session::start_cloud_hypervisor() {
  auto& fe = front_end_;
  return set_features() && send_memory() &&
         for_each_queue([&](uint32_t i) { return fe.set_vring_num(i, ring(i).size()); }) && exchange_inflight() &&
         for_each_queue([&](uint32_t i) {
           return fe.set_vring_addr(ring(i).vring_addr(i)) && fe.set_vring_base(i, base(i)) && connect_ring(i);
         }) &&
         enable_all(true) && send_backend_channel();
}

bool Session::start_libblkio() {
  return send_memory() && for_each_queue([this](uint32_t i) {
           return set_up_ring(i) && send(Request::kSetVringKick, i, ring(i).kick_fd()) &&
                  send(Request::kSetVringCall, i, ring(i).call_fd()) && front_end_.set_vring_enable(i, true);
         });
}

bool Session::start_uml() {
  auto& fe = front_end_;
  return set_features() && send_memory() && for_each_queue([&](uint32_t i) {
           return send(Request::kSetVringCall, i, ring(i).call_fd()) && set_up_ring(i);
         }) &&
         for_each_queue([&](uint32_t i) {
           return send(Request::kSetVringKick, i, ring(i).kick_fd()) && fe.set_vring_enable(i, true);
         });
}

bool Session::start_spdk() {
  return for_each_queue([this](uint32_t i) { return send(Request::kSetVringCall, i, ring(i).call_fd()); }) &&
         for_each_queue([this](uint32_t i) { return front_end_.set_vring_enable(i, true); }) && send_memory() &&
         for_each_queue(
             [this](uint32_t i) { return set_up_ring(i) && send(Request::kSetVringKick, i, ring(i).kick_fd()); }) &&
         front_end_.fence();
}

// ---- Parts

bool Session::get_features() {
  auto features = front_end_.get_u64(Request::kGetFeatures);
  if (!features) return false;
  offered_ = *features;
  features_ = offered_ & driver_features() & ~unwanted_features(options_.dialect) & ~options_.leave_features;
  return true;
}

bool Session::set_features() { return front_end_.set_u64(Request::kSetFeatures, features_); }

bool Session::get_protocol_features(uint64_t wanted) {
  if ((offered_ & vhost::kFeatureProtocolFeatures) == 0) return true;
  auto features = front_end_.get_u64(Request::kGetProtocolFeatures);
  if (!features) return false;
  protocol_ = *features & wanted & ~options_.leave_protocol;
  return true;
}

bool Session::set_protocol_features() {
  if ((offered_ & vhost::kFeatureProtocolFeatures) == 0) return true;
  return front_end_.set_u64(Request::kSetProtocolFeatures, protocol_);
}

bool Session::get_queue_num() {
  if (!has_protocol(vhost::kProtocolMq)) return true;
  auto num = front_end_.get_u64(Request::kGetQueueNum);
  if (!num) return false;
  max_queues_ = static_cast<uint32_t>(*num);
  return true;
}

bool Session::get_mem_slots() {
  return !has_protocol(vhost::kProtocolConfigureMemSlots) || front_end_.get_u64(Request::kGetMaxMemSlots).has_value();
}

bool Session::read_config(uint32_t size, uint32_t flags) {
  auto bytes = front_end_.get_config(0, size, flags);
  if (!bytes) return false;
  std::memcpy(&config_, bytes->data(), std::min<size_t>(size, sizeof(config_)));
  return true;
}

// One message with need_reply if that was agreed, whatever the dialect does otherwise.
bool Session::acked(Request request, const Bytes& payload, std::span<const int> fds) {
  if (!has_protocol(vhost::kProtocolReplyAck)) return front_end_.command(request, payload, fds);
  front_end_.acknowledge_everything(true);
  bool done = front_end_.command(request, payload, fds);
  bool always = options_.dialect == Dialect::kCloudHypervisor || options_.dialect == Dialect::kLibblkio ||
                options_.dialect == Dialect::kUml;
  front_end_.acknowledge_everything(always);
  return done;
}

bool Session::send_backend_channel() {
  if (!has_protocol(vhost::kProtocolBackendReq)) return true;
  backend_channel_ = std::make_unique<BackendChannel>();
  bool sent = acked(Request::kSetBackendReqFd, {}, repeat(backend_channel_->remote.get(), 1));
  backend_channel_->remote.reset();
  return sent;
}

bool Session::exchange_inflight() {
  if (!has_protocol(vhost::kProtocolInflightShmfd)) return true;
  if (!inflight_fd_) {
    vhost::InflightDescription wanted{.num_queues = static_cast<uint16_t>(queues_.size()),
                                      .queue_size = options_.queue_size};
    auto reply = front_end_.query(Request::kGetInflightFd, bytes_of(wanted));
    if (!reply || !reply->as<vhost::InflightDescription>() || reply->fds.size() != 1) return false;
    inflight_ = *reply->as<vhost::InflightDescription>();
    inflight_fd_ = std::move(reply->fds.front());
  }
  return front_end_.command(Request::kSetInflightFd, bytes_of(inflight_), repeat(inflight_fd_.get(), 1));
}

bool Session::send_memory() {
  const auto& regions = memory_.regions();
  bool slots = has_protocol(vhost::kProtocolConfigureMemSlots);
  bool qemu = options_.dialect == Dialect::kQemu72 || options_.dialect == Dialect::kQemu9;
  if (options_.dialect == Dialect::kLibblkio || (qemu && slots)) {
    // Only differences are sent: nothing at the second start.
    for (size_t i = 0; i < regions.size() && !memory_sent_; i++)
      if (!acked(Request::kAddMemReg, mem_reg_payload(regions[i]), repeat(memory_.fd(), 1))) return false;
    memory_sent_ = true;
    return true;
  }
  Bytes payload = mem_table_payload(regions);
  if (options_.dialect == Dialect::kUml) payload.resize(std::max(payload.size(), vhost::mem_table_size(kUmlRegions)));
  memory_sent_ = true;
  return acked(Request::kSetMemTable, payload, repeat(memory_.fd(), regions.size()));
}

bool Session::set_up_ring(uint32_t i) {
  return front_end_.set_vring_num(i, ring(i).size()) && front_end_.set_vring_base(i, base(i)) &&
         front_end_.set_vring_addr(ring(i).vring_addr(i));
}

bool Session::connect_ring(uint32_t i) {
  bool kick_first = options_.dialect == Dialect::kQemu72 || options_.dialect == Dialect::kQemu9;
  if (kick_first)
    return send(Request::kSetVringKick, i, ring(i).kick_fd()) && send(Request::kSetVringCall, i, ring(i).call_fd());
  return send(Request::kSetVringCall, i, ring(i).call_fd()) && send(Request::kSetVringKick, i, ring(i).kick_fd());
}

bool Session::stop_ring(uint32_t i) {
  auto base = front_end_.get_vring_base(i);
  if (!base) return false;
  queues_[i].base = *base;
  return true;
}

bool Session::enable_all(bool on) {
  if (!has(vhost::kFeatureProtocolFeatures)) return true;
  const auto count = static_cast<uint32_t>(queues_.size());
  for (uint32_t i = 0; i < count; i++) {
    bool waits = options_.dialect == Dialect::kQemu9 && i + 1 == count;
    Bytes payload = bytes_of(vhost::VringState{i, on ? 1U : 0U});
    bool sent = waits ? acked(Request::kSetVringEnable, payload) : front_end_.set_vring_enable(i, on);
    if (!sent) return false;
  }
  return true;
}

}  // namespace sluice::test
