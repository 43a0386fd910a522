// Controller: one vhost-user-blk back end and the queues that are shared with it; keeps the connection up.
//
// Thread:     the application's lightweight thread, but for open_queue(), which the threads that open channels call.
// Ownership:  the module's. Owns the connection and the queues; borrows the bdev, which tells when it goes.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "lib/base/log.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/virtio/front_end.h"
#include "lib/bdev/virtio/virtio_bdev.h"
#include "lib/bdev/virtio/virtio_queue.h"
#include "lib/thread/gate.h"

namespace sluice::virtio {

// What the controller is about.
enum class State : uint8_t {
  kNew,           // attach() has not been called, or is under way
  kConnected,     // the queues are up
  kLost,          // the connection has ended; requests in flight are being failed
  kDisconnected,  // waiting to connect again; requests fail at once
  kConnecting,    // negotiating again
  kClosed,        // close() has been called
};

class Controller final : private FrontEnd::Events, private VirtioQueue::Events {
 public:
  Controller(BdevManager& bdevs, VirtioBdevOptions options);
  ~Controller() override;

  // Connects, and starts the queues. Once; close() follows, whether it succeeded or not.
  // Errors: those of connect(2); EINVAL (more queues than the back end has); those of FrontEnd.
  Task<Result<>> attach();
  // The bdev that stands for the device.
  void set_bdev(Bdev& bdev) { bdev_ = &bdev; }
  void on_bdev_gone() {
    bdev_ = nullptr;
    bdev_gone_.set();
  }
  Task<> bdev_gone() {
    if (bdev_ != nullptr) co_await bdev_gone_.wait();
  }
  // Lets the back end go for good: what is in flight fails, and so does everything that is submitted later.
  void give_up();
  // Ends everything. Requires: all channels are closed.
  Task<> close();

  const VirtioBdevOptions& options() const { return options_; }
  // As it was when attach() succeeded; the capacity may be another now.
  const DeviceInfo& device() const { return device_; }
  State state() const { return state_; }
  uint64_t reconnects() const { return reconnects_; }
  const std::vector<std::unique_ptr<VirtioQueue>>& queues() const { return queues_; }
  const std::shared_ptr<SharedMemory>& memory() const { return memory_; }

  // On the thread that opens a channel: its host's queue, opened once more; VirtioQueue::close() takes that back.
  // Errors: EBUSY (every queue has a host already).
  Result<VirtioQueue*> open_queue();

 private:
  struct FaultMessage : Message {
    Controller* controller = nullptr;
    QueueFault fault = QueueFault::kNone;
    std::atomic<bool> queued = false;
  };
  // A queue, and who owns it.
  struct Place {
    ThreadHost* owner = nullptr;  // under mutex_
    FaultMessage fault;
  };

  void on_connection_lost() override;
  void on_config_change() override;
  void on_queue_fault(VirtioQueue& queue, QueueFault fault) override;
  void on_queue_closed(VirtioQueue& queue) override;

  Result<> make_queues();
  Task<Result<>> connect();
  Task<Result<>> bring_up();
  Task<> take_down();
  Task<> keep_up();
  Task<> serve();
  Task<> pause(uint64_t ns);
  Task<> refresh();
  template <typename Fn>
  Task<> for_each_queue(Fn fn);

  BdevManager& bdevs_;
  const VirtioBdevOptions options_;
  LwThread& thread_;
  Bdev* bdev_ = nullptr;
  Event bdev_gone_;
  State state_ = State::kNew;
  bool given_up_ = false;
  DeviceInfo device_;   // that the bdev was made for
  DeviceInfo present_;  // of the present connection
  std::shared_ptr<SharedMemory> memory_;
  std::vector<std::unique_ptr<VirtioQueue>> queues_;
  std::unique_ptr<FrontEnd> front_end_;
  Event changed_;  // something happened that keep_up() has to look at
  bool config_changed_ = false;
  uint64_t reconnects_ = 0;
  Gate gate_;
  LogLimiter log_limiter_;

  std::mutex mutex_;
  std::vector<Place> places_;  // one for each queue
};

}  // namespace sluice::virtio
