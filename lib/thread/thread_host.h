// ThreadHost: what runs lightweight threads: a reactor, or a test with a clock of its own. One OS thread each.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "lib/base/result.h"
#include "lib/thread/work.h"

namespace sluice {

class EventSource;
class LwThread;

// How eagerly a host polls.
enum class PollMode : uint8_t {
  kPoll,       // every poller stays hot; the core never sleeps
  kInterrupt,  // a poller goes cold as soon as it finds nothing
  kAdaptive,   // a poller goes cold after a window without work
};

// Something that exists once per host and dies with it (a completion queue shared by all devices of a core).
class HostLocal {
 public:
  virtual ~HostLocal() = default;
};

class ThreadHost {
 public:
  virtual ~ThreadHost() = default;

  // Any OS thread: hands the message to its target, in the sender's order. Never fails, never drops.
  virtual void post(Message& message) = 0;
  // The lightweight thread that lives and dies with this host.
  virtual LwThread& home() = 0;

  // The rest: on the host's own OS thread.
  virtual Result<> watch(EventSource& source) = 0;
  virtual void unwatch(EventSource& source) = 0;
  // The thread has something to run, or its earliest deadline has changed.
  virtual void make_runnable(LwThread& thread) = 0;
  virtual void deadline_changed(LwThread& thread) = 0;

  // The host whose OS thread this is; nullptr elsewhere.
  static ThreadHost* current() { return current_; }
  bool is_current() const { return current_ == this; }

  // Time of this turn, in ns.
  uint64_t now_ns() const { return now_ns_; }
  PollMode mode() const { return mode_; }
  // How long a poller may find nothing before it goes cold, in the present mode.
  uint64_t window_ns() const { return window_ns_; }

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
  static void set_current(ThreadHost* host) { current_ = host; }
  void destroy_locals() { locals_.clear(); }

  uint64_t now_ns_ = 0;
  PollMode mode_ = PollMode::kPoll;
  uint64_t window_ns_ = 0;

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

  static thread_local constinit ThreadHost* current_;
  std::vector<Local> locals_;
};

}  // namespace sluice
