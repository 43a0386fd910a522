// Session: a whole front end (connection, guest memory, virtqueues) that speaks in the order of a real one.
//
// Each Dialect sends the messages that the named program sends, in its order, with its sizes, flags and omissions.
// Steps return false when the back end does not play along; error() says at what.
//
// Thread: any one at a time; every wait has a deadline.
// Source: Vhost-user Protocol, "Front-end message types", "Ring states"; the orders are those of the programs' own
// traces.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "app/conformance/blk_driver.h"
#include "app/conformance/front_end.h"
#include "app/conformance/guest_memory.h"
#include "app/conformance/ring_driver.h"

namespace sluice::test {

enum class Dialect {
  kQemu72,           // SET_OWNER late, SET_FEATURES twice, calls before memory; enables queues it never set up
  kQemu9,            // the same, but waits for memory, addresses and enabling
  kFirecracker,      // CONFIG only, no acks, 60 bytes of configuration with flags 1
  kCloudHypervisor,  // acks everything, all sizes first, addresses before bases, back-end channel last
  kLibblkio,  // SET_FEATURES before protocol features, memory by ADD_MEM_REG at its own addresses, kick before call
  kUml,       // need_reply on SET_PROTOCOL_FEATURES, fixed-size memory table, one queue
  kSpdkInitiator,  // SET_FEATURES before protocol features, enables before memory and kick, no acks
};
inline constexpr Dialect kAllDialects[] = {Dialect::kQemu72,          Dialect::kQemu9,    Dialect::kFirecracker,
                                           Dialect::kCloudHypervisor, Dialect::kLibblkio, Dialect::kUml,
                                           Dialect::kSpdkInitiator};
const char* to_string(Dialect dialect);

struct SessionOptions {
  Dialect dialect = Dialect::kQemu72;
  uint16_t num_queues = 1;  // that the driver uses; capped by what the back end has
  uint16_t queue_size = 128;
  uint64_t leave_features = 0;  // not to be negotiated, though offered
  uint64_t leave_protocol = 0;
  uint16_t start_index = 0;  // of new rings: see RingDriver::Options
  std::vector<vhost::MemoryRegion> layout = GuestMemory::default_layout();
};

class Session {
 public:
  explicit Session(SessionOptions options = {});

  // Connects, and shakes hands as the program does when it creates the device. A back end that is still busy with the
  // last connection may close this one: that is tried again until the deadline.
  bool open(const std::string& path);
  // What it does when the guest's driver starts: features, memory, rings. Again after stop(), rings go on.
  bool start();
  // What it does when the driver stops, as far as it does anything.
  bool stop();
  bool open_and_start(const std::string& path) { return open(path) && start(); }
  void close() { front_end_.channel().close(); }

  // ---- Parts of it, for tests that do it their own way
  bool send_memory();                 // by the dialect's message
  bool set_up_ring(uint32_t index);   // NUM, BASE, ADDR
  bool connect_ring(uint32_t index);  // CALL, KICK: starts it
  bool stop_ring(uint32_t index);     // GET_VRING_BASE, which becomes the base of the next start
  bool start_ring(uint32_t index) { return set_up_ring(index) && connect_ring(index); }
  bool enable_all(bool on);

  FrontEnd& front_end() { return front_end_; }
  GuestMemory& memory() { return memory_; }
  size_t num_queues() const { return queues_.size(); }  // in use
  uint32_t max_queues() const { return max_queues_; }   // of the back end; 1 if it has no MQ
  RingDriver& ring(size_t i = 0) { return *queues_[i].ring; }
  BlkDriver& blk(size_t i = 0) { return *queues_[i].blk; }
  uint32_t base(size_t i = 0) const { return queues_[i].base; }
  void set_base(size_t i, uint32_t base) { queues_[i].base = base; }
  // The guest's driver begins anew with this ring. As it has reset the device, the next start() is with a new buffer
  // for requests in flight.
  void renew_ring(size_t i = 0) {
    blk(i).reset();
    set_base(i, ring(i).base());
    inflight_fd_.reset();
  }
  BackendChannel* backend_channel() { return backend_channel_.get(); }
  // Where the back end keeps track of requests; no descriptor if that was not agreed on.
  const vhost::InflightDescription& inflight() const { return inflight_; }
  int inflight_fd() const { return inflight_fd_.get(); }
  // Another file with the same description, from the next start() on.
  void set_inflight_fd(UniqueFd fd) { inflight_fd_ = std::move(fd); }
  const vhost::BlkConfig& config() const { return config_; }
  uint64_t offered() const { return offered_; }
  uint64_t features() const { return features_; }
  uint64_t protocol() const { return protocol_; }
  bool has(uint64_t feature) const { return (features_ & feature) == feature; }
  bool has_protocol(uint64_t feature) const { return (protocol_ & feature) == feature; }
  std::string error() const { return std::string(to_string(options_.dialect)) + ": " + front_end_.error(); }

 private:
  struct Queue {
    std::unique_ptr<RingDriver> ring;
    std::unique_ptr<BlkDriver> blk;
    uint32_t base = 0;
  };

  bool shake_hands(const std::string& path);
  bool handshake();
  bool handshake_qemu();
  bool send_spare_eventfds();
  bool handshake_firecracker();
  bool handshake_cloud_hypervisor();
  bool handshake_features_first();  // libblkio, SPDK
  bool handshake_uml();
  bool start_qemu();
  bool start_firecracker();
  bool start_cloud_hypervisor();
  bool start_libblkio();
  bool start_uml();
  bool start_spdk();

  bool get_features();
  bool set_features();
  bool get_protocol_features(uint64_t wanted);
  bool set_protocol_features();
  bool get_queue_num();
  bool get_mem_slots();
  bool read_config(uint32_t size, uint32_t flags = 0);
  bool send_backend_channel();
  bool exchange_inflight();
  bool send(vhost::Request request, uint32_t index, int fd) { return front_end_.set_vring_fd(request, index, fd); }
  bool acked(vhost::Request request, const Bytes& payload, std::span<const int> fds = {});
  void make_queues();
  template <typename Fn>
  bool for_each_queue(Fn&& fn) {
    for (uint32_t i = 0; i < queues_.size(); i++)
      if (!fn(i)) return false;
    return true;
  }

  SessionOptions options_;
  FrontEnd front_end_;
  GuestMemory memory_;
  std::vector<Queue> queues_;
  std::unique_ptr<BackendChannel> backend_channel_;
  UniqueFd inflight_fd_;
  vhost::InflightDescription inflight_;
  vhost::BlkConfig config_;
  uint64_t offered_ = 0, features_ = 0, protocol_ = 0;
  uint32_t max_queues_ = 1;
  bool opened_ = false;
  bool memory_sent_ = false;
};

// What the drivers of all dialects understand.
uint64_t driver_features();

}  // namespace sluice::test
