// What the aio bdev does about a kernel that is slow, busy or short of something: with system calls of our own before
// the real ones.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <libaio.h>
#include <linux/magic.h>
#include <sys/statfs.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>
#include <vector>

#include "lib/bdev/aio/aio_bdev.h"
#include "lib/bdev/aio/aio_context.h"
#include "lib/bdev/file_queue.h"
#include "test/support/disk_user.h"
#include "test/support/temp_file.h"
#include "test/support/traveller.h"

namespace sluice {
namespace {

// libaio's functions take no argument of ours, so there is one of these at a time.
struct FakeKernel {
  int setup_error = 0;         // what io_setup returns
  bool unknown_ring = false;   // the completion ring has a form we do not know
  bool hold = false;           // submitted requests stay in flight until release()
  size_t most = SIZE_MAX;      // taken in one call
  int busy_calls = 0;          // so many calls find no room
  bool refuses_flush = false;  // as for a file without fsync
  std::vector<iocb*> held;
  io_context_t context = nullptr;
  std::vector<size_t> calls;  // how many requests each one came with

  void release() {
    hold = false;
    const auto count = static_cast<long>(held.size());
    ASSERT_EQ(::io_submit(context, count, held.data()), count);
    held.clear();
  }
};
FakeKernel* fake = nullptr;

int fake_setup(int max_events, io_context_t* context) {
  if (fake->setup_error != 0) return fake->setup_error;
  const int result = ::io_setup(max_events, context);
  constexpr size_t kMagicIndex = 4;  // struct aio_ring
  if (result == 0 && fake->unknown_ring) reinterpret_cast<uint32_t*>(*context)[kMagicIndex] = 0;
  return result;
}

int fake_submit(io_context_t context, long count, iocb** controls) {
  fake->calls.push_back(static_cast<size_t>(count));
  if (fake->busy_calls > 0) {
    --fake->busy_calls;
    return -EAGAIN;
  }
  const auto is_flush = [](const iocb* control) { return control->aio_lio_opcode == IO_CMD_FDSYNC; };
  size_t most = std::min(static_cast<size_t>(count), fake->most);
  if (fake->refuses_flush) {
    most = static_cast<size_t>(std::find_if(controls, controls + most, is_flush) - controls);
    if (most == 0) return -EINVAL;
  }
  if (!fake->hold) return ::io_submit(context, static_cast<long>(most), controls);
  fake->context = context;
  fake->held.insert(fake->held.end(), controls, controls + most);
  return static_cast<int>(most);
}

constexpr AioSystem kFakeSystem{.setup = fake_setup, .submit = fake_submit};

class AioKernelTest : public testing::Test {
 protected:
  AioKernelTest() { fake = &kernel_; }
  ~AioKernelTest() override {
    user_.reset();
    fake = nullptr;
  }

  void SetUp() override {
    const UniqueFd direct(::open(file_.path().c_str(), O_RDONLY | O_DIRECT));
    struct statfs system{};
    if (!direct || ::fstatfs(direct.get(), &system) != 0 || system.f_type == TMPFS_MAGIC)
      GTEST_SKIP() << "no direct I/O in the folder for temporary files: set TMPDIR to one on a disk";
  }

