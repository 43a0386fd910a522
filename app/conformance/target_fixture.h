// TargetFixture: what the cases of one suite have in common: a vhost-user-blk target, and a front end that tries it.
//
// The program that the cases are linked into says what the target is, by make_target(): sluice-conformance gives them
// the socket that it was told, our unit tests a target of their own in the same process.
//
// Thread: the test's own.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "app/conformance/quote.h"
#include "app/conformance/session.h"

namespace sluice::test {

// Waits until the condition holds; false if the deadline passes first.
template <typename Condition>
bool eventually(Condition&& condition, int timeout_ms = kTimeoutMs) {
  for (const Deadline deadline(timeout_ms); !condition(); ::usleep(100)) {
    if (deadline.passed()) return false;
  }
  return true;
}

// What a case needs; only a target that is made for it is so.
struct TargetOptions {
  uint64_t size_bytes = 16 << 20;
  uint32_t block_size = 512;
  bool readonly = false;
  bool packed_ring = false;      // that it offers them; it may in any case
  unsigned num_controllers = 2;  // each with a socket and a bdev of its own
};

class TestedTarget {
 public:
  virtual ~TestedTarget() = default;
  // Of a controller; empty if there is none of that number.
  virtual std::string socket_path(unsigned controller) const = 0;
  virtual bool readonly() const = 0;
};

// Defined by the program. Called once for each case.
std::unique_ptr<TestedTarget> make_target(const TargetOptions& options);

// "the target does not offer ProtocolStatus", of "session->has_protocol(vhost::kProtocolStatus)".
std::string not_offered(std::string_view condition);
// Ends the case as skipped, from anywhere in it.
[[noreturn]] void skip_case(const std::string& reason);

class TargetFixture : public ::testing::Test {
 public:
  explicit TargetFixture(TargetOptions options = {});
  void SetUp() override;
  void TearDown() override;

  const TargetOptions& options() const { return options_; }
  std::string socket_path(unsigned controller = 0) const { return target_->socket_path(controller); }

 protected:
  // A session that is open, with as many queues as needed, or a failed test and a session to be dropped.
  std::unique_ptr<Session> opened(SessionOptions options = {}, unsigned controller = 0);
  // One that is running as well.
  std::unique_ptr<Session> running(SessionOptions options = {}, unsigned controller = 0);
  // A request or two on a ring: writes, reads back, compares.
  static void expect_io_works(Session& session, size_t queue = 0, uint32_t seed = 1);
  // The configuration space, as the target tells it now.
  static vhost::BlkConfig config_of(Session& session);
  // A new front end can connect and do I/O.
  void expect_target_alive(unsigned controller = 0);
  TestedTarget& target() { return *target_; }

 private:
  const TargetOptions options_;
  std::unique_ptr<TestedTarget> target_;
};

// Ends a test as skipped unless the session negotiated a feature.
#define SKIP_UNLESS(condition) \
  if (!(condition)) GTEST_SKIP() << ::sluice::test::not_offered(#condition)

}  // namespace sluice::test
