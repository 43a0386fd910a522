// What the uring bdev does about a kernel that is slow, busy or short of something: with system calls of our own before
// the real ones. What it has in common with aio is in file_bdev_test.cc.
#include <gtest/gtest.h>
#include <liburing.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lib/bdev/uring/uring_bdev.h"
#include "lib/bdev/uring/uring_ring.h"
#include "test/support/disk_user.h"
#include "test/support/temp_file.h"

namespace sluice {
namespace {

// liburing's functions take no argument of ours, so there is one of these at a time.
struct FakeKernel {
  int setup_error = 0;       // what setting up returns
  int busy_calls = 0;        // so many calls find no memory
  bool hold = false;         // submitted requests stay with us until release()
  unsigned most = UINT_MAX;  // taken in one call
  bool spoils_last = false;  // the last request of the next call is one that the kernel refuses
  io_uring* ring = nullptr;
  unsigned held = 0;
  std::vector<unsigned> calls;  // how many requests each one came with

  void release() {
    hold = false;
    const int taken = ::io_uring_submit(ring);
    EXPECT_EQ(taken, static_cast<int>(std::exchange(held, 0)));
  }
};
FakeKernel* fake = nullptr;

int fake_setup(unsigned entries, io_uring* ring, io_uring_params* params) {
  if (fake->setup_error != 0) return fake->setup_error;
  return ::io_uring_queue_init_params(entries, ring, params);
}

int fake_submit(io_uring* ring) {
  fake->ring = ring;
  const unsigned count = ::io_uring_sq_ready(ring) - fake->held;
  fake->calls.push_back(count);
  if (fake->busy_calls > 0) {
    --fake->busy_calls;
    return -EAGAIN;
  }
  if (fake->hold) {
    fake->held += count;
    return static_cast<int>(count);
  }
  if (std::exchange(fake->spoils_last, false)) {
    ring->sq.sqes[(ring->sq.sqe_tail - 1) & *ring->sq.kring_mask].opcode = UINT8_MAX;
  }
  if (count <= fake->most) return ::io_uring_submit_and_get_events(ring);
  // As liburing does, but not for all of them.
  const unsigned tail = ring->sq.sqe_tail;
  ring->sq.sqe_tail = tail - (count - fake->most);
  const int taken = ::io_uring_submit_and_get_events(ring);
  ring->sq.sqe_tail = tail;
  return taken;
}

constexpr UringSystem kFakeSystem{.setup = fake_setup, .submit = fake_submit};

class UringTest : public testing::Test {
 protected:
  UringTest() { fake = &kernel_; }
  ~UringTest() override {
    user_.reset();
    fake = nullptr;
  }
  void SetUp() override {
    if (!create()) GTEST_SKIP() << "this kernel has no io_uring, or it is disabled";
  }

  Result<std::unique_ptr<Bdev>> create() { return module_.create({.name = "disk", .filename = file_.path()}); }
  void open() {
    world_.add(create());
    user_ = std::make_unique<DiskUser>(world_);
  }
  // So many writes of a page, each to a place of its own.
  std::vector<std::unique_ptr<TestIo>> submit_writes(size_t count) {
    std::vector<std::unique_ptr<TestIo>> ios;
    for (size_t i = 0; i < count; ++i) {
      ios.emplace_back(new TestIo(IoType::kWrite, i * 4096, {data_.bytes(i * 4096, 4096)}));
      user_->submit(*ios.back());
    }
    return ios;
  }
  void finish_all(const std::vector<std::unique_ptr<TestIo>>& ios, IoStatus status = IoStatus::kOk) {
    for (const auto& io : ios) ASSERT_EQ(user_->finish(*io), status);
  }
  Poller& poller() {
    Poller* found = nullptr;
    world_.app().for_each_poller([&found](Poller& poller) { found = &poller; });
    return *found;
  }
  bool notifies() const { return ::io_uring_cq_eventfd_enabled(kernel_.ring); }

