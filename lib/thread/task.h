// Task<T>: a coroutine of the control plane: lazy, move-only, bound to the lightweight thread that starts it.
// Thread:    started, resumed and destroyed on one lightweight thread.
// Ownership: a Task owns its coroutine. Awaiting it keeps it alive to its end; a task in progress must not be destroyed
//            (checked): cancel by asking and waiting. Arguments by reference outlive the task.
#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

#include "lib/base/check.h"

namespace sluice {

template <typename T = void>
class [[nodiscard]] Task;

namespace detail {

struct TaskPromiseBase {
  std::coroutine_handle<> continuation = std::noop_coroutine();

  struct FinalAwaiter {
    bool await_ready() const noexcept { return false; }
    template <typename Promise>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> self) const noexcept {
      return self.promise().continuation;
    }
    void await_resume() const noexcept {}
  };

  std::suspend_always initial_suspend() const noexcept { return {}; }
  FinalAwaiter final_suspend() const noexcept { return {}; }
  // No exceptions cross our functions: one that gets here is a bug (or memory has run out).
  void unhandled_exception() const noexcept { std::terminate(); }
};

template <typename T>
struct TaskPromise : TaskPromiseBase {
  std::optional<T> value;
  Task<T> get_return_object();
  template <typename U>
  void return_value(U&& result) {
    value.emplace(std::forward<U>(result));
  }
  T take() { return std::move(*value); }
};

template <>
struct TaskPromise<void> : TaskPromiseBase {
  Task<void> get_return_object();
  void return_void() const noexcept {}
  void take() const noexcept {}
};

}  // namespace detail

template <typename T>
class [[nodiscard]] Task {
 public:
  using promise_type = detail::TaskPromise<T>;
  using Handle = std::coroutine_handle<promise_type>;

  explicit Task(Handle handle) : handle_(handle) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)), started_(other.started_) {}
  Task& operator=(Task&&) = delete;
  ~Task() {
    if (!handle_) return;
    CHECK(!started_ || handle_.done());
    handle_.destroy();
  }

  // Runs the task until it finishes; its result is the value of the await expression.
  auto operator co_await() && {
    struct Awaiter {
      Task& task;
      bool await_ready() const noexcept { return false; }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<> waiter) noexcept {
        task.started_ = true;
        task.handle_.promise().continuation = waiter;
        return task.handle_;
      }
      T await_resume() { return task.handle_.promise().take(); }
    };
    return Awaiter{*this};
  }

 private:
  Handle handle_;
  bool started_ = false;
};

namespace detail {

template <typename T>
Task<T> TaskPromise<T>::get_return_object() {
  return Task<T>(std::coroutine_handle<TaskPromise>::from_promise(*this));
}

inline Task<void> TaskPromise<void>::get_return_object() {
  return Task<void>(std::coroutine_handle<TaskPromise>::from_promise(*this));
}

// A coroutine that nobody awaits and that frees itself at its end. The only way out of the world of tasks.
struct Detached {
  struct promise_type {
    Detached get_return_object() const noexcept { return {}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const noexcept { std::terminate(); }
  };
};

// The task, with its arguments, is gone before done() says so: what they refer to may go then.
template <typename T, typename Done>
Detached run_detached(Task<T> task, Done done) {
  if constexpr (std::is_void_v<T>) {
    co_await Task<T>(std::move(task));
    done();
  } else {
    T value = co_await Task<T>(std::move(task));
    done(std::move(value));
  }
}

}  // namespace detail

// Starts `task` at once; calls done(result) at its end. The caller answers for whatever both refer to (see Gate).
template <typename T, typename Done>
void start(Task<T> task, Done done) {
  detail::run_detached(std::move(task), std::move(done));
}

}  // namespace sluice
