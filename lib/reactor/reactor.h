// Reactor: one OS thread, pinned to a core, that runs lightweight threads: it polls, sleeps in epoll, or both.
//
// Thread:     post(), request_stop() and the constants: any OS thread. The rest: the reactor's own.
// Ownership:  as ThreadHost.
// Invariants: (1) it never sleeps while one of its threads has something to run, or a message waits in the ring.
//             (2) a descriptor that became ready is noticed within kLookIntervalNs while others keep the core busy.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lib/base/intrusive_list.h"
#include "lib/base/unique_fd.h"
#include "lib/reactor/message_ring.h"
#include "lib/thread/lw_thread.h"
#include "lib/thread/thread_host.h"

namespace sluice {

struct ReactorStats {
  uint64_t busy_ns = 0;    // doing work
  uint64_t idle_ns = 0;    // polling in vain
  uint64_t asleep_ns = 0;  // waiting in epoll
  uint64_t wakeups = 0;    // returns from waiting
  size_t hot = 0;          // pollers that are polled now
  size_t cold = 0;         // pollers that wait for their notification
  struct Thread {
    std::string name;
    uint64_t id;
    std::string cpumask;
    uint64_t elapsed_ns;
    uint64_t busy_ns;
  };
  std::vector<Thread> threads;
};

class Reactor final : public ThreadHost {
 public:
  // While any poller is hot, epoll is looked at this often: the longest delay of a cold source.
  static constexpr uint64_t kLookIntervalNs = 20'000;

  // `peers` is how many reactors there are in all, `index` this one's place among them; `home_id` its home thread's id.
  static Result<std::unique_ptr<Reactor>> create(uint32_t lcore, size_t index, size_t peers, uint64_t home_id);
  ~Reactor() override;

  uint32_t lcore() const { return lcore_; }
  void post(Message& message) override;

  // Pins the calling OS thread to the core and runs until request_stop(). Host-local objects are destroyed at the end.
  void run();
  void request_stop();

  // Before run(), or on the reactor.
  ReactorStats stats();
  // Kernel thread id, 0 before run().
  int tid() const { return tid_.load(std::memory_order_relaxed); }

 private:
  Reactor(uint32_t lcore, size_t index, size_t peers, uint64_t home_id, EpollSet sources, UniqueFd wake);

  void forward(Reactor& destination, Message& message);
  bool flush_outboxes();
  bool drain_ring();
  // True if a source's handler ran.
  bool look(uint64_t timeout_ns);
  bool sleep();
  void wake();

  const uint32_t lcore_;
  const size_t index_;
  UniqueFd wake_;
  MessageRing ring_;

  // Reactor thread only.
  // Messages for reactors whose ring was full, by their index: kept in order, tried again each turn.
  std::vector<Fifo<Work>> outboxes_;
  std::vector<Reactor*> outbox_destinations_;
  size_t outboxes_in_use_ = 0;
  uint64_t last_look_ns_ = 0;
  ReactorStats stats_;

  // Shared.
  std::atomic<int> tid_ = 0;
  std::atomic<bool> stopping_ = false;
  alignas(64) std::atomic<bool> sleeping_ = false;
};

}  // namespace sluice
