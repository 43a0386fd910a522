// Gate: owns background tasks, so that whoever closes it knows they have ended.
// Thread: one lightweight thread.
#pragma once

#include <cstdint>
#include <utility>

#include "lib/thread/await.h"
#include "lib/thread/task.h"

namespace sluice {

class Gate {
 public:
  Gate() = default;
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  ~Gate() { CHECK(inside_ == 0); }

  bool closed() const { return closed_; }
  uint32_t inside() const { return inside_; }

  // False once the gate is closing: then the work must not begin.
  [[nodiscard]] bool enter() {
    if (closed_) return false;
    ++inside_;
    return true;
  }
  void leave() {
    CHECK(inside_ > 0);
    if (--inside_ == 0 && closed_) empty_.set();
  }

  // Runs `task` inside the gate; drops it unstarted, and returns false, when the gate is closing.
  bool spawn(Task<> task) {
    if (!enter()) return false;
    start(std::move(task), [this] { leave(); });
    return true;
  }

  // Lets nothing in any more and waits until all have left. Once.
  Task<> close() {
    CHECK(!closed_);
    closed_ = true;
    if (inside_ > 0) co_await empty_.wait();
  }

 private:
  uint32_t inside_ = 0;
  bool closed_ = false;
  Event empty_;
};

}  // namespace sluice
