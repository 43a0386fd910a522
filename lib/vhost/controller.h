// Controller: one exported block device: its socket, the front end that is connected, and the bdev behind it.
//
// A front end is served at a time; others that connect wait in the socket's backlog until it has gone.
//
// Thread:     the public functions on the application's lightweight thread; everything that serves the front end runs
// on
//             the controller's own, which the Target made for it.
// Ownership:  the Target's. Owns socket, session and the open bdev; borrows its thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "lib/base/log.h"
#include "lib/base/unique_fd.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/thread/gate.h"
#include "lib/vhost/blk_device.h"
#include "lib/vhost/session.h"

namespace sluice::vhost {

struct ControllerInfo {
  std::string name;
  std::string socket_path;
  std::string cpumask;
  std::string bdev_name;  // empty once the bdev has been removed
  bool readonly = false;
  std::vector<SessionInfo> sessions;
};

class Controller final : private BdevEvents {
 public:
  // The thread and the listening socket are ready; open() and start() follow.
  Controller(std::string name, std::string socket_path, UniqueFd listener, LwThread& thread);
  ~Controller() override;

  // Opens the bdev. Errors: those of BdevManager::open().
  Result<> open(BdevManager& bdevs, const std::string& bdev_name, bool readonly);
  // Lets front ends connect. Errors: those of opening a channel.
  Task<Result<>> start();
  // Ends the session, waits for its requests, and lets go of everything. Once, whether start() succeeded or not.
  Task<> stop();

  Task<ControllerInfo> info();
  LwThread& thread() const { return thread_; }

 private:
  class Listener final : public EventSource {
   public:
    explicit Listener(Controller& controller) : controller_(controller) {}
    void on_event(uint32_t) override { controller_.look_again_.set(); }

   private:
    Controller& controller_;
  };

  // On the application's thread.
  void on_resize() override;
  void on_remove() override;
  Task<> let_go_of_bdev();

  // On the controller's thread.
  Result<> start_listening();
  Task<> detach_bdev();
  Task<> stop_serving();
  Task<> serve_front_ends();
  Task<> serve(UniqueFd socket);

  const std::string name_;
  const std::string socket_path_;
  const UniqueFd listener_fd_;
  LwThread& thread_;

  // Application's thread.
  std::unique_ptr<BdevHandle> handle_;
  std::unique_ptr<BlkDevice> device_;
  Gate gate_;  // reactions to the bdev's events

  // Controller's thread.
  Listener listener_;
  ChannelRef channel_;
  std::unique_ptr<Session> session_;
  uint64_t next_session_id_ = 0;
  bool stopping_ = false;
  Event look_again_;  // a front end may have connected
  Timer retry_;
  LogLimiter log_limiter_;  // for all that front ends can cause, across their sessions
  Gate serving_;
};

}  // namespace sluice::vhost