  const TempFile file_{4U << 20};
  PageBuffer data_{4U << 20, 1};
  FakeKernel kernel_;
  UringModule module_{&kFakeSystem};
  BdevWorld world_;
  std::unique_ptr<DiskUser> user_;
};

TEST_F(UringTest, OneCallSubmitsWhatOneTurnBrought) {
  open();
  finish_all(submit_writes(40));
  EXPECT_EQ(kernel_.calls, std::vector<unsigned>{40});
}

TEST_F(UringTest, SleepsWhileInFlightAndIsWokenByTheKernel) {
  open();
  kernel_.hold = true;
  const auto ios = submit_writes(3);
  world_.hosts.run_until_idle();
  EXPECT_EQ(kernel_.held, 3U);
  EXPECT_FALSE(poller().hot());
  EXPECT_FALSE(world_.hosts[0].runnable());
  EXPECT_TRUE(notifies());
  kernel_.release();
  finish_all(ios);
  world_.hosts.run_until_idle();
  EXPECT_FALSE(poller().hot());
  EXPECT_FALSE(notifies()) << "nothing is in flight";
}

TEST_F(UringTest, AdaptivePollsForTheWindowAndThenSleeps) {
  open();
  world_.hosts.set_mode(PollMode::kAdaptive);
  world_.hosts.set_polling({.grow_start_ns = 50 * kNsPerUs});
  kernel_.hold = true;
  const auto early = submit_writes(1);
  world_.hosts.run_until_idle();
  EXPECT_FALSE(poller().hot()) << "it has learned no window yet";
  world_.hosts.advance(20 * kNsPerUs);
  kernel_.release();
  finish_all(early);
  kernel_.hold = true;
  const auto ios = submit_writes(1);
  world_.hosts.run_until_idle();
  world_.hosts.advance(49 * kNsPerUs);
  world_.hosts.run_until_idle();
  EXPECT_TRUE(poller().hot());
  EXPECT_FALSE(notifies());
  world_.hosts.advance(kNsPerUs);
  world_.hosts.run_until_idle();
  EXPECT_FALSE(poller().hot());
  EXPECT_TRUE(notifies());
  kernel_.release();
  finish_all(ios);
}

TEST_F(UringTest, SwitchingModesLosesNothingInFlight) {
  open();
  world_.hosts.set_mode(PollMode::kPoll);
  kernel_.hold = true;
  const auto polled = submit_writes(2);
  for (int i = 0; i < 10; ++i) world_.hosts.turn();
  EXPECT_TRUE(poller().hot());
  EXPECT_FALSE(notifies());
  world_.hosts.set_mode(PollMode::kInterrupt);
  world_.hosts.run_until_idle();
  EXPECT_FALSE(poller().hot());
  EXPECT_TRUE(notifies());
  kernel_.release();
  finish_all(polled);

  kernel_.hold = true;
  const auto notified = submit_writes(2);
  world_.hosts.run_until_idle();
  world_.hosts.set_mode(PollMode::kPoll);
  EXPECT_TRUE(poller().hot());
  EXPECT_FALSE(notifies());
  kernel_.release();
  finish_all(notified);
}

TEST_F(UringTest, TakesUpWhatOneCallLeft) {
  open();
  kernel_.most = 3;
  const auto ios = submit_writes(10);
  while (!ios.back()->done) {
    ASSERT_TRUE(world_.hosts.run_until([&] { return !world_.hosts[0].runnable(); }));
    world_.hosts.advance(kNsPerMs);
    world_.hosts.turn();
  }
  finish_all(ios);
  EXPECT_EQ(kernel_.calls, (std::vector<unsigned>{10, 7, 4, 1}));
  EXPECT_TRUE(std::ranges::equal(file_.contents(0, 40'960), data_.bytes(0, 40'960)));
}

TEST_F(UringTest, TriesAgainLaterWhenTheKernelIsBusy) {
  open();
  kernel_.busy_calls = 2;
  const auto ios = submit_writes(5);
  world_.hosts.run_until_idle();
  EXPECT_EQ(kernel_.calls.size(), 1U) << "not at once";
  EXPECT_FALSE(world_.hosts[0].runnable());
  world_.hosts.advance(kNsPerMs);
  world_.hosts.run_until_idle();
  world_.hosts.advance(kNsPerMs);
  finish_all(ios);
  EXPECT_EQ(kernel_.calls, (std::vector<unsigned>{5, 5, 5}));
}

TEST_F(UringTest, HoldsNoMoreThanItsSlotsInTheKernel) {
  open();
  kernel_.hold = true;
  const auto ios = submit_writes(1000);
  world_.hosts.run_until_idle();
  ASSERT_EQ(kernel_.held, 512U);
  // In order of submission.
  for (size_t i = 0; i < kernel_.held; ++i) EXPECT_EQ(kernel_.ring->sq.sqes[i].off, i * 4096);
  kernel_.release();
  finish_all(ios);
}

TEST_F(UringTest, RequestThatTheKernelRefusesFailsAlone) {
  open();
  kernel_.spoils_last = true;
  const auto ios = submit_writes(3);
  EXPECT_EQ(user_->finish(*ios[0]), IoStatus::kOk);
  EXPECT_EQ(user_->finish(*ios[1]), IoStatus::kOk);
  EXPECT_NE(user_->finish(*ios[2]), IoStatus::kOk);
}

TEST_F(UringTest, SaysWhyThereIsNoIoUringAndWhatToUseInstead) {
  for (const auto& [error, code] :
       {std::pair(-ENOSYS, ENOSYS), std::pair(-EINVAL, ENOSYS), std::pair(-EPERM, EPERM), std::pair(-ENOMEM, ENOMEM)}) {
    kernel_.setup_error = error;
    const auto made = create();
    ASSERT_FALSE(made.has_value());
    EXPECT_EQ(made.error().code, code);
    EXPECT_NE(std::string(made.error().what).find("bdev_aio_create"), std::string::npos);
  }
}

TEST_F(UringTest, FailsIoWhileThereIsNoRingAndRecovers) {
  open();
  kernel_.setup_error = -ENOMEM;
  finish_all(submit_writes(3), IoStatus::kFailed);
  kernel_.setup_error = 0;
  finish_all(submit_writes(3));
}

TEST_F(UringTest, FilesBeyondTheTableWork) {
  open();
  // Each channel takes a place: more of them than there are, on threads of their own.
  constexpr size_t kChannels = UringRing::kMaxFiles + 2;
  std::vector<LwThread*> threads;
  std::vector<std::unique_ptr<DiskUser>> users;
  PageBuffer back(4096);
  for (size_t i = 0; i < kChannels; ++i) {
    const auto made = world_.threads.create("user", world_.hosts.all_cpus());
    ASSERT_TRUE(made.has_value());
    threads.push_back(*made);
    users.push_back(std::make_unique<DiskUser>(world_, "disk", **made));
    ASSERT_EQ(users.back()->read(0, back.bytes()), IoStatus::kOk);
  }
  users.clear();
  // The places are free again.
  finish_all(submit_writes(1));
  for (LwThread* thread : threads) world_.hosts.await(world_.app(), world_.threads.destroy(*thread));
}

TEST_F(UringTest, FileIsFreeAtOnceWhenTheDiskIsRemoved) {
  for (int i = 0; i < 3; ++i) {
    open();
    finish_all(submit_writes(1));
    user_.reset();
    world_.hosts.await(world_.app(), world_.manager.remove_all());
  }
}

TEST_F(UringTest, RemovalEndsWhatIsInFlightWithAnError) {
  open();
  kernel_.hold = true;
  const auto ios = submit_writes(3);
  world_.hosts.run_until_idle();
  bool gone = false;
  world_.hosts.on(world_.app(), [&] {
    start(world_.manager.remove(user_->bdev(), RemoveMode::kForce), [&gone](Result<>) { gone = true; });
  });
  EXPECT_TRUE(user_->removed);
  // The disk may still write into the buffers: nothing completes before it has.
  world_.hosts.run_until_idle();
  for (const auto& io : ios) EXPECT_FALSE(io->done);
  finish_all(submit_writes(1), IoStatus::kRemoved);
  kernel_.release();
  finish_all(ios, IoStatus::kRemoved);
  EXPECT_FALSE(gone);
  user_->close();
  EXPECT_TRUE(world_.hosts.run_until([&gone] { return gone; }));
}

}  // namespace
}  // namespace sluice
