// TargetFixture: a vhost-user-blk target for the tests of one test suite, with knobs that a front end does not have.
//
// With SLUICE_TEST_SOCKET set to one or more socket paths (separated by commas), the tests run against whatever listens
// there, and those that need a knob are skipped. Otherwise the target is made in this process, one per test.
//
// Thread: the test's own; the target runs on others.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "test/vhost/session.h"

namespace sluice::test {

struct TargetOptions {
  uint64_t size_bytes = 16 << 20;
  uint32_t block_size = 512;
  bool readonly = false;
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
  int held_io_count() const;

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

// Ends a test as skipped unless the target runs in this process.
#define SKIP_UNLESS_IN_PROCESS() \
  if (!in_process()) GTEST_SKIP() << "needs the target in this process (SLUICE_TEST_SOCKET is set)"
// Ends a test as skipped unless the session negotiated a feature.
#define SKIP_UNLESS(condition) \
  if (!(condition)) GTEST_SKIP() << "the target does not offer it: " #condition

}  // namespace sluice::test
