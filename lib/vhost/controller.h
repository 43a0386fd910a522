// Controller: one exported block device: its socket, the front end that is connected, and the bdev behind it.
//
// A front end is served at a time; others that connect wait in the socket's backlog until it has gone.
//
// Thread:     the public functions on the application's lightweight thread; what serves the front end runs on the
//             controller's own, and its queues on those that the Target made for them, or on that one.
// Ownership:  the Target's. Owns socket, session and the open bdev; borrows its threads.
// Invariant:  its bdev changes in one task at a time: at the start, when it is given another one, when it is removed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "lib/base/log.h"
#include "lib/base/unique_fd.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/thread/gate.h"
#include "lib/vhost/blk_device.h"
#include "lib/vhost/session.h"
#include "lib/vhost/session_state.h"

namespace sluice::vhost {

// Who may connect, besides what the socket's mode allows: processes of these users or in these groups. Both empty:
// everyone.
struct AllowedPeers {
  std::vector<uint32_t> uids;
  std::vector<uint32_t> gids;
};

struct ControllerInfo {
  std::string name;
  std::string socket_path;
  std::string cpumask;
  std::string bdev_name;  // empty once the bdev has been removed
  bool readonly = false;
  bool packed_ring = false;
  bool any_memory_file = false;
  AllowedPeers allowed;
  uint32_t queue_threads = 0;  // of their own
  Coalescing coalescing;
  std::vector<SessionInfo> sessions;
};

class Controller final {
 public:
  // The threads and the listening socket are ready; open() and start() follow. `queue_threads` may be empty: then
  // `thread` serves the queues as well. `takes_over`: the socket and its file are another controller's until go_on().
  Controller(std::string name, std::string socket_path, UniqueFd listener, AllowedPeers allowed, LwThread& thread,
             const std::vector<LwThread*>& queue_threads, bool takes_over = false);
  ~Controller();

  // Opens the bdev. Errors: those of BdevManager::open().
  Result<> open(BdevManager& bdevs, const std::string& bdev_name, BlkDevice::Options options);
  // Lets front ends connect. Errors: those of opening a channel.
  Task<Result<>> start();
  // Instead of start(), where it takes over: prepares to serve the front end that the other controller has given up,
  // and leaves it alone until go_on(). Errors: those of start() and of Session::take_over().
  Task<Result<>> take_over(std::optional<SessionState> session);
  Task<> go_on();
  // Ends the session, waits for its requests, and lets go of everything. Once, whether start() succeeded or not.
  Task<> stop();
  // Lets no front end connect, and no message of the present one begin any more; returns once none is handled.
  Task<> rest();
  // Instead of stop(), after rest(): the front end stays connected, the socket there, for another controller.
  Task<ControllerState> give_up();

  Task<> set_coalescing(Coalescing coalescing);
  // Another bdev from now on, also where the last one has been removed. Queues that run pause while requests in flight
  // end. Errors: EINVAL (it does not fit what has been offered), those of BdevManager::open() and of opening a channel;
  // then nothing has changed.
  Task<Result<>> set_bdev(BdevManager& bdevs, std::string bdev_name);

  Task<ControllerInfo> info();
  // Its own first, then those of its queues.
  std::vector<LwThread*> threads() const;

 private:
  class Listener final : public EventSource {
   public:
    explicit Listener(Controller& controller) : controller_(controller) {}
    void on_event(uint32_t) override { controller_.look_again_.set(); }

   private:
    Controller& controller_;
  };

  // A bdev that is open, and what happens to it.
  class OpenBdev final : public BdevEvents {
   public:
    explicit OpenBdev(Controller& controller) : controller_(controller) {}
    Result<> open(BdevManager& bdevs, const std::string& name, bool readonly);
    Bdev& bdev() const { return handle_->bdev(); }
    bool removed() const { return removed_; }

   private:
    void on_resize() override { controller_.on_resize(*this); }
    void on_remove() override;

    Controller& controller_;
    bool removed_ = false;
    std::unique_ptr<BdevHandle> handle_;
  };

  // On the application's thread.
  void on_resize(const OpenBdev& which);
  Task<> let_go_of_removed_bdev();
  Task<> begin_change();
  void end_change();
  Task<Result<>> replace_bdev(BdevManager& bdevs, const std::string& name);
  void tell_of_size();

  struct Place {
    LwThread* thread;
    ChannelRef channel;  // the thread's
  };

  // On the controller's thread.
  Task<Result<>> start_serving(Bdev& bdev);
  Task<Result<>> take_over_session(SessionState state);
  Task<> release();
  Task<> describe(ControllerInfo& info);
  Task<> take_over(Coalescing coalescing);
  using Channels = std::vector<ChannelRef>;  // of the places, in their order
  Task<Result<Channels>> open_channels(Bdev& bdev);
  Task<> close_channels(Channels channels);
  // Gives the places others; none if there are none. The result is those that they had.
  Channels exchange_channels(Channels channels);
  Task<Result<>> move_to(Bdev& bdev);
  Task<> detach_bdev();
  Task<> stop_serving();
  Task<> rest_session();
  Task<> serve_front_ends();
  Result<UniqueFd> accept();
  bool admits(const UniqueFd& socket);
  Task<> serve();
  void connect(UniqueFd socket);
  std::vector<QueuePlace> queue_places() const;

  const std::string name_;
  const std::string socket_path_;
  UniqueFd listener_fd_;
  const AllowedPeers allowed_;
  LwThread& thread_;

  // Application's thread.
  std::unique_ptr<OpenBdev> bdev_;  // null when it has been removed
  std::unique_ptr<BlkDevice> device_;
  bool owns_socket_file_;
  bool changing_ = false;  // the bdev is
  Signal changed_;
  Gate gate_;  // reactions to the bdev's events

  // Controller's thread.
  Listener listener_;
  std::vector<Place> places_;  // one at least
  Coalescing coalescing_;
  std::unique_ptr<Session> session_;
  uint64_t next_session_id_ = 0;
  const bool takes_over_;
  Event go_on_;
  std::optional<SessionState> given_up_;
  bool stopping_ = false;
  Event look_again_;  // a front end may have connected
  Timer retry_;
  LogLimiter log_limiter_;  // for all that front ends can cause, across their sessions
  Gate serving_;
};

}  // namespace sluice::vhost
