// InProcess: adds to a fixture of the cases what only a target in this process can be asked for.
// Thread: the test's own; the target runs on others.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#include "app/conformance/target_fixture.h"
#include "lib/bdev/io_stats.h"
#include "lib/vhost/session.h"
#include "test/vhost/in_process_target.h"

namespace sluice::test {

InProcessTarget& in_process_target(TestedTarget& target);

// The knobs are those of controller 0.
template <typename Fixture>
class InProcess : public Fixture {
 public:
  using Fixture::Fixture;

  void resize_bdev(uint64_t size_bytes) { knobs().resize_bdev(0, size_bytes); }
  void remove_bdev() { knobs().remove_bdev(0); }
  int flush_count() { return knobs().bdev(0).flush_count(); }  // flushes that reached the bdev
  // Requests that reach the bdev stay there until release_io().
  void hold_io() { knobs().bdev(0).hold(); }
  void release_io() { knobs().release_io(0); }
  void release_oldest_io(int count) { knobs().release_oldest_io(0, count); }
  int held_io_count() { return knobs().bdev(0).held_count(); }
  void wait_until_held(int count) {
    EXPECT_TRUE(eventually([&] { return held_io_count() >= count; })) << held_io_count() << " of " << count;
  }
  // Another back end takes the place of this one.
  void hand_over() {
    knobs().take_over(knobs().give_up());
    knobs().go_on();
  }
  IoStats iostat() { return knobs().iostat(0); }
  // Of the front end that is connected. Requires: there is one.
  vhost::SessionInfo session_info() { return knobs().info(0).sessions.at(0); }

 protected:
  InProcessTarget& knobs() { return in_process_target(this->target()); }
};

// The fixture of a test with one front end; the knobs are those of controller 0.
class OneFrontEnd : public InProcess<TargetFixture> {
 public:
  using InProcess::InProcess;

  void start(SessionOptions options = {}) {
    session_ = running(std::move(options));
    ASSERT_FALSE(HasFailure());
  }
  FrontEnd& fe() { return session_->front_end(); }
  RingDriver& ring(size_t i = 0) { return session_->ring(i); }
  BlkDriver& blk(size_t i = 0) { return session_->blk(i); }

 protected:
  std::unique_ptr<Session> session_;
};

// Does something over and over on an OS thread of its own, until it goes out of scope.
class Repeated {
 public:
  template <typename Step>
  explicit Repeated(Step step)
      : thread_([this, step]() mutable {
          while (!stop_.load(std::memory_order_relaxed)) {
            if (step()) count_.fetch_add(1, std::memory_order_relaxed);
          }
        }) {}
  ~Repeated() {
    stop_ = true;
    thread_.join();
  }
  uint64_t count() const { return count_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> stop_ = false;
  std::atomic<uint64_t> count_ = 0;
  std::thread thread_;
};

}  // namespace sluice::test
