// FrontEnd: our side of a vhost-user connection: questions and answers, and what a device needs to be set up.
//
// One task reads all along, so that the end of the connection is noticed at once; another one asks.
//
// Thread:     one lightweight thread.
// Ownership:  owns the sockets. close() must have completed before it is destroyed.
// Source:     Vhost-user Protocol, "Front-end message types", "Back-end message types".
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "lib/bdev/virtio/device_info.h"
#include "lib/bdev/virtio/shared_memory.h"
#include "lib/bdev/virtio/virtio_queue.h"
#include "lib/thread/await.h"
#include "lib/thread/gate.h"
#include "lib/thread/timer.h"
#include "lib/virtio/connection.h"

namespace sluice::virtio {

class FrontEnd {
 public:
  class Events {
   public:
    virtual ~Events() = default;
    // lost() is true from now on.
    virtual void on_connection_lost() = 0;
    // The configuration space has changed: read_config() tells how.
    virtual void on_config_change() = 0;
  };

  FrontEnd(LwThread& thread, UniqueFd socket, Events& events);

  // Makes the device known: SET_OWNER, features, number of queues, configuration space. `packed_ring`: packed rings, if
  // the back end has them.
  // Errors: ENOTSUP (the back end lacks what we need); EPROTO (its answers make no sense); ETIMEDOUT; ECONNRESET.
  Task<Result<DeviceInfo>> negotiate(uint32_t queue_size, bool packed_ring);
  // Shares the memory and starts the rings. After negotiate(). Errors: the same; ECONNREFUSED (it has refused a step).
  Task<Result<>> start(const SharedMemory& memory, std::span<const std::unique_ptr<VirtioQueue>> queues,
                       const DeviceInfo& device);
  // The device as it is now. Errors: as negotiate().
  Task<Result<DeviceInfo>> read_config(uint32_t queue_size);

  // Ends the connection, and what waits for it, soon.
  void shut_down();
  bool lost() const { return lost_; }
  // Ends the connection and waits until nothing of it is left.
  Task<> close();

 private:
  // Sends a request; waits for its acknowledgement if that was negotiated.
  Task<Result<>> tell(vhost::Request request, std::span<const std::byte> payload, std::span<const int> fds = {});
  // Sends a request that has a reply of its own, and waits for it.
  Task<Result<vhost::WireMessage>> ask(vhost::Request request, std::span<const std::byte> payload = {});
  Task<Result<uint64_t>> ask_u64(vhost::Request request);
  Task<Result<vhost::WireMessage>> exchange(vhost::Request request, uint32_t flags, std::span<const std::byte> payload,
                                            std::span<const int> fds);
  Task<Result<>> open_backend_channel();
  Task<Result<>> start_queue(const VirtioQueue& queue);
  Task<> read_replies();
  Task<> read_backend_requests();
  void end();

  LwThread& thread_;
  Events& events_;
  vhost::Connection connection_;
  std::unique_ptr<vhost::Connection> backend_channel_;
  Gate gate_;
  bool lost_ = false;

  // The question that waits for its answer.
  bool asking_ = false;
  Event answered_;
  std::optional<vhost::WireMessage> answer_;
  bool timed_out_ = false;
  Timer patience_;

  uint64_t features_ = 0;
  uint64_t protocol_features_ = 0;
};

}  // namespace sluice::virtio
