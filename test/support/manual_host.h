// ManualHosts: runs lightweight threads without reactors: on the test's own OS thread, turn by turn, with a clock that
// stands still until the test advances it. Descriptors are real: each host has an epoll instance of its own.
//
//   ManualHosts hosts(2);                                  // two hosts, interrupt mode
//   ThreadDirectory threads(hosts);                        // threads are placed on them in rotation
//   LwThread& app = hosts.home();
//   hosts.on(app, [&] { poller_thread.add_poller(p); });   // runs now, as `app`
//   hosts.run_until_idle();                                // nothing is left to do
//   hosts.advance(kNsPerMs);                               // timers are due in the next turn
//   EXPECT_TRUE(hosts.run_until([&] { return done; }));    // waits for the kernel or an OS thread where it must
//   auto result = hosts.await(app, manager.remove(bdev, RemoveMode::kForce));
//
// Thread: one OS thread, but for ManualHost::post(), which any may call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#include "lib/base/check.h"
#include "lib/base/clock.h"
#include "lib/base/unique_fd.h"
#include "lib/thread/lw_thread.h"
#include "lib/thread/task.h"
#include "lib/thread/thread_directory.h"

namespace sluice {

// One host. ManualHosts makes and turns it.
class ManualHost final : public ThreadHost {
 public:
  ManualHost(uint32_t index, PollMode mode, uint64_t now_ns);
  ~ManualHost() override;

  uint32_t index() const { return index_; }

  // One turn: descriptors that are ready, messages, due timers, and each runnable thread once. True if there was work.
  bool turn();
  // False when the host would sleep: nothing is left to run and no poller is hot.
  bool runnable() const { return has_runnable(); }
  // Of its threads' timers, the earliest; UINT64_MAX when none is armed.
  using ThreadHost::next_deadline_ns;

  void post(Message& message) override;

 private:
  friend class ManualHosts;

  // While it exists, the OS thread is the host's.
  class Entered {
   public:
    explicit Entered(ManualHost& host) : outer_(ThreadHost::current()) { set_current(&host); }
    Entered(const Entered&) = delete;
    Entered& operator=(const Entered&) = delete;
    ~Entered() { set_current(outer_); }

   private:
    ThreadHost* outer_;
  };

  void advance(uint64_t ns) { now_ns_ += ns; }
  int epoll_fd() const { return sources_.fd(); }
  bool has_mail();
  bool drain_inbox();

  const uint32_t index_;
  UniqueFd wake_;
  uint64_t turn_ns_ = 0;  // the time of the last turn
  // Of a simulation: how many of the messages that wait are delivered in a turn; all without it.
  std::mt19937_64* random_ = nullptr;

  std::mutex inbox_mutex_;
  Fifo<Work> inbox_;
};

// Requires: before the end, every thread but the homes has been destroyed, and no message is left (checked).
class ManualHosts final : public ThreadPlacer {
 public:
  static constexpr uint64_t kPatienceNs = 20 * kNsPerSec;

  explicit ManualHosts(size_t count = 1, PollMode mode = PollMode::kInterrupt);

  ManualHost& operator[](size_t index) { return *hosts_[index]; }
  LwThread& home(size_t index = 0) { return hosts_[index]->home(); }
  void set_mode(PollMode mode);
  void set_polling(const PollingOptions& options);
  // From now on a simulation: in each turn the hosts run in an order that the seed determines, some not at all, and
  // messages between them take their time. What the kernel does (sockets, eventfds) has no order of its own.
  void set_seed(uint64_t seed);

  uint64_t now_ns() const { return hosts_.front()->now_ns(); }
  // Moves the clock of all hosts; what has become due runs in the next turn.
  void advance(uint64_t ns);
  // The earliest timer of all hosts; UINT64_MAX when none is armed.
  uint64_t next_deadline_ns() const;

  // One turn of each host. True if there was work.
  bool turn();
  // Turns until two of them find nothing to do. Does not wait for the kernel or for other OS threads.
  void run_until_idle();
  // Turns until `reached()`, waiting (in real time, without the manual clock's advancing) for descriptors and messages
  // when there is nothing to do. False when it takes longer than `patience_ns`.
  [[nodiscard]] bool run_until(const std::function<bool()>& reached, uint64_t patience_ns = kPatienceNs);

  // Calls fn() now, as if `thread` were running it. What it defers runs in the next turn.
  template <typename Fn>
  std::invoke_result_t<Fn&> on(LwThread& thread, Fn fn);
  // Runs the task on `thread` to its end, turning the hosts. The task has to end within kPatienceNs (checked).
  template <typename T>
  T await(LwThread& thread, Task<T> task);

  // ThreadPlacer: host `i` stands for core `i`; the hosts within the mask take turns.
  Result<ThreadHost*> place(const CpuMask& cpumask) override;
  CpuMask all_cpus() const override;
  std::vector<ThreadHost*> hosts() const override;

 private:
  void wait(uint64_t timeout_ns);

  std::vector<std::unique_ptr<ManualHost>> hosts_;
  size_t next_ = 0;
  std::optional<std::mt19937_64> random_;
};

template <typename Fn>
std::invoke_result_t<Fn&> ManualHosts::on(LwThread& thread, Fn fn) {
  using Value = std::invoke_result_t<Fn&>;
  // LwThread::dispatch() is the way to run something as a thread at once.
  struct Call : EventSource {
    explicit Call(Fn& f) : function(f) {}
    void on_event(uint32_t) override {
      if constexpr (std::is_void_v<Value>) {
        function();
      } else {
        result.emplace(function());
      }
    }
    Fn& function;
    std::optional<std::conditional_t<std::is_void_v<Value>, bool, Value>> result;
  } call(fn);
  const ManualHost::Entered entered(static_cast<ManualHost&>(thread.host()));
  thread.dispatch(call, 0);
  if constexpr (!std::is_void_v<Value>) return std::move(*call.result);
}

template <typename T>
T ManualHosts::await(LwThread& thread, Task<T> task) {
  std::optional<std::conditional_t<std::is_void_v<T>, bool, T>> result;
  on(thread, [&] {
    if constexpr (std::is_void_v<T>) {
      start(std::move(task), [&result] { result = true; });
    } else {
      start(std::move(task), [&result](T value) { result.emplace(std::move(value)); });
    }
  });
  CHECK(run_until([&result] { return result.has_value(); }));
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

// The clock of the hosts, as code on one of their threads sees it; for what takes a clock.
inline uint64_t manual_clock() { return LwThread::current()->now_ns(); }

}  // namespace sluice
