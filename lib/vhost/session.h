// Session: one front end's connection: negotiation, guest memory, and the queues.
//
// Messages are handled one after the other by one task, so the order of the protocol is the order of the code. Handling
// may wait (for requests in flight), which holds up this front end only.
//
// Thread:     the controller's lightweight thread, but for the queues: each is made, used and freed on its own.
// Ownership:  the controller's. Owns the connection and the queues.
// Source:     Vhost-user Protocol, "Front-end message types", "Starting and stopping rings", "Ring states".
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "lib/thread/await.h"
#include "lib/thread/gate.h"
#include "lib/vhost/blk_device.h"
#include "lib/vhost/blk_queue.h"
#include "lib/vhost/dirty_log.h"
#include "lib/vhost/inflight_region.h"
#include "lib/vhost/limits.h"
#include "lib/vhost/memory_map.h"
#include "lib/vhost/session_state.h"
#include "lib/virtio/connection.h"

namespace sluice::vhost {

class StateReader;

// For vhost_get_controllers.
struct SessionInfo {
  uint64_t id = 0;
  bool started = false;
  uint32_t max_queues = kMaxQueues;
  uint32_t in_flight = 0;
  struct Queue {
    uint32_t index = 0;
    bool running = false;
    RingFault fault = RingFault::kNone;  // why it is broken
    uint16_t size = 0;                   // 0: not set yet
    bool packed = false;                 // as negotiated
    uint32_t in_flight = 0;
    BlkQueueStats stats;
    uint64_t thread_id = 0;
  };
  std::vector<Queue> queues;
};

// A lightweight thread that serves queues.
struct QueuePlace {
  LwThread* thread = nullptr;
  BdevChannel* channel = nullptr;  // the thread's; null: every request ends with an I/O error
};

class Session {
 public:
  // Queue i is served by places[i % size], of which there is one at least.
  Session(uint64_t id, LwThread& thread, const BlkDevice& device, std::vector<QueuePlace> places,
          const Coalescing& coalescing, UniqueFd socket, LogLimiter& log_limiter);
  ~Session();

  // Serves the front end until it goes, breaks the protocol, or close() is called. Nothing is in flight afterwards.
  Task<> run();
  // The front end is cut off when its requests are done, not before: what it takes for lost must not touch its memory
  // any more.
  void close() { connection_.stop(); }

  // Before run(): the front end is one that another session has given up. Its rings wait for go_on(). Errors: ENOTSUP
  // (it has negotiated what is not offered here).
  Task<Result<>> take_over(SessionState state);
  Task<> go_on();
  // Lets no message begin any more. Returns once none is handled, or the session has ended; requests go on.
  Task<> rest();
  // After rest(): lets run() return, with nothing in flight, and the front end still connected.
  void give_up() { leave_.set(); }
  // Once run() has returned: what another session goes on with, unless this one has ended for another reason.
  std::optional<SessionState> take_state() { return std::exchange(state_, std::nullopt); }

  // The block device has gone: requests end with an I/O error; the channel is not used any more once this returns.
  Task<> detach_bdev();
  // Gives the places other channels, in their order. Requests in flight end first, and meanwhile no others begin; the
  // old channels are not used any more once this returns.
  Task<> set_channels(const std::vector<BdevChannel*>& channels);
  // Tells the front end, if it wants to know, that the configuration space has changed.
  void notify_config_change();

  // Changes how calls are held back, of all queues.
  Task<> set_coalescing(Coalescing coalescing);

  Task<SessionInfo> info();

 private:
  // What a handler has to say to the front end.
  struct Outcome {
    // A refusal is told by the reply, if it has one; or acknowledged with 1; or ends the session if nobody waits for
    // it.
    Result<> result;
    std::vector<std::byte> reply;  // the payload of a message's own reply
    bool has_reply = false;
    UniqueFd fd = {};  // that goes with the reply

    template <typename Payload>
    static Outcome answer(const Payload& payload) {
      Outcome outcome{.result = {}, .reply = {}, .has_reply = true};
      outcome.set_reply(payload);
      return outcome;
    }
    template <typename Payload>
    void set_reply(const Payload& payload) {
      const auto bytes = payload_bytes(payload);
      reply.assign(bytes.begin(), bytes.end());
    }
  };
  using Handler = Task<Outcome> (Session::*)(WireMessage&);
  struct Rule;
  static const std::array<Rule, kMaxRequest + 1>& rules();

  Task<Result<>> handle(WireMessage& message);
  Task<> tear_down();
  Task<SessionState> state_to_leave();

