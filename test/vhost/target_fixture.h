// TargetFixture: a vhost-user-blk target for the tests of one test suite, with knobs that a front end does not have.
//
// With SLUICE_TEST_SOCKET set to one or more socket paths (separated by commas), the tests run against whatever listens
// there, and those that need a knob are skipped. Otherwise the target is made in this process, one per test.
//
// Thread: the test's own; the target runs on others.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "lib/bdev/io_stats.h"
#include "lib/vhost/session.h"
#include "test/vhost/session.h"

namespace sluice::test {

// Waits until the condition holds; false if the deadline passes first.
template <typename Condition>
bool eventually(Condition&& condition, int timeout_ms = kTimeoutMs) {
  for (const Deadline deadline(timeout_ms); !condition(); ::usleep(100)) {
    if (deadline.passed()) return false;
  }
  return true;
}

struct TargetOptions {
  uint64_t size_bytes = 16 << 20;
  uint32_t block_size = 512;
  bool readonly = false;
  bool packed_ring = false;  // also with SLUICE_TEST_PACKED set
  uint16_t num_queues = 4;
  unsigned num_controllers = 2;  // each with a socket and a bdev of its own
};

class TargetFixture : public ::testing::Test {
 public:
  explicit TargetFixture(TargetOptions options = {});
  ~TargetFixture() override;
  void SetUp() override;
  void TearDown() override;

  const TargetOptions& options() const { return options_; }
  // Of a controller; empty if there is none of that number (an external target with one socket).
  std::string socket_path(unsigned controller = 0) const;

  // ---- Knobs of controller 0, only with the target in this process
  bool in_process() const { return in_process_; }
  void resize_bdev(uint64_t size_bytes);
  void remove_bdev();
  int flush_count() const;  // flushes (or writes with force unit access) that reached the bdev
  // Requests that reach the bdev stay there until release_io().
  void hold_io();
  void release_io();
  void release_oldest_io(int count);
  int held_io_count() const;
  void wait_until_held(int count);
  IoStats iostat();
  // Of the front end that is connected. Requires: there is one.
  vhost::SessionInfo session_info();

 protected:
  // A session that is open and running, or a failed test and a session to be dropped.
  std::unique_ptr<Session> running(SessionOptions options = {}, unsigned controller = 0);
  // A request or two on a ring: writes, reads back, compares.
  static void expect_io_works(Session& session, size_t queue = 0, uint32_t seed = 1);
  // A new front end can connect and do I/O.
  void expect_target_alive(unsigned controller = 0);

 private:
  struct Target;  // the reactor thread, bdevs and controllers

  const TargetOptions options_;
  bool in_process_ = false;
  std::vector<std::string> sockets_;
  std::unique_ptr<Target> target_;
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

// Ends a test as skipped unless the target runs in this process.
#define SKIP_UNLESS_IN_PROCESS() \
  if (!in_process()) GTEST_SKIP() << "needs the target in this process (SLUICE_TEST_SOCKET is set)"
// Ends a test as skipped unless the session negotiated a feature.
#define SKIP_UNLESS(condition) \
  if (!(condition)) GTEST_SKIP() << "the target does not offer it: " #condition

}  // namespace sluice::test
