// What the uring bdev does about a kernel that is slow, busy or short of something: with system calls of our own before
// the real ones. What it has in common with aio is in file_bdev_test.cc.
#include <gtest/gtest.h>
#include <liburing.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lib/bdev/file_queue.h"
#include "lib/bdev/uring/uring_bdev.h"
#include "lib/bdev/uring/uring_ring.h"
#include "test/support/disk_user.h"
#include "test/support/temp_file.h"
#include "test/support/traveller.h"

namespace sluice {
namespace {

// liburing's functions take no argument of ours, so there is one of these at a time.
struct FakeKernel {
  int setup_error = 0;       // what setting up returns
  int busy_calls = 0;        // so many calls find no memory
  bool hold = false;         // submitted requests stay with us until release()
  unsigned most = UINT_MAX;  // taken in one call
  bool spoils_last = false;  // the last request of the next call is one that the kernel refuses
  io_uring* ring = nullptr;  // of the last call
  std::map<io_uring*, unsigned> held_in;
  std::vector<unsigned> calls;  // how many requests each one came with

  unsigned held() const {
    unsigned sum = 0;
    for (const auto& [held_ring, count] : held_in) sum += count;
    return sum;
  }
  void release() {
    hold = false;
    for (auto& [held_ring, count] : held_in) {
      const int taken = ::io_uring_submit(held_ring);
      EXPECT_EQ(taken, static_cast<int>(std::exchange(count, 0)));
    }
  }
  // As release(), but the kernel does none of them: each completes with EAGAIN.
  void refuse() {
    for (auto& [held_ring, count] : held_in) {
      for (unsigned i = 1; i <= count; ++i) {
        io_uring_sqe& entry = held_ring->sq.sqes[(held_ring->sq.sqe_tail - i) & *held_ring->sq.kring_mask];
        const uint64_t user_data = entry.user_data;
        entry = {};
        ::io_uring_prep_nop(&entry);
        entry.user_data = user_data;
      }
    }
    release();
    for (auto& [held_ring, count] : held_in) {
      unsigned head = 0;
      io_uring_cqe* entry = nullptr;
      io_uring_for_each_cqe(held_ring, head, entry) entry->res = -EAGAIN;
    }
  }
};
FakeKernel* fake = nullptr;

int fake_setup(unsigned entries, io_uring* ring, io_uring_params* params) {
  if (fake->setup_error != 0) return fake->setup_error;
  return ::io_uring_queue_init_params(entries, ring, params);
}

int fake_submit(io_uring* ring) {
  fake->ring = ring;
  const unsigned count = ::io_uring_sq_ready(ring) - fake->held_in[ring];
  fake->calls.push_back(count);
  if (fake->busy_calls > 0) {
    --fake->busy_calls;
    return -EAGAIN;
  }
  if (fake->hold) {
    fake->held_in[ring] += count;
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
  BdevWorld world_{3};
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
  EXPECT_EQ(kernel_.held(), 3U);
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
  ASSERT_EQ(kernel_.held(), 512U);
  // In order of submission.
  for (size_t i = 0; i < kernel_.held(); ++i) EXPECT_EQ(kernel_.ring->sq.sqes[i].off, i * 4096);
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

// --- Threads that go to another host ---

class UringMoveTest : public UringTest {
 protected:
  void SetUp() override {
    UringTest::SetUp();
    if (!IsSkipped()) world_.add(create());
  }
  // So many writes of a page by the traveller, each to a place of its own, from the first on.
  std::vector<std::unique_ptr<PlacedIo>> submit_writes(Traveller& traveller, size_t count, size_t first = 0) {
    std::vector<std::unique_ptr<PlacedIo>> ios;
    for (size_t i = first; i < first + count; ++i) {
      ios.emplace_back(new PlacedIo(IoType::kWrite, i * 4096, {data_.bytes(i * 4096, 4096)}));
      traveller.disk().submit(*ios.back());
    }
    return ios;
  }
  void finish_all(const std::vector<std::unique_ptr<PlacedIo>>& ios, Traveller& traveller, size_t host) {
    for (const auto& io : ios) {
      ASSERT_TRUE(world_.hosts.run_until([&io] { return io->done; }));
      ASSERT_EQ(io->status, IoStatus::kOk);
      ASSERT_EQ(io->completions, 1);
      ASSERT_EQ(io->thread, &traveller.thread());
      ASSERT_EQ(io->host, &world_.hosts[host]);
    }
    const size_t bytes = ios.size() * 4096;
    const uint64_t begin = ios.front()->offset_bytes;
    ASSERT_TRUE(std::ranges::equal(file_.contents(begin, bytes), data_.bytes(begin, bytes)));
  }
};

TEST_F(UringMoveTest, WhatTheKernelHoldsCompletesOnTheNewHost) {
  Traveller traveller(world_, 1);
  for (const size_t host : {2U, 0U, 1U}) {
    kernel_.hold = true;
    const auto ios = submit_writes(traveller, 3);
    world_.hosts.run_until_idle();
    ASSERT_EQ(kernel_.held(), 3U);
    traveller.move(host);
    for (const auto& io : ios) EXPECT_FALSE(io->done);
    kernel_.release();
    finish_all(ios, traveller, host);
  }
}

TEST_F(UringMoveTest, WhatWaitsIsSubmittedOnTheNewHost) {
  constexpr size_t kWaiting = 5;
  Traveller traveller(world_, 1);
  kernel_.hold = true;
  const auto held = submit_writes(traveller, FileQueue::kSlots);
  const auto waiting = submit_writes(traveller, kWaiting, FileQueue::kSlots);
  world_.hosts.run_until_idle();
  ASSERT_EQ(kernel_.held(), FileQueue::kSlots);
  io_uring* const old_ring = kernel_.ring;
  traveller.move(2);
  world_.hosts.run_until_idle();
  EXPECT_EQ(kernel_.held_in[old_ring], FileQueue::kSlots);
  EXPECT_EQ(kernel_.held(), FileQueue::kSlots + kWaiting);
  EXPECT_NE(kernel_.ring, old_ring);
  kernel_.release();
  finish_all(held, traveller, 2);
  finish_all(waiting, traveller, 2);
}

TEST_F(UringMoveTest, WhatTheKernelWasTooBusyForIsSubmittedAgainOnTheNewHost) {
  Traveller traveller(world_, 1);
  kernel_.hold = true;
  const auto ios = submit_writes(traveller, 3);
  world_.hosts.run_until_idle();
  io_uring* const old_ring = kernel_.ring;
  traveller.move(2);
  kernel_.refuse();
  kernel_.hold = true;
  world_.hosts.run_until_idle();
  for (const auto& io : ios) EXPECT_FALSE(io->done);
  EXPECT_EQ(kernel_.held_in[old_ring], 0U);
  EXPECT_EQ(kernel_.held(), 3U);
  kernel_.release();
  finish_all(ios, traveller, 2);
}

TEST_F(UringMoveTest, WhatTheKernelWasTooBusyForFollowsAThreadThatHasComeBack) {
  Traveller traveller(world_, 1);
  kernel_.hold = true;
  const auto ios = submit_writes(traveller, 3);
  world_.hosts.run_until_idle();
  traveller.move(2);
  kernel_.refuse();
  kernel_.hold = true;
  // What was refused is on its way to host 2 while the thread goes back.
  traveller.move(1);
  while (kernel_.held() == 0) {
    world_.hosts.advance(kNsPerMs);
    world_.hosts.run_until_idle();
  }
  kernel_.release();
  finish_all(ios, traveller, 1);
}

// The old ring knows the file by a place in its table, which could be empty, or another file's, by the time that the
// kernel takes what it had no memory for.
TEST_F(UringMoveTest, WhatTheKernelHasNotTakenStaysWithItsFile) {
  const TempFile other_file(4U << 20);
  world_.add(module_.create({.name = "other", .filename = other_file.path()}));
  auto traveller = std::make_unique<Traveller>(world_, 1);
  Traveller stays(world_, 1, "other");
  kernel_.busy_calls = 1;
  const auto ios = submit_writes(*traveller, 3);
  world_.hosts.run_until_idle();
  ASSERT_EQ(kernel_.calls.size(), 1U);
  traveller->move(2);
  kernel_.busy_calls = 1;  // the retry's
  PageBuffer page(4096, 9);
  PlacedIo read(IoType::kRead, 0, {page.bytes()});
  stays.disk().submit(read);
  world_.hosts.run_until_idle();
  while (!ios.back()->done || !read.done) {
    world_.hosts.advance(kNsPerMs);
    world_.hosts.run_until_idle();
  }
  finish_all(ios, *traveller, 2);
  EXPECT_EQ(stays.disk().finish(read), IoStatus::kOk);
  EXPECT_TRUE(all_zero(page.bytes()));
  EXPECT_TRUE(all_zero(other_file.contents(0, 4U << 20)));
  // Its place is given back.
  traveller.reset();
  world_.hosts.await(world_.app(), world_.manager.remove(*world_.manager.find("disk"), RemoveMode::kIfUnused));
  EXPECT_TRUE(create().has_value());
}

}  // namespace
}  // namespace sluice
