#include "test/vhost/target_fixture.h"

#include <cstdlib>
#include <sstream>

#include "test/vhost/in_process_target.h"

namespace sluice::test {

// ---- The target in this process -------------------------------------------------------------------------------------

struct TargetFixture::Target : InProcessTarget {
  using InProcessTarget::InProcessTarget;
};

void TargetFixture::resize_bdev(uint64_t size_bytes) { target_->resize_bdev(0, size_bytes); }
void TargetFixture::remove_bdev() { target_->remove_bdev(0); }
int TargetFixture::flush_count() const { return target_->bdev(0).flush_count(); }
void TargetFixture::hold_io() { target_->bdev(0).hold(); }
void TargetFixture::release_io() { target_->release_io(0); }
void TargetFixture::release_oldest_io(int count) { target_->release_oldest_io(0, count); }
int TargetFixture::held_io_count() const { return target_->bdev(0).held_count(); }
void TargetFixture::wait_until_held(int count) {
  EXPECT_TRUE(eventually([&] { return held_io_count() >= count; })) << held_io_count() << " of " << count;
}
IoStats TargetFixture::iostat() { return target_->iostat(0); }
vhost::SessionInfo TargetFixture::session_info() { return target_->info(0).sessions.at(0); }

// ---- Common ---------------------------------------------------------------------------------------------------------

TargetFixture::TargetFixture(TargetOptions options) : options_(options) {}
TargetFixture::~TargetFixture() = default;

void TargetFixture::SetUp() {
  const char* external = std::getenv("SLUICE_TEST_SOCKET");
  if (external == nullptr) {
    in_process_ = true;
    target_ = std::make_unique<Target>(InProcessTarget::Options{.size_bytes = options_.size_bytes,
                                                                .block_size = options_.block_size,
                                                                .readonly = options_.readonly,
                                                                .packed_ring = options_.packed_ring,
                                                                .num_controllers = options_.num_controllers});
    for (unsigned i = 0; i < options_.num_controllers; ++i) sockets_.push_back(target_->socket_path(i));
    return;
  }
  std::istringstream paths(external);
  for (std::string path; std::getline(paths, path, ',');) sockets_.push_back(path);
  if (options_.readonly) {
    FrontEnd probe;
    ASSERT_TRUE(probe.connect(socket_path())) << probe.error();
    auto features = probe.get_u64(vhost::Request::kGetFeatures);
    if (!features || (*features & vhost::kBlkFeatureRo) == 0) GTEST_SKIP() << "the external target is not read-only";
  }
}

void TargetFixture::TearDown() { target_.reset(); }

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
