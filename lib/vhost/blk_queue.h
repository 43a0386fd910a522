// BlkQueue: one queue of one block device: takes requests out of its ring, has the block device do them, and gives them
// back. A poller: polled while it has work, woken by its kick descriptor while it has not.
//
// Thread:     one lightweight thread, the controller's or one of its own; what the session is told reaches it there.
// Ownership:  the session's. Owns its descriptors; borrows device and channel.
// Invariants: (1) a request in flight keeps the guest memory that it refers to mapped. (2) nothing more is taken from
//             a broken ring until it is started anew; it costs its own queue only. (3) at most one used-index update
//             and one notification per turn.
// Source:     Vhost-user Protocol, "Ring states"; virtio 1.3, "Virtqueues".
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lib/base/log.h"
#include "lib/base/unique_fd.h"
#include "lib/bdev/bdev_channel.h"
#include "lib/thread/await.h"
#include "lib/thread/elastic_pool.h"
#include "lib/thread/poller.h"
#include "lib/vhost/blk_device.h"
#include "lib/vhost/blk_request.h"
#include "lib/vhost/dirty_log.h"
#include "lib/vhost/inflight_region.h"
#include "lib/vhost/limits.h"
#include "lib/vhost/memory_map.h"
#include "lib/vhost/queue_inflight.h"
#include "lib/vhost/session_state.h"
#include "lib/vhost/virt_queue.h"

namespace sluice::vhost {

// A guest memory map and the requests in flight that refer to it.
struct MapUse {
  std::shared_ptr<const MemoryMap> map;
  uint32_t in_flight = 0;
};

struct BlkQueueStats {
  uint64_t requests = 0;
  uint64_t kicks = 0;  // times the queue was woken, by a kick or otherwise
  uint64_t calls = 0;  // notifications sent
};

// Whether completions of a busy queue may be told of later, so that fewer calls tell of more of them.
struct Coalescing {
  uint64_t delay_base_ns = 0;       // 0: never
  uint32_t iops_threshold = 60000;  // up to which none are held back; at twice as many by delay_base_ns, and so on
  bool operator==(const Coalescing&) const = default;
};

class BlkQueue final : public Poller, private MoveListener {
 public:
  // What the session knows that a ring runs with.
  struct Setup {
    std::shared_ptr<const MemoryMap> map;
    std::shared_ptr<const InflightRegion> inflight;  // null: requests in flight are not tracked
    uint64_t features = 0;
    BdevChannel* channel = nullptr;
    std::shared_ptr<DirtyLog> log;  // null: what is written is not logged
    bool write_through = false;
    bool enabled_by_default = false;  // until SET_VRING_ENABLE is sent for this ring
  };

  // On `thread`. `log_limiter` is shared by all that one controller's front ends can cause.
  BlkQueue(uint32_t index, LwThread& thread, const BlkDevice& device, const Coalescing& coalescing,
           LogLimiter& log_limiter);
  // Requires: stopped, and nothing in flight (checked).
  ~BlkQueue() override;

  // --- Set-up, as the session is told. Nothing here touches guest memory. ---
  void set_size(uint16_t size) { size_ = size; }
  void set_addresses(const VringAddr& addresses) { addresses_ = addresses; }
  void set_base(uint32_t base) { ring_.set_base(base); }
  // -1: none. Without a kick the ring is polled by a timer; without a call the driver polls.
  void set_kick(UniqueFd fd);
  void set_call(UniqueFd fd);
  void set_error(UniqueFd fd) { error_ = std::move(fd); }
  void set_enabled(bool enabled) { enabled_ = enabled; }

  // --- Running ---
  // SET_VRING_KICK: the ring is started, whether this brings a descriptor or not. One that broke begins anew, once what
  // it had in flight is done.
  Task<> start(UniqueFd kick);
  // GET_VRING_BASE: it is not, and nothing is in flight any more. The base it stopped at.
  Task<uint32_t> end();
  // Lets the ring run or makes it stop, as its state demands. It runs when it is started, enabled, set up, and its
  // addresses are within the guest's memory; a broken one waits until it is started anew.
  Task<> update(Setup setup);
  bool running() const { return running_; }
  // Moves the ring, if it runs, to another map of the same guest; if its addresses are not in there, it stops running.
  void move_to(std::shared_ptr<const MemoryMap> map);
  // Waits while so many maps are kept for requests in flight that no other may come. The ring goes on meanwhile.
  Task<> room_for_a_map();
  // Takes no more requests, and waits until those in flight are back in the ring.
  Task<> stop();
  // The ring is as new: nothing set but its descriptors.
  void reset();

