// What a Task can wait for: a deadline, an event, a function on another lightweight thread.
#pragma once

#include <coroutine>
#include <type_traits>
#include <utility>

#include "lib/base/check.h"
#include "lib/thread/lw_thread.h"
#include "lib/thread/task.h"

namespace sluice {

// Resumes a coroutine as work of its thread.
class ResumeWork : public Message {
 public:
  ResumeWork() {
    run = [](Work& work) { static_cast<ResumeWork&>(work).waiter_.resume(); };
  }
  void set_waiter(std::coroutine_handle<> waiter) { waiter_ = waiter; }

 private:
  std::coroutine_handle<> waiter_;
};

// Event: one task waits until it is set. Setting it first is fine. One lightweight thread; may be used again after the
// wait.
class Event {
 public:
  void set() {
    if (std::exchange(set_, true)) return;
    if (waiting_) LwThread::current()->defer(resume_);
  }
  bool is_set() const { return set_; }

  // co_await event.wait(): returns once it is set, and clears it.
  auto wait() {
    struct Awaiter {
      Event& event;
      bool await_ready() const noexcept { return event.set_; }
      void await_suspend(std::coroutine_handle<> waiter) noexcept {
        CHECK(!event.waiting_);
        event.waiting_ = true;
        event.resume_.set_waiter(waiter);
      }
      void await_resume() const noexcept { event.set_ = event.waiting_ = false; }
    };
    return Awaiter{*this};
  }

 private:
  ResumeWork resume_;
  bool set_ = false;
  bool waiting_ = false;
};

// Signal: any number of tasks wait for the next notify_all(). One lightweight thread. What they wait for is looked at
// again after each wait: while (!condition) co_await signal.wait();
class Signal {
 public:
  void notify_all() {
    while (Work* work = waiters_.pop_front()) LwThread::current()->defer(*work);
  }

  auto wait() {
    struct Awaiter {
      Signal& signal;
      ResumeWork resume;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> waiter) {
        resume.set_waiter(waiter);
        signal.waiters_.push_back(resume);
      }
      void await_resume() const noexcept {}
    };
    return Awaiter{*this, {}};
  }

 private:
  Fifo<Work> waiters_;
};

// Waits until the present thread's clock has reached `deadline_ns`.
inline Task<> sleep_until(uint64_t deadline_ns) {
  Event due;
  Timer timer("sleep", [&due] { due.set(); });
  timer.arm_at(*LwThread::current(), deadline_ns);
  co_await due.wait();
}

inline Task<> sleep_for(uint64_t ns) { return sleep_until(LwThread::current()->now_ns() + ns); }

// Lets everything else that is ready, other lightweight threads too, have its turn first.
inline Task<> next_turn() { return sleep_for(0); }

namespace detail {

template <typename T>
struct TaskValue {
  using type = T;
  static constexpr bool is_task = false;
};
template <typename T>
struct TaskValue<Task<T>> {
  using type = T;
  static constexpr bool is_task = true;
};

// Goes to the target, runs the function there, and comes back.
template <typename Fn>
class CallOn : public Message {
  using Returned = std::invoke_result_t<Fn&>;
  using Value = typename TaskValue<Returned>::type;
  using Stored = std::conditional_t<std::is_void_v<Value>, bool, std::optional<Value>>;

 public:
  CallOn(LwThread& destination, Fn fn) : destination_(destination), fn_(std::move(fn)) {}

  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> waiter) {
    waiter_ = waiter;
    origin_ = LwThread::current();
    CHECK(origin_ != nullptr);
    run = [](Work& work) { static_cast<CallOn&>(work).on_destination(); };
    destination_.send(*this);
  }
  Value await_resume() {
    if constexpr (!std::is_void_v<Value>) return std::move(*result_);
  }

 private:
  void on_destination() {
    if constexpr (TaskValue<Returned>::is_task) {
      if constexpr (std::is_void_v<Value>) {
        start(fn_(), [this] { reply(); });
      } else {
        start(fn_(), [this](Value value) {
          result_.emplace(std::move(value));
          reply();
        });
      }
    } else if constexpr (std::is_void_v<Value>) {
      fn_();
      reply();
    } else {
      result_.emplace(fn_());
      reply();
    }
  }
  void reply() {
    run = [](Work& work) { static_cast<CallOn&>(work).waiter_.resume(); };
    origin_->send(*this);
  }

  LwThread& destination_;
  Fn fn_;
  LwThread* origin_ = nullptr;
  std::coroutine_handle<> waiter_;
  [[no_unique_address]] Stored result_{};
};

}  // namespace detail

// co_await call_on(thread, fn): runs fn(), a function or a task, on `thread`, and returns its result here.
// `fn` lives until the call is over, so a coroutine lambda may use what it captures.
template <typename Fn>
auto call_on(LwThread& thread, Fn fn) {
  return detail::CallOn<Fn>(thread, std::move(fn));
}

// The same, but at once where `thread` is the one that asks.
template <typename Fn>
auto run_on(LwThread& thread, Fn fn) -> Task<typename detail::TaskValue<std::invoke_result_t<Fn&>>::type> {
  using Returned = std::invoke_result_t<Fn&>;
  if (LwThread::current() != &thread) co_return co_await call_on(thread, std::move(fn));
  if constexpr (detail::TaskValue<Returned>::is_task) {
    co_return co_await fn();
  } else {
    co_return fn();
  }
}

// Runs fn() on `thread`, later; nobody waits. Any OS thread. For the control plane: allocates.
template <typename Fn>
void post_to(LwThread& thread, Fn fn) {
  struct Posted : Message {
    explicit Posted(Fn f) : function(std::move(f)) {}
    Fn function;
  };
  auto* posted = new Posted(std::move(fn));
  posted->run = [](Work& work) {
    auto& self = static_cast<Posted&>(work);
    Fn function = std::move(self.function);
    delete &self;
    function();
  };
  thread.send(*posted);
}

}  // namespace sluice