  void open() { open(file_.path()); }
  void open(const std::string& path) {
    world_.add(module_.create({.name = "disk", .filename = path}));
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

  const TempFile file_{4U << 20};
  PageBuffer data_{4U << 20, 1};
  FakeKernel kernel_;
  AioModule module_{&kFakeSystem};
  BdevWorld world_{3};
  std::unique_ptr<DiskUser> user_;
};

TEST_F(AioKernelTest, OneCallSubmitsWhatOneTurnBrought) {
  open();
  finish_all(submit_writes(40));
  EXPECT_EQ(kernel_.calls, std::vector<size_t>{40});
}

TEST_F(AioKernelTest, AsksForNoNotificationOfWhatGoesThroughThePageCache) {
  const TempFile cached(4U << 20, TempFile::Kind::kMemory);
  open(cached.path());
  kernel_.hold = true;
  const auto writes = submit_writes(3);
  TestIo flush(IoType::kFlush, 0, 0);
  user_->submit(flush);
  for (int i = 0; i < 4; ++i) world_.hosts.turn();
  ASSERT_EQ(kernel_.held.size(), 4U);
  for (const iocb* control : kernel_.held) {
    const bool notifies = (control->u.c.flags & 1U) != 0;  // IOCB_FLAG_RESFD
    EXPECT_EQ(notifies, control->aio_lio_opcode == IO_CMD_FDSYNC);
  }
  EXPECT_TRUE(poller().hot());  // nobody would wake it
  kernel_.release();
  finish_all(writes);
  EXPECT_EQ(user_->finish(flush), IoStatus::kOk);
}

TEST_F(AioKernelTest, SleepsWhileInFlightAndIsWokenByTheKernel) {
  open();
  kernel_.hold = true;
  const auto ios = submit_writes(3);
  world_.hosts.run_until_idle();
  EXPECT_EQ(kernel_.held.size(), 3U);
  EXPECT_FALSE(poller().hot());
  EXPECT_FALSE(world_.hosts[0].runnable());
  kernel_.release();
  finish_all(ios);
  world_.hosts.run_until_idle();
  EXPECT_FALSE(poller().hot());
}

TEST_F(AioKernelTest, AdaptivePollsForTheWindowAndThenSleeps) {
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
  EXPECT_TRUE(poller().hot());
  world_.hosts.advance(49 * kNsPerUs);
  world_.hosts.run_until_idle();
  EXPECT_TRUE(poller().hot());
  world_.hosts.advance(kNsPerUs);
  world_.hosts.run_until_idle();
  EXPECT_FALSE(poller().hot());
  kernel_.release();
  finish_all(ios);
  world_.hosts.run_until_idle();
  EXPECT_FALSE(poller().hot()) << "nothing is in flight: the window does not count";
}

TEST_F(AioKernelTest, PollModeAsksForNoNotification) {
  open();
  for (const auto& [mode, notified] : {std::pair(PollMode::kPoll, false), std::pair(PollMode::kInterrupt, true),
                                       std::pair(PollMode::kAdaptive, true)}) {
    world_.hosts.set_mode(mode);
    kernel_.hold = true;
    const auto ios = submit_writes(1);
    world_.hosts.run_until_idle();
    ASSERT_EQ(kernel_.held.size(), 1U);
    constexpr unsigned kNotify = 1;  // IOCB_FLAG_RESFD
    EXPECT_EQ((kernel_.held[0]->u.c.flags & kNotify) != 0, notified);
    kernel_.release();
    finish_all(ios);
  }
}

TEST_F(AioKernelTest, SwitchingFromPollModeLosesNothingInFlight) {
  open();
  world_.hosts.set_mode(PollMode::kPoll);
  kernel_.hold = true;
  const auto silent = submit_writes(2);
  world_.hosts.run_until_idle();
  world_.hosts.set_mode(PollMode::kInterrupt);
  for (int i = 0; i < 100; ++i) world_.hosts.turn();
  EXPECT_TRUE(poller().hot()) << "nobody would wake it";
  kernel_.release();
  finish_all(silent);
  world_.hosts.run_until_idle();
  EXPECT_FALSE(poller().hot());
}

TEST_F(AioKernelTest, SwitchingToPollModeLosesNothingInFlight) {
  open();
  kernel_.hold = true;
  const auto notified = submit_writes(2);
  world_.hosts.run_until_idle();
  EXPECT_FALSE(poller().hot());
  world_.hosts.set_mode(PollMode::kPoll);
  EXPECT_TRUE(poller().hot());
  kernel_.release();
  finish_all(notified);
}

TEST_F(AioKernelTest, TakesUpWhatOneCallLeft) {
  open();
  kernel_.most = 3;
  finish_all(submit_writes(10));
  EXPECT_EQ(kernel_.calls, (std::vector<size_t>{10, 7, 4, 1}));
  EXPECT_TRUE(std::ranges::equal(file_.contents(0, 40'960), data_.bytes(0, 40'960)));
}

TEST_F(AioKernelTest, TriesAgainLaterWhenTheKernelIsBusy) {
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
  EXPECT_EQ(kernel_.calls, (std::vector<size_t>{5, 5, 5}));
}

TEST_F(AioKernelTest, HoldsNoMoreThanItsSlotsInTheKernel) {
  open();
  kernel_.hold = true;
  const auto ios = submit_writes(1000);
  world_.hosts.run_until_idle();
  EXPECT_EQ(kernel_.held.size(), 512U);
  // In order of submission.
  for (size_t i = 0; i < kernel_.held.size(); ++i) {
    EXPECT_EQ(kernel_.held[i]->u.c.offset, static_cast<long long>(i * 4096));
  }
  kernel_.release();
  finish_all(ios);
}

TEST_F(AioKernelTest, FailsIoWhileThereIsNoContextAndRecovers) {
  open();
  kernel_.setup_error = -EAGAIN;
  finish_all(submit_writes(3), IoStatus::kFailed);
  kernel_.setup_error = 0;
  finish_all(submit_writes(3));
}

TEST_F(AioKernelTest, FlushesOnAThreadWhereTheKernelCannotAsynchronously) {
  open();
  kernel_.refuses_flush = true;
  const auto before = submit_writes(2);
  TestIo flush(IoType::kFlush, 0, uint64_t{0});
  user_->submit(flush);
  const auto after = submit_writes(2);
  EXPECT_EQ(user_->finish(flush), IoStatus::kOk);
  finish_all(before);
  finish_all(after);
  // It is remembered.
  kernel_.calls.clear();
  EXPECT_EQ(user_->flush(), IoStatus::kOk);
  EXPECT_TRUE(kernel_.calls.empty());
}

TEST_F(AioKernelTest, AsksTheKernelWhereTheRingIsUnknown) {
  kernel_.unknown_ring = true;
  open();
  for (const PollMode mode : {PollMode::kInterrupt, PollMode::kPoll, PollMode::kAdaptive}) {
    world_.hosts.set_mode(mode);
    finish_all(submit_writes(600));
  }
  kernel_.hold = true;
  const auto ios = submit_writes(3);
  world_.hosts.run_until_idle();
  world_.hosts.advance(kNsPerMs);
  world_.hosts.run_until_idle();
  EXPECT_FALSE(poller().hot());
  kernel_.release();
  finish_all(ios);
}

TEST_F(AioKernelTest, RemovalEndsWhatIsInFlightWithAnError) {
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
  const auto late = submit_writes(1);
  finish_all(late, IoStatus::kRemoved);
  kernel_.release();
  finish_all(ios, IoStatus::kRemoved);
  EXPECT_FALSE(gone);
  user_->close();
  EXPECT_TRUE(world_.hosts.run_until([&gone] { return gone; }));
}

// --- Threads that go to another host ---

class AioMoveTest : public AioKernelTest {
 protected:
  void SetUp() override {
    AioKernelTest::SetUp();
    if (!IsSkipped()) world_.add(module_.create({.name = "disk", .filename = file_.path()}));
  }
  // So many writes of a page by the traveller, each to a place of its own.
  std::vector<std::unique_ptr<PlacedIo>> submit_writes(Traveller& traveller, size_t count) {
    std::vector<std::unique_ptr<PlacedIo>> ios;
    for (size_t i = 0; i < count; ++i) {
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
    ASSERT_TRUE(std::ranges::equal(file_.contents(0, ios.size() * 4096), data_.bytes(0, ios.size() * 4096)));
  }
};

TEST_F(AioMoveTest, WhatTheKernelHoldsCompletesOnTheNewHost) {
  Traveller traveller(world_, 1);
  for (const size_t host : {2U, 0U, 1U}) {
    kernel_.hold = true;
    const auto ios = submit_writes(traveller, 3);
    world_.hosts.run_until_idle();
    ASSERT_EQ(kernel_.held.size(), 3U);
    traveller.move(host);
    for (const auto& io : ios) EXPECT_FALSE(io->done);
    kernel_.release();
    finish_all(ios, traveller, host);
  }
}

// Without waiting until the old host tries again.
TEST_F(AioMoveTest, WhatTheKernelHadNoRoomForIsSubmittedOnTheNewHost) {
  Traveller traveller(world_, 1);
  kernel_.busy_calls = 1;
  const auto ios = submit_writes(traveller, 5);
  world_.hosts.run_until_idle();
  EXPECT_EQ(kernel_.calls, (std::vector<size_t>{5}));
  traveller.move(2);
  finish_all(ios, traveller, 2);
  EXPECT_EQ(kernel_.calls, (std::vector<size_t>{5, 5}));
}

// The neighbour's requests, which wait in the same queue, stay.
TEST_F(AioMoveTest, WhatWaitsGoesAlongAndTheNeighboursStays) {
  Traveller neighbour(world_, 1);
  Traveller traveller(world_, 1);
  kernel_.hold = true;
  const auto held = submit_writes(neighbour, FileQueue::kSlots);
  world_.hosts.run_until_idle();
  PageBuffer page(4096);
  PlacedIo stays(IoType::kRead, 0, {page.bytes()});
  neighbour.disk().submit(stays);
  const auto goes = submit_writes(traveller, 4);
  world_.hosts.run_until_idle();
  ASSERT_EQ(kernel_.held.size(), FileQueue::kSlots);
  kernel_.hold = false;
  traveller.move(2);
  finish_all(goes, traveller, 2);
  EXPECT_FALSE(stays.done);
  kernel_.release();
  finish_all(held, neighbour, 1);
  EXPECT_EQ(neighbour.disk().finish(stays), IoStatus::kOk);
  EXPECT_EQ(stays.host, &world_.hosts[1]);
}

}  // namespace
}  // namespace sluice
