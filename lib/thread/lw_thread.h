// LwThread: a lightweight thread: a stackless unit of execution that runs messages, timers and pollers to completion
// and never blocks. It knows no OS thread: a ThreadHost runs it.
//
// Thread:     everything here but send() and the constants, on the thread itself (checked where it is cheap), or, for
//             defer(), anywhere on its host's OS thread.
// Ownership:  ThreadDirectory makes and destroys it. Borrows pollers, timers, sources and messages.
// Invariants: (1) messages of one sender are run in the order they were sent. (2) what is deferred in a turn runs at
//             its end, in order. (3) nothing is called from inside a submit, send or defer.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lib/base/cpu_mask.h"
#include "lib/base/deadline_heap.h"
#include "lib/base/intrusive_list.h"
#include "lib/thread/channel.h"
#include "lib/thread/event_source.h"
#include "lib/thread/move_listener.h"
#include "lib/thread/poller.h"
#include "lib/thread/thread_host.h"
#include "lib/thread/timer.h"
#include "lib/thread/work.h"

namespace sluice {

struct RunTag;
struct AttachTag;

class LwThread : public ListHook<RunTag>, public ListHook<AttachTag>, public HeapEntry {
 public:
  LwThread(std::string name, uint64_t id, CpuMask cpumask, ThreadHost& host);
  // Requires: no poller, timer, source or channel is left (checked).
  ~LwThread();

  // Constant after construction.
  const std::string& name() const { return name_; }
  uint64_t id() const { return id_; }

  // The lightweight thread that is running on this OS thread; nullptr between turns.
  static LwThread* current() { return current_; }

  // Any OS thread: runs the message here, later. The message must not be queued.
  void send(Message& message) {
    message.target = this;
    host_.load(std::memory_order_acquire)->post(message);
  }

  ThreadHost& host() const { return *host_.load(std::memory_order_acquire); }
  // Any OS thread: whether it is the one that runs this lightweight thread, which is not on its way elsewhere.
  bool runs_here() const { return host().is_current() && !arriving(); }
  // On which cores it may run. Set by ThreadDirectory.
  const CpuMask& cpumask() const { return cpumask_; }
  void set_cpumask(const CpuMask& cpumask) { cpumask_ = cpumask; }
  uint64_t now_ns() const { return host().now_ns(); }

  // Runs the work at the end of this turn, or in the next one. Work that defers itself again may run many times in one
  // turn, up to a budget: what must give others their turn is a poller.
  void defer(Work& work) {
    ready_.push_back(work);
    if (!ListHook<RunTag>::linked()) host().make_runnable(*this);
  }

  // Starts hot. The poller must not be added anywhere.
  void add_poller(Poller& poller);
  void remove_poller(Poller& poller);

  // `events` are epoll's flags. Errors: those of epoll_ctl, such as EPERM for a regular file.
  Result<> add_source(EventSource& source, int fd, uint32_t events);
  void remove_source(EventSource& source);

  // This thread's channel to the device, made on first use and freed with its last reference.
  // Errors: those of the device's create_channel().
  Result<ChannelRef> get_channel(IoDevice& device);
  // nullptr if there is none.
  Channel* find_channel(const IoDevice& device) const;

  // --- For hosts ---

  struct RunResult {
    bool worked;    // something was done
    bool runnable;  // something is left to do or to poll
  };
  // One turn: messages and deferred work, due timers, hot pollers, what these deferred.
  RunResult run();
  // Calls a source's handler as this thread.
  void dispatch(EventSource& source, uint32_t events);
  uint64_t next_deadline_ns() const { return timers_.earliest_deadline_ns(); }
  // The last of its host's turns in which it ran; 0: none.
  uint64_t last_turn() const { return last_turn_; }
  void set_last_turn(uint64_t turn) { last_turn_ = turn; }
  // Makes every poller hot (on a switch to poll mode).
  void make_all_hot();
  void account(uint64_t ns, bool busy) {
    *(busy ? &busy_ns_ : &idle_ns_) += ns;
    if (first_turn_ns_ == 0) [[unlikely]]
      first_turn_ns_ = now_ns() - ns;
  }

  // Moving: see ThreadHost. can_move(), leave() and hand_over() on the old host, keep() and arrive() on the new one.
  bool can_move() const;
  void leave(ThreadHost& host);
  ThreadHost* leaving() const { return leaving_.load(std::memory_order_relaxed); }
  void keep_late(Message& message) { ready_.push_back(message); }
  void set_host(ThreadHost& host) { host_.store(&host, std::memory_order_release); }
  void hand_over() { leaving_.store(nullptr, std::memory_order_relaxed); }
  bool arriving() const { return arriving_.load(std::memory_order_relaxed); }
  void keep(Message& message) { arrivals_.push_back(message); }
  void arrive();

  // Asks the host to let go of this thread after the present turn, and then to post `done` to its target.
  // Requires: no poller, timer, source or channel is left (checked).
  void exit(Message& done);
  Message* exit_message() const { return exit_message_; }

  // --- Statistics ---

  uint64_t busy_ns() const { return busy_ns_; }
  uint64_t idle_ns() const { return idle_ns_; }
  // Since its first turn, it had none for so long: it waited, or others ran.
  uint64_t asleep_ns() const {
    // Of a thread that has just moved, the clock of the new core may be a little behind.
    const uint64_t ran_until_ns = first_turn_ns_ + busy_ns_ + idle_ns_;
    return first_turn_ns_ == 0 || now_ns() < ran_until_ns ? 0 : now_ns() - ran_until_ns;
  }
  template <typename Fn>
  void for_each_poller(Fn&& fn) {
    hot_.for_each(fn);
    cold_.for_each(fn);
  }
  template <typename Fn>
  void for_each_timer(Fn&& fn) const {
    timers_.for_each(fn);
  }
  const std::vector<Channel*>& channels() const { return channels_; }
  size_t hot_count() const { return hot_count_; }
  size_t cold_count() const { return poller_count_ - hot_count_; }

  // Tells `listener` of moves.
  void add_listener(MoveListener& listener) { listeners_.push_back(listener); }

 private:
  friend class Poller;
  friend class Timer;
  friend class ChannelRef;

  void run_ready();
  bool fire_timers();
  bool poll_hot();
  bool tired(const Poller& poller) const;
  void set_hot(Poller& poller, bool hot);
  void arm(Timer& timer, uint64_t deadline_ns);
  void release(Channel& channel);

  const std::string name_;
  const uint64_t id_;
  CpuMask cpumask_;
  std::atomic<ThreadHost*> host_;
  std::atomic<ThreadHost*> leaving_ = nullptr;  // the host that it leaves, from let_go() to hand_over()
  std::atomic<bool> arriving_ = false;          // from let_go() to take_over()
  Fifo<Work> arrivals_;                         // meanwhile, at the new host

  Fifo<Work> ready_;
  List<Poller, PollerTag> hot_;
  List<Poller, PollerTag> cold_;
  size_t hot_count_ = 0;
  size_t poller_count_ = 0;
  List<EventSource, SourceTag> sources_;
  DeadlineHeap<Timer> timers_;
  std::vector<Channel*> channels_;
  List<MoveListener, MoveTag> listeners_;
  Poller* polling_ = nullptr;  // the one whose poll() is running; nullptr once it has removed itself
  Message* exit_message_ = nullptr;
  uint64_t last_turn_ = 0;
  uint64_t busy_ns_ = 0;
  uint64_t idle_ns_ = 0;
  uint64_t first_turn_ns_ = 0;

  static thread_local constinit LwThread* current_;
};

}  // namespace sluice
