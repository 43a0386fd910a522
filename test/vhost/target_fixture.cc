#include "test/vhost/target_fixture.h"

#include <cstdlib>
#include <sstream>

namespace sluice::test {

// ---- The target in this process -------------------------------------------------------------------------------------

struct TargetFixture::Target {};

void TargetFixture::resize_bdev(uint64_t) {}
void TargetFixture::remove_bdev() {}
int TargetFixture::flush_count() const { return 0; }
void TargetFixture::hold_io() {}
void TargetFixture::release_io() {}
int TargetFixture::held_io_count() const { return 0; }

// ---- Common ---------------------------------------------------------------------------------------------------------

TargetFixture::TargetFixture(TargetOptions options) : options_(options) {}
TargetFixture::~TargetFixture() = default;

void TargetFixture::SetUp() {
  const char* external = std::getenv("SLUICE_TEST_SOCKET");
  if (external == nullptr) GTEST_SKIP() << "no target in this process yet; set SLUICE_TEST_SOCKET";
  std::istringstream paths(external);
  for (std::string path; std::getline(paths, path, ',');) sockets_.push_back(path);
  if (options_.readonly) {
    FrontEnd probe;
    ASSERT_TRUE(probe.connect(socket_path())) << probe.error();
    auto features = probe.get_u64(vhost::Request::kGetFeatures);
    if (!features || (*features & vhost::kBlkFeatureRo) == 0) GTEST_SKIP() << "the external target is not read-only";
  }
}

void TargetFixture::TearDown() {}

std::string TargetFixture::socket_path(unsigned controller) const {
  return controller < sockets_.size() ? sockets_[controller] : std::string();
}

std::unique_ptr<Session> TargetFixture::running(SessionOptions options, unsigned controller) {
  auto session = std::make_unique<Session>(std::move(options));
  EXPECT_TRUE(session->open(socket_path(controller))) << session->error();
  if (!HasFailure()) EXPECT_TRUE(session->start()) << session->error();
  return session;
}

void TargetFixture::expect_io_works(Session& session, size_t queue, uint32_t seed) {
  BlkDriver& blk = session.blk(queue);
  Bytes data = pattern(8192, seed);
  uint64_t sector = 64 + 32 * queue;
  EXPECT_EQ(blk.write(sector, data), vhost::BlkStatus::kOk) << "queue " << queue;
  Bytes back(data.size());
  EXPECT_EQ(blk.read(sector, back), vhost::BlkStatus::kOk) << "queue " << queue;
  EXPECT_TRUE(back == data) << "queue " << queue << " read other bytes than were written";
  EXPECT_EQ(session.ring(queue).violation(), "") << "queue " << queue;
}

void TargetFixture::expect_target_alive(unsigned controller) {
  Session session;
  ASSERT_TRUE(session.open_and_start(socket_path(controller))) << session.error();
  expect_io_works(session, 0, 77);
}

}  // namespace sluice::test
