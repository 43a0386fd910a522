// ThreadDirectory: makes, finds and ends lightweight threads.
// Thread:    all calls on one lightweight thread, the application's.
// Ownership: owns the threads it makes. Those of the hosts themselves (home threads) are only listed.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lib/base/cpu_mask.h"
#include "lib/thread/await.h"
#include "lib/thread/lw_thread.h"

namespace sluice {

// Chooses where a new lightweight thread runs.
class ThreadPlacer {
 public:
  virtual ~ThreadPlacer() = default;
  // Errors: EINVAL when no host is within the mask.
  virtual Result<ThreadHost*> place(const CpuMask& cpumask) = 0;
  // The mask that stands for "anywhere".
  virtual CpuMask all_cpus() const = 0;
  // All there are.
  virtual std::vector<ThreadHost*> hosts() const = 0;
};

class ThreadDirectory {
 public:
  explicit ThreadDirectory(ThreadPlacer& placer) : placer_(placer) {}
  ~ThreadDirectory() { CHECK(owned_.empty()); }

  // Errors: EINVAL for a mask outside the placer's.
  Result<LwThread*> create(std::string name, const CpuMask& cpumask);
  // Ends a thread that holds nothing any more, and frees it.
  Task<> destroy(LwThread& thread);

  // Moves the thread to another host, with its timers, sources, pollers and channels; what it has in flight goes on,
  // and follows it. Its messages stay in order. Meanwhile it does not run: for some turns of the hosts. Errors, thread
  // unmoved: EBUSY (a channel that cannot move; another move, or its end, is under way; a home thread; the
  // caller's own).
  Task<Result<>> move(LwThread& thread, ThreadHost& destination);
  // Changes where it may run, and moves it there if it is elsewhere; a move that is under way ends first. Errors,
  // nothing changed: as create(); EBUSY as move().
  Task<Result<>> set_cpumask(LwThread& thread, CpuMask cpumask);
  // Where it may run. It may be on its way there.
  const CpuMask& cpumask(const LwThread& thread) const;

  // Lists a thread that somebody else owns (a host's home thread). Also allowed before the hosts run.
  void list(LwThread& thread) { threads_[thread.id()] = &thread; }
  void unlist(LwThread& thread) { threads_.erase(thread.id()); }

  CpuMask all_cpus() const { return placer_.all_cpus(); }
  std::vector<ThreadHost*> hosts() const { return placer_.hosts(); }
  // nullptr when it does not exist, or is ending.
  LwThread* find(uint64_t id) const;

  // Runs fn(LwThread&) on every thread, one after the other.
  template <typename Fn>
  Task<> for_each(Fn fn) {
    std::vector<uint64_t> ids;
    ids.reserve(threads_.size());
    for (const auto& [id, thread] : threads_) ids.push_back(id);
    co_await visit(std::move(ids), std::move(fn));
  }

  // Runs fn(Channel&) for every channel of the device, on the channel's thread.
  template <typename Fn>
  Task<> for_each_channel(IoDevice& device, Fn fn) {
    co_await visit(device.channel_threads(), [&device, &fn](LwThread& thread) {
      if (Channel* channel = thread.find_channel(device)) fn(*channel);
    });
  }

 private:
  template <typename Fn>
  Task<> visit(std::vector<uint64_t> ids, Fn fn) {
    for (const uint64_t id : ids) {
      // Looked up each time: a thread may have ended while the previous one was visited. One that is found gets this
      // message before the one that ends it, as both are sent from here.
      LwThread* thread = find(id);
      if (thread != nullptr) co_await call_on(*thread, [&fn, thread] { fn(*thread); });
    }
  }

  struct Owned {
    std::unique_ptr<LwThread> thread;
    CpuMask cpumask;        // the thread's own copy is for its host
    bool changing = false;  // it is being moved, or its mask set
    Signal settled;         // it no longer is
  };

  static void settle(Owned& owned);
  // Requires: `changing` is set.
  Task<Result<>> carry(LwThread& thread, ThreadHost& destination);
  Task<bool> hand_over(LwThread& thread, ThreadHost& origin, ThreadHost& destination) const;
  // On a host: waits until every other one has handed over what it had for this one when this was called.
  Task<> flush_messages() const;

  ThreadPlacer& placer_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, LwThread*> threads_;
  std::map<uint64_t, Owned> owned_;
};

}  // namespace sluice
