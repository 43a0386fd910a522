#include "app/conformance/target_fixture.h"

#include <algorithm>
#include <cstring>

namespace sluice::test {
namespace {

constexpr std::string_view kLettersAndDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

}  // namespace

std::string not_offered(std::string_view condition) {
  const size_t name = condition.rfind("::k");
  if (name != condition.npos) condition.remove_prefix(name + 3);
  condition = condition.substr(0, condition.find_first_not_of(kLettersAndDigits));
  return "the target does not offer " + std::string(condition);
}

void skip_case(const std::string& reason) {
  [&] { GTEST_SKIP() << reason; }();
  // GoogleTest's own way out of a case whose result has been told.
  throw testing::AssertionException(
      testing::TestPartResult(testing::TestPartResult::kSkip, __FILE__, __LINE__, reason.c_str()));
}

TargetFixture::TargetFixture(TargetOptions options) : options_(options) {}

void TargetFixture::SetUp() {
  target_ = make_target(options_);
  if (options_.readonly && !target_->readonly()) GTEST_SKIP() << "the target is not read-only";
  if (!options_.readonly && target_->readonly()) GTEST_SKIP() << "the target is read-only, and the case writes";
}

void TargetFixture::TearDown() { target_.reset(); }

std::unique_ptr<Session> TargetFixture::opened(SessionOptions options, unsigned controller) {
  // Who asks for more than two queues is content with fewer.
  const size_t needed = std::min<size_t>(options.num_queues, 2);
  auto session = std::make_unique<Session>(std::move(options));
  EXPECT_TRUE(session->open(socket_path(controller))) << session->error();
  if (!HasFailure() && session->num_queues() < needed) {
    skip_case("the target has one queue only, and the case needs two");
  }
  return session;
}

std::unique_ptr<Session> TargetFixture::running(SessionOptions options, unsigned controller) {
  auto session = opened(std::move(options), controller);
  if (HasFailure()) return session;
  EXPECT_TRUE(session->start()) << session->error();
  return session;
}

vhost::BlkConfig TargetFixture::config_of(Session& session) {
  vhost::BlkConfig config;
  const auto bytes = session.front_end().get_config(0, sizeof(config));
  EXPECT_TRUE(bytes) << session.front_end().error();
  if (bytes) std::memcpy(&config, bytes->data(), sizeof(config));
  return config;
}

void TargetFixture::expect_io_works(Session& session, size_t queue, uint32_t seed) {
  BlkDriver& blk = session.blk(queue);
  Bytes data = pattern(8192, seed);
  uint64_t sector = 64 + 32 * queue;
  ASSERT_EQ(blk.write(sector, data), vhost::BlkStatus::kOk)
      << "queue " << queue << " " << session.ring(queue).violation();
  Bytes back(data.size());
  ASSERT_EQ(blk.read(sector, back), vhost::BlkStatus::kOk)
      << "queue " << queue << " " << session.ring(queue).violation();
  EXPECT_TRUE(back == data) << "queue " << queue << " read other bytes than were written";
  EXPECT_EQ(session.ring(queue).violation(), "") << "queue " << queue;
}

void TargetFixture::expect_target_alive(unsigned controller) {
  Session session;
  ASSERT_TRUE(session.open_and_start(socket_path(controller))) << session.error();
  expect_io_works(session, 0, 77);
}

}  // namespace sluice::test