  // From now on requests end with an I/O error; the channel is not used any more once this returns.
  Task<> detach_bdev();
  // Stops it for good. What another one goes on with.
  Task<RingState> give_up();
  // Goes on where another one gave up; held until resume().
  void take_over(RingState state);
  // Takes no more requests until resume(), which gives it its setup anew, bdev included. Those in flight go on.
  void hold();
  Task<> resume(Setup setup);
  void set_write_through(bool write_through) { write_through_ = write_through; }
  void set_coalescing(const Coalescing& coalescing);
  // What is written to guest memory is marked there from now on, also by requests in flight; nullptr: nowhere. Nothing
  // is marked in the former log any more once this returns.
  void set_log(std::shared_ptr<DirtyLog> log);

  uint32_t index() const { return index_; }
  LwThread& owner() const { return owner_; }
  uint16_t size() const { return size_; }
  uint32_t in_flight() const { return in_flight_; }
  RingFault fault() const { return fault_; }
  const BlkQueueStats& stats() const { return stats_; }

  bool poll() override;
  bool pure_poll() override { return ring_.has_work(); }
  bool try_sleep() override;
  void wake_up() override;

 private:
  bool configured() const { return size_ != 0 && addresses_.has_value(); }
  void run(Setup setup);
  void track(const Setup& setup);
  void begin();
  Task<> drained();
  void pause();
  // The next available request, or one that a back end before us has left unfinished.
  void start_next(const UnfinishedChain* unfinished = nullptr);
  void submit(BlkRequest& request);
  void on_io_done(BlkRequest& request);
  void finish(BlkRequest& request, BlkStatus status);
  void use_map(std::shared_ptr<const MemoryMap> map);
  void on_publish_work();
  void publish();
  bool may_hold_back();
  void call();
  void break_ring(RingFault fault);
  void on_arrive() override { requests_ = &ElasticPool<BlkRequest>::of(owner_.host()); }

  const uint32_t index_;
  LwThread& owner_;
  const BlkDevice& device_;
  LogLimiter& log_limiter_;
  ElasticPool<BlkRequest>* requests_;  // the host's

  VirtQueue ring_;
  std::unique_ptr<QueueInflight> inflight_;  // null: not tracked
  uint16_t size_ = 0;
  std::optional<VringAddr> addresses_;
  std::optional<bool> enabled_;
  bool started_ = false;
  bool running_ = false;
  bool write_through_ = false;
  RingFault fault_ = RingFault::kNone;
  uint64_t features_ = 0;
  uint32_t seen_losses_ = 0;
  UniqueFd kick_;
  UniqueFd call_;
  UniqueFd error_;

  BdevChannel* channel_ = nullptr;
  bool detached_ = false;
  std::shared_ptr<DirtyLog> log_;  // the ring's, too
  bool held_ = false;
  // The last one is the present map; those before wait for their requests.
  std::vector<std::unique_ptr<MapUse>> maps_;
  Signal map_freed_;
  uint32_t in_flight_ = 0;
  uint64_t taken_bytes_ = 0;  // in this poll
  Signal drained_;
  bool publish_pending_ = false;
  struct PublishWork : Work {
    BlkQueue* queue = nullptr;
  } publish_work_;
  Timer kickless_timer_;
  uint64_t kickless_period_ns_ = kKicklessPeriodNs;  // until the next look
  Coalescing coalescing_;
  uint64_t epoch_ns_ = 0;  // when the present one began
  uint64_t epoch_requests_ = 0;
  uint64_t delay_ns_ = 0;  // that the last one has led to
  Timer call_timer_;       // armed while a call is held back
  BlkQueueStats stats_;
};

}  // namespace sluice::vhost