  Task<Outcome> get_features(WireMessage& message);
  Task<Outcome> set_features(WireMessage& message);
  Task<Outcome> get_protocol_features(WireMessage& message);
  Task<Outcome> set_protocol_features(WireMessage& message);
  Task<Outcome> accept_silently(WireMessage& message);
  Task<Outcome> get_queue_num(WireMessage& message);
  Task<Outcome> get_max_mem_slots(WireMessage& message);
  Task<Outcome> set_mem_table(WireMessage& message);
  Task<Outcome> add_mem_reg(WireMessage& message);
  Task<Outcome> rem_mem_reg(WireMessage& message);
  Task<Outcome> set_vring_num(WireMessage& message);
  Task<Outcome> set_vring_addr(WireMessage& message);
  Task<Outcome> set_vring_base(WireMessage& message);
  Task<Outcome> get_vring_base(WireMessage& message);
  Task<Outcome> set_vring_kick(WireMessage& message);
  Task<Outcome> set_vring_call(WireMessage& message);
  Task<Outcome> set_vring_err(WireMessage& message);
  Task<Outcome> set_vring_enable(WireMessage& message);
  Task<Outcome> set_backend_req_fd(WireMessage& message);
  Task<Outcome> get_config(WireMessage& message);
  Task<Outcome> set_config(WireMessage& message);
  Task<Outcome> reset_device(WireMessage& message);
  Task<Outcome> set_log_base(WireMessage& message);
  Task<Outcome> set_log_fd(WireMessage& message);
  Task<Outcome> set_device_state_fd(WireMessage& message);
  Task<Outcome> check_device_state(WireMessage& message);
  Task<Outcome> get_status(WireMessage& message);
  Task<Outcome> set_status(WireMessage& message);
  Task<Outcome> get_inflight_fd(WireMessage& message);
  Task<Outcome> set_inflight_fd(WireMessage& message);

  // The queue of this index, made on first use; nullptr if the index is out of range, or the process is so short of
  // descriptors that this front end may not have as many queues.
  Task<BlkQueue*> queue(uint32_t index);
  Task<> make_queue(uint32_t index);
  // What a queue runs with, from the session's present state.
  BlkQueue::Setup setup(const BlkQueue& queue) const;
  Task<> update(BlkQueue& queue);
  // Runs fn(BlkQueue&), a function or a task, for each queue, on its thread.
  template <typename Fn>
  Task<> for_each_queue(Fn fn) const;
  Task<> set_memory(MemoryMap map);
  Task<> update_all();
  bool write_through() const;
  // Null while nothing is logged.
  std::shared_ptr<DirtyLog> log_in_use() const;
  // Tells all queues of it.
  Task<> use_log();
  void report_overrun();
  Task<Result<>> transfer_state(WireMessage& message);
  Task<Result<>> load_state();

  const uint64_t id_;
  LwThread& thread_;
  const BlkDevice& device_;
  std::vector<QueuePlace> places_;
  Coalescing coalescing_;
  LogLimiter& log_limiter_;
  Connection connection_;

  uint64_t features_ = 0;
  // Rings are disabled until SET_VRING_ENABLE, or until a SET_FEATURES without PROTOCOL_FEATURES enables them all. No
  // SET_FEATURES disables any.
  bool rings_enabled_ = false;
  uint64_t protocol_features_ = 0;
  bool writeback_ = true;
  uint64_t status_ = 0;            // the driver's, as the front end tells it; nothing depends on it
  std::shared_ptr<DirtyLog> log_;  // also while nothing is logged
  std::unique_ptr<StateReader> loading_;
  Result<> saved_ = fail(EINVAL, "no device state was transferred");  // how the last transfer went, if not loading
  std::shared_ptr<const MemoryMap> memory_ = std::make_shared<const MemoryMap>();
  std::shared_ptr<const InflightRegion> inflight_;  // null until SET_INFLIGHT_FD
  std::array<std::unique_ptr<BlkQueue>, kMaxQueues> queues_;
  UniqueFd backend_channel_;
  bool held_ = false;  // the queues wait for go_on()
  Event rested_;
  Event leave_;
  std::optional<SessionState> state_;
  Gate visitors_;                     // calls from outside, which may wait for queues
  uint32_t budget_ = kMessageBudget;  // messages until others get their turn
};

// Queues are freed by tear_down() only, once all `visitors_` have left.
template <typename Fn>
Task<> Session::for_each_queue(Fn fn) const {
  for (const auto& queue : queues_) {
    if (queue != nullptr) co_await run_on(queue->owner(), [&fn, &queue = *queue] { return fn(queue); });
  }
}

}  // namespace sluice::vhost
