// A poller that tests drive, and the fixture for it.
#pragma once

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <functional>
#include <optional>

#include "lib/thread/poller.h"
#include "test/support/manual_host.h"

namespace sluice {

// A queue of `work` pieces, of which each poll does one. Who adds some while `armed` notifies.
class TestPoller : public Poller {
 public:
  TestPoller() : Poller("test") {}
  explicit TestPoller(std::function<bool()> on_poll) : Poller("test"), on_poll_(std::move(on_poll)) {}

  bool poll() override {
    ++polls;
    if (on_poll_) return on_poll_();
    if (work == 0) return false;
    --work;
    return true;
  }
  bool pure_poll() override { return work > 0; }
  bool try_sleep() override {
    ++sleeps;
    work += work_before_sleep;
    armed = work == 0;
    work_before_sleep = 0;
    return armed;
  }
  void wake_up() override {
    ++wakes;
    armed = false;
  }

  using Poller::set_notification;
  void use_eventfd() { set_notification(event_.get()); }
  // The other side of the queue.
  void add_work(int pieces) {
    work += pieces;
    if (armed) notify();
  }
  void notify() const {
    const uint64_t one = 1;
    ASSERT_EQ(::write(event_.get(), &one, sizeof(one)), sizeof(one));
  }

  int work = 0;
  int work_before_sleep = 0;  // comes when nobody polls any more and notification is not on yet
  bool armed = false;
  int polls = 0;
  int sleeps = 0;
  int wakes = 0;

 private:
  const UniqueFd event_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::function<bool()> on_poll_;
};

class PollerTest : public testing::Test {
 protected:
  void add(TestPoller& poller) {
    hosts_.on(thread_, [&] { thread_.add_poller(poller); });
  }
  void remove(TestPoller& poller) {
    hosts_.on(thread_, [&] { thread_.remove_poller(poller); });
  }
  void turn(int times = 1) {
    for (int i = 0; i < times; ++i) hosts_.turn();
  }

  // A poller, in adaptive mode, that has learned this window, and has just found nothing.
  TestPoller& with_window(uint64_t window_ns) {
    hosts_.set_mode(PollMode::kAdaptive);
    PollingOptions options = host_.polling();
    options.grow_start_ns = options.max_poll_ns = window_ns;
    hosts_.set_polling(options);
    poller_.emplace();
    poller_->use_eventfd();
    add(*poller_);
    turn(2);
    EXPECT_FALSE(poller_->hot()) << "it has learned nothing yet";
    hosts_.advance(window_ns);
    poller_->add_work(1);
    turn(2);
    EXPECT_TRUE(poller_->hot());
    return *poller_;
  }
  ~PollerTest() override {
    if (poller_) remove(*poller_);
  }

  ManualHosts hosts_;
  ManualHost& host_ = hosts_[0];
  LwThread& thread_ = hosts_.home();
  std::optional<TestPoller> poller_;
};

}  // namespace sluice
