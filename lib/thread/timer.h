// Timer: calls a function of its lightweight thread once at a deadline, or again and again.
// Thread:    arm and cancel on one lightweight thread; the function runs there.
// Ownership: the timer owns the function; cancels itself when destroyed. The function may re-arm or cancel the timer,
//            but must not destroy it.
#pragma once

#include <cstdint>
#include <functional>

#include "lib/base/deadline_heap.h"

namespace sluice {

class LwThread;

class Timer : public HeapEntry {
 public:
  // `name` is static text, for thread_get_pollers.
  Timer(const char* name, std::function<void()> fire) : name_(name), fire_(std::move(fire)) {}
  ~Timer() { cancel(); }

  // Absolute, on the clock of LwThread::now_ns(). Arming an armed timer moves it.
  void arm_at(LwThread& thread, uint64_t deadline_ns);
  // First after one period. Periods that were missed are skipped, not made up for.
  void arm_periodic(LwThread& thread, uint64_t period_ns);
  void cancel();

  bool armed() const { return thread_ != nullptr; }
  const char* name() const { return name_; }
  uint64_t period_ns() const { return period_ns_; }
  uint64_t run_count() const { return run_count_; }

 private:
  friend class LwThread;
  const char* const name_;
  std::function<void()> fire_;
  LwThread* thread_ = nullptr;
  uint64_t period_ns_ = 0;
  uint64_t run_count_ = 0;
};

}  // namespace sluice
