// ThreadHost: what runs lightweight threads: one OS thread's worth of turns. A reactor and a test with a clock of its
// own derive from it: they bring the clock, the way in which messages reach them from elsewhere, and what to do when
// there is nothing to do.
//
// Thread:     post(): any OS thread. The rest: the host's own.
// Ownership:  owns its home thread and its host-local objects; borrows the other lightweight threads.
// Invariants: a lightweight thread is run, and its lists are touched, by one host at a time. While it moves (let_go()
//             to take_over()) nobody runs it: what reaches it through the host that it leaves is kept in its queue,
//             what reaches it through the new one behind that.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lib/base/cpu_mask.h"
#include "lib/base/deadline_heap.h"
#include "lib/base/intrusive_list.h"
#include "lib/base/result.h"
#include "lib/thread/epoll_set.h"
#include "lib/thread/polling.h"
#include "lib/thread/work.h"

namespace sluice {

class EventSource;
class LwThread;
struct RunTag;
struct AttachTag;

// Something that exists once per host and dies with it (a completion queue shared by all devices of a core).
class HostLocal {
 public:
  virtual ~HostLocal() = default;
};

class ThreadHost {
 public:
  ThreadHost(const ThreadHost&) = delete;
  ThreadHost& operator=(const ThreadHost&) = delete;
  virtual ~ThreadHost();

  // Any OS thread: hands the message to its target, in the sender's order. Never fails, never drops.
  virtual void post(Message& message) = 0;
  // The lightweight thread that lives and dies with this host, and never moves. Its cpumask is the host's core.
  LwThread& home() const { return *home_; }

  // The host whose OS thread this is; nullptr elsewhere.
  static ThreadHost* current() { return current_; }
  bool is_current() const { return current_ == this; }

  // Time of this turn, in ns.
  uint64_t now_ns() const { return now_ns_; }
  PollMode mode() const { return mode_; }
  const PollingOptions& polling() const { return polling_; }
  // How long nothing has been found to do on this host; 0 while the last turn found something.
  uint64_t idle_for_ns() const { return idle_ ? now_ns_ - idle_since_ns_ : 0; }
  bool idle() const { return idle_; }
  // In adaptive mode: whether polling in vain is within the budget.
  bool may_poll_in_vain() const { return vain_budget_.left(); }

  // However idle the host is, a poller goes cold only after so many polls in vain: where sleeping and being woken costs
  // more than these. 0 unless set.
  uint32_t min_vain_polls() const { return min_vain_polls_; }
  void set_min_vain_polls(uint32_t polls) { min_vain_polls_ = polls; }

  // Also before the host runs.
  void set_mode(PollMode mode);
  void set_polling(const PollingOptions& options);

  // Runs fn(LwThread&) on each thread that this host runs, its home thread first. It must not end or move any.
  template <typename Fn>
  void for_each_thread(Fn fn) {
    attached_.for_each(fn);
  }

  // --- For LwThread ---

  // `source` carries descriptor and events. Errors: those of epoll_ctl(2).
  Result<> watch(EventSource& source) { return sources_.add(source); }
  void unwatch(EventSource& source) { sources_.remove(source); }
  // The thread has something to run, or its earliest deadline has changed.
  void make_runnable(LwThread& thread);
  void deadline_changed(LwThread& thread);

  // --- For ThreadDirectory, which moves threads, in this order ---

  // The old host: stops running the thread; messages go to `destination` from here on.
  void let_go(LwThread& thread, ThreadHost& destination);
  // The old host: has no more messages for it.
  void hand_over(LwThread& thread);
  // The new one: runs it from here on.
  void take_over(LwThread& thread);

  // This host's object for `key` (an address that its user owns), made on first use.
  template <typename T, typename Factory>
  T& local(const void* key, Factory&& make) {
    if (HostLocal* found = find_local(key)) return static_cast<T&>(*found);
    std::unique_ptr<T> made = make();
    T& object = *made;
    locals_.push_back({key, std::move(made)});
    return object;
  }

 protected:
  enum class Clock : uint8_t { kReal, kManual };

  // `lcore` and `home_id`: the home thread's.
  ThreadHost(std::string home_name, uint64_t home_id, uint32_t lcore, Clock clock, EpollSet sources);

  static void set_current(ThreadHost* host) { current_ = host; }
  void destroy_locals() { locals_.clear(); }

  // Hands a message that has arrived here to its target, or on to where that has gone.
  void deliver(Message& message);
  // Wakes threads whose timers are due, and gives each runnable one its turn. True if there was work.
  bool run_threads();
  // What a turn came to, for the idle time and the budget; `ns` is what it took.
  void end_turn(bool worked, uint64_t ns);
  // The host has slept.
  void end_sleep();
  bool has_runnable() const { return !runnable_.empty(); }
  uint64_t next_deadline_ns() const { return deadlines_.earliest_deadline_ns(); }

  EpollSet sources_;
  uint64_t now_ns_ = 0;

 private:
  struct Local {
    const void* key;
    std::unique_ptr<HostLocal> object;
  };

  HostLocal* find_local(const void* key) const {
    for (const Local& local : locals_) {
      if (local.key == key) return local.object.get();
    }
    return nullptr;
  }
  void read_clock();
  void detach(LwThread& thread);

  static thread_local constinit ThreadHost* current_;

  const Clock clock_;
  PollMode mode_ = PollMode::kPoll;
  PollingOptions polling_;
  VainBudget vain_budget_;
  uint32_t min_vain_polls_ = 0;
  bool idle_ = false;
  uint64_t idle_since_ns_ = 0;
  std::unique_ptr<LwThread> home_;
  List<LwThread, RunTag> runnable_;
  List<LwThread, RunTag> next_turn_;  // runnable as well, but had their turn in this one; empty between turns
  uint64_t turn_ = 1;
  List<LwThread, AttachTag> attached_;
  DeadlineHeap<LwThread> deadlines_;
  std::vector<Local> locals_;
};

}  // namespace sluice
