#include "lib/thread/thread_host.h"

#include "lib/base/clock.h"
#include "lib/thread/lw_thread.h"

namespace sluice {

thread_local constinit ThreadHost* ThreadHost::current_ = nullptr;

ThreadHost::ThreadHost(std::string home_name, uint64_t home_id, uint32_t lcore, Clock clock, EpollSet sources)
    : sources_(std::move(sources)), clock_(clock) {
  CpuMask mask;
  mask.set(lcore);
  home_ = std::make_unique<LwThread>(std::move(home_name), home_id, mask, *this);
  attached_.push_back(*home_);
}

ThreadHost::~ThreadHost() {
  // Only its home thread is left: whoever made the others has ended them.
  while (LwThread* thread = attached_.pop_front()) CHECK(thread == home_.get());
  while (LwThread* thread = runnable_.pop_front()) CHECK(thread == home_.get());
}

void ThreadHost::read_clock() {
  if (clock_ == Clock::kReal) now_ns_ = sluice::now_ns();
}

void ThreadHost::set_mode(PollMode mode) {
  mode_ = mode;
  if (mode == PollMode::kPoll) attached_.for_each([](LwThread& thread) { thread.make_all_hot(); });
}

void ThreadHost::set_polling(const PollingOptions& options) { polling_ = options; }

// --- Turns ---

void ThreadHost::make_runnable(LwThread& thread) {
  if (thread.ListHook<RunTag>::linked()) return;
  CHECK(&thread.host() == this && is_current());
  if (!thread.ListHook<AttachTag>::linked()) attached_.push_back(thread);
  (thread.last_turn() == turn_ ? next_turn_ : runnable_).push_back(thread);
}

void ThreadHost::deadline_changed(LwThread& thread) {
  const uint64_t deadline_ns = thread.next_deadline_ns();
  if (deadline_ns == UINT64_MAX) {
    deadlines_.remove(thread);
  } else {
    deadlines_.set(thread, deadline_ns);
  }
}

bool ThreadHost::run_threads() {
  while (deadlines_.earliest_deadline_ns() <= now_ns_) {
    LwThread& thread = deadlines_.earliest();
    deadlines_.remove(thread);  // put back after its turn
    make_runnable(thread);
  }
  bool any_worked = false;
  // Each runs once, also those that others give work meanwhile: that is done in the same turn.
  while (!runnable_.empty()) {
    LwThread& thread = runnable_.front();
    thread.set_last_turn(turn_);
    const uint64_t start_ns = now_ns_;
    const auto [worked, runnable] = thread.run();
    any_worked |= worked;
    read_clock();
    thread.account(now_ns_ - start_ns, worked);
    if (!thread.HeapEntry::in_heap() && thread.next_deadline_ns() != UINT64_MAX)
      deadlines_.set(thread, thread.next_deadline_ns());
    thread.ListHook<RunTag>::unlink();
    if (thread.exit_message() != nullptr) {
      detach(thread);
    } else if (runnable) {
      next_turn_.push_back(thread);
    }
  }
  ++turn_;
  runnable_.take_all(next_turn_);
  return any_worked;
}

void ThreadHost::end_turn(bool worked, uint64_t ns) {
  if (worked) {
    vain_budget_.add_work(ns, polling_.idle_poll_budget);
    idle_ = false;
    return;
  }
  vain_budget_.add_vain(ns);
  if (!idle_) idle_since_ns_ = now_ns_ - ns;
  idle_ = true;
}

void ThreadHost::end_sleep() { vain_budget_.add_sleep(polling_.idle_poll_budget); }

void ThreadHost::detach(LwThread& thread) {
  thread.ListHook<AttachTag>::unlink();
  deadlines_.remove(thread);
  Message& done = *thread.exit_message();
  done.target->send(done);  // from here on the thread may be freed
}

// --- Messages and moving ---

void ThreadHost::deliver(Message& message) {
  LwThread& target = *message.target;
  if (&target.host() == this) {
    if (target.arriving()) {
      target.keep(message);  // behind what the old host still has for it
    } else {
      target.defer(message);
    }
  } else if (target.leaving() == this) {
    target.keep_late(message);
  } else {
    target.host().post(message);  // an OS thread without a host was slow to send it: in no order to what came after
  }
}

void ThreadHost::let_go(LwThread& thread, ThreadHost& destination) {
  CHECK(is_current() && &thread.host() == this && &thread != home_.get());
  CHECK(LwThread::current() != &thread);
  thread.leave(*this);
  thread.ListHook<RunTag>::unlink();
  thread.ListHook<AttachTag>::unlink();
  deadlines_.remove(thread);
  thread.set_host(destination);
}

void ThreadHost::hand_over(LwThread& thread) {
  CHECK(is_current() && thread.leaving() == this);
  thread.hand_over();
}

void ThreadHost::take_over(LwThread& thread) {
  CHECK(is_current() && &thread.host() == this && thread.arriving());
  read_clock();  // the thread must not see time go back
  attached_.push_back(thread);
  thread.set_last_turn(0);  // other hosts count their own turns
  thread.arrive();
  if (thread.next_deadline_ns() != UINT64_MAX) deadlines_.set(thread, thread.next_deadline_ns());
  if (mode_ == PollMode::kPoll) thread.make_all_hot();
  make_runnable(thread);
}

}  // namespace sluice
