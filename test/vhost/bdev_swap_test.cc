// A controller that is given another bdev while its guest goes on.
#include <array>
#include <future>

#include "test/vhost/in_process_fixture.h"

namespace sluice::test {
namespace {

using vhost::BlkDiscardSegment;
using vhost::BlkStatus;
using vhost::Header;
using vhost::Request;

class VhostBdevSwap : public OneFrontEnd {
 public:
  void start(SessionOptions options = {.num_queues = 2}) { OneFrontEnd::start(std::move(options)); }
  HeldBdev& first() { return knobs().bdev(0); }
  HeldBdev& add(const std::string& name, uint64_t size_bytes = TargetOptions().size_bytes) {
    return knobs().add_bdev(name, size_bytes);
  }
  Result<> set_bdev(const std::string& name) { return knobs().set_bdev(0, name); }
  // It waits for requests that are held.
  std::future<Result<>> begin_set_bdev(const std::string& name) {
    auto swap = std::async(std::launch::async, [this, name] { return set_bdev(name); });
    EXPECT_TRUE(eventually([&] { return session_info().started == false; })) << "the queues pause";
    return swap;
  }
  bool done(const std::future<Result<>>& swap) const {
    return swap.wait_for(std::chrono::milliseconds(kQuietMs)) == std::future_status::ready;
  }
  std::string bdev_name() { return knobs().info(0).bdev_name; }
  void submit_writes(int count, size_t queue = 0) {
    for (int i = 0; i < count; i++) blk(queue).add(write_request(static_cast<uint64_t>(i), pattern(512, 1)));
    ring(queue).publish();
    ring(queue).kick_always();
  }
  void expect_completed(int count, size_t queue = 0) {
    for (int i = 0; i < count; i++) {
      const auto outcome = blk(queue).complete();
      ASSERT_TRUE(outcome) << i << " of " << count << " " << ring(queue).violation();
      EXPECT_EQ(outcome->status(), BlkStatus::kOk);
    }
    EXPECT_EQ(ring(queue).outstanding(), 0U);
    EXPECT_EQ(ring(queue).violation(), "");
  }
  uint64_t writes_of(HeldBdev& bdev) { return knobs().iostat(bdev).of(IoType::kWrite).ops; }
};

TEST_F(VhostBdevSwap, RequestsGoToTheNewBdevFromThenOn) {
  start();
  expect_io_works(*session_);
  HeldBdev& other = add("other");
  ASSERT_TRUE(set_bdev("other"));
  EXPECT_EQ(bdev_name(), "other");
  Bytes back(512, 1);
  EXPECT_EQ(blk().read(64, back), BlkStatus::kOk);
  EXPECT_TRUE(back == Bytes(512)) << "the other bdev is empty";
  expect_io_works(*session_, 0, 5);
  expect_io_works(*session_, 1, 6);
  EXPECT_EQ(writes_of(other), 2U);
  session_.reset();
  expect_target_alive();
  EXPECT_EQ(writes_of(other), 3U) << "the next front end gets it as well";
}

TEST_F(VhostBdevSwap, WhatIsInFlightEndsOnTheOldBdevBeforeAnythingReachesTheNewOne) {
  start();
  HeldBdev& other = add("other");
  first().hold();
  other.hold();
  submit_writes(8, 0);
  submit_writes(8, 1);
  wait_until_held(16);
  auto swap = begin_set_bdev("other");
  submit_writes(4, 0);
  submit_writes(4, 1);
  knobs().release_oldest_io(0, 5);
  EXPECT_FALSE(done(swap));
  EXPECT_EQ(other.held_count(), 0) << "the old bdev still has requests";
  knobs().release_io(first());
  EXPECT_TRUE(swap.get());
  EXPECT_TRUE(eventually([&] { return other.held_count() == 8; }));
  knobs().release_io(other);
  expect_completed(12, 0);
  expect_completed(12, 1);
  EXPECT_EQ(writes_of(first()), 16U);
  EXPECT_EQ(writes_of(other), 8U);
}

TEST_F(VhostBdevSwap, NothingIsLostOrDoneTwiceUnderLoad) {
  start();
  HeldBdev& other = add("other");
  uint64_t swaps = 0;
  uint64_t completed = 0;
  {
    const Repeated swapping(
        [this, name = 0]() mutable { return set_bdev(++name % 2 == 0 ? "bdev0" : "other").has_value(); });
    for (const Deadline deadline(kTimeoutMs); swapping.count() < 50 && !deadline.passed() && !HasFailure();) {
      submit_writes(16, 0);
      submit_writes(16, 1);
      expect_completed(16, 1);  // in this order the guest's memory is given back
      expect_completed(16, 0);
      completed += 32;
    }
    swaps = swapping.count();
  }
  EXPECT_GE(swaps, 50U);
  EXPECT_EQ(writes_of(first()) + writes_of(other), completed);
  EXPECT_GT(writes_of(first()), 0U);
  EXPECT_GT(writes_of(other), 0U);
}

TEST_F(VhostBdevSwap, TheGuestIsToldOfTheNewCapacity) {
  start();
  SKIP_UNLESS(session_->backend_channel() != nullptr);
  Channel& channel = session_->backend_channel()->local;
  add("as large");
  ASSERT_TRUE(set_bdev("as large"));
  EXPECT_TRUE(channel.stays_silent());
  const uint64_t capacity = config_of(*session_).capacity * 2;
  add("larger", capacity * vhost::kSectorSize);
  ASSERT_TRUE(set_bdev("larger"));
  const auto news = channel.receive();
  ASSERT_TRUE(news);
  EXPECT_EQ(news->header.request, static_cast<uint32_t>(vhost::BackendRequest::kConfigChangeMsg));
  EXPECT_EQ(config_of(*session_).capacity, capacity);
  Bytes data(512);
  EXPECT_EQ(blk().read(capacity - 1, data), BlkStatus::kOk);
}

TEST_F(VhostBdevSwap, IsRefusedWhereTheBdevDoesNotFitAndChangesNothing) {
  start();
  expect_io_works(*session_);
  knobs().add_bdev("large blocks", options().size_bytes, 4096);
  add("small", options().size_bytes / 2);
  add("without channels").refuse_channels();
  struct Holder : BdevEvents {
    void on_resize() override {}
    void on_remove() override {}
  } holder;
  add("claimed");
  std::unique_ptr<BdevHandle> claim;
  knobs().await([](BdevManager& bdevs, Holder& events, std::unique_ptr<BdevHandle>& handle) -> Task<> {
    handle = std::move(*bdevs.open("claimed", BdevAccess::kWriteAlone, events, "test"));
    co_return;
  }(knobs().bdevs(), holder, claim));
  struct Case {
    const char* name;
    int code;
  };
  for (const Case& test : {Case{"none", ENODEV}, Case{"large blocks", EINVAL}, Case{"small", EINVAL},
                           Case{"claimed", EBUSY}, Case{"without channels", EMFILE}}) {
    const auto set = set_bdev(test.name);
    ASSERT_FALSE(set) << test.name;
    EXPECT_EQ(set.error().code, test.code) << test.name;
    EXPECT_EQ(bdev_name(), "bdev0");
    Bytes back(8192);
    EXPECT_EQ(blk().read(64, back), BlkStatus::kOk);
    EXPECT_TRUE(back == pattern(8192, 1)) << test.name;
    expect_io_works(*session_);
  }
  knobs().await([](std::unique_ptr<BdevHandle>& handle) -> Task<> {
    handle.reset();
    co_return;
  }(claim));
  EXPECT_TRUE(set_bdev("claimed"));
}

TEST_F(VhostBdevSwap, TheSameBdevMayBeSetAgain) {
  start();
  expect_io_works(*session_);
  ASSERT_TRUE(set_bdev("bdev0"));
  Bytes back(8192);
  EXPECT_EQ(blk().read(64, back), BlkStatus::kOk);
  EXPECT_TRUE(back == pattern(8192, 1));
}

TEST_F(VhostBdevSwap, RevivesADiskWhoseBdevWasRemoved) {
  start();
  expect_io_works(*session_);
  remove_bdev();
  EXPECT_EQ(blk().write(0, Bytes(512)), BlkStatus::kIoErr);
  EXPECT_EQ(blk(1).write(0, Bytes(512)), BlkStatus::kIoErr);
  EXPECT_TRUE(eventually([&] { return bdev_name().empty(); }));
  add("other");
  ASSERT_TRUE(set_bdev("other"));
  expect_io_works(*session_, 0);
  expect_io_works(*session_, 1);
  EXPECT_EQ(bdev_name(), "other");
}

TEST_F(VhostBdevSwap, TheNewBdevMayGoMeanwhile) {
  start();
  HeldBdev& other = add("other");
  first().hold();
  submit_writes(1);
  wait_until_held(1);
  auto swap = begin_set_bdev("other");
  knobs().remove_bdev(other);
  knobs().release_io(first());
  EXPECT_TRUE(swap.get());
  expect_completed(1);
  EXPECT_TRUE(eventually([&] { return bdev_name().empty(); }));
  EXPECT_EQ(blk().write(0, Bytes(512)), BlkStatus::kIoErr);
  ASSERT_TRUE(set_bdev("bdev0"));
  expect_io_works(*session_);
}

TEST_F(VhostBdevSwap, TheOldBdevMayGoMeanwhile) {
  start();
  add("other");
  first().hold();
  submit_writes(1);
  wait_until_held(1);
  HeldBdev& old = first();
  auto swap = begin_set_bdev("other");
  knobs().remove_bdev(old);
  EXPECT_FALSE(done(swap));
  knobs().release_io(old);
  EXPECT_TRUE(swap.get());
  const auto outcome = blk().complete();
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->status(), BlkStatus::kIoErr) << "it was pulled out while the request was in flight";
  expect_io_works(*session_);
  EXPECT_EQ(bdev_name(), "other");
}

TEST_F(VhostBdevSwap, RingsMayBeStoppedAndStartedMeanwhile) {
  start();
  HeldBdev& other = add("other");
  first().hold();
  submit_writes(1);
  wait_until_held(1);
  auto swap = begin_set_bdev("other");
  ASSERT_TRUE(session_->stop_ring(1)) << session_->error();
  ASSERT_TRUE(session_->start_ring(1)) << session_->error();
  ASSERT_TRUE(session_->enable_all(true)) << session_->error();
  ASSERT_TRUE(fe().fence());
  submit_writes(3, 1);
  EXPECT_FALSE(done(swap));
  EXPECT_EQ(first().held_count(), 1) << "what has been paused stays so";
  knobs().release_io(first());
  EXPECT_TRUE(swap.get());
  expect_completed(1, 0);
  expect_completed(3, 1);
  EXPECT_EQ(writes_of(other), 3U);
}

TEST_F(VhostBdevSwap, TheFrontEndMayGoMeanwhile) {
  start();
  HeldBdev& other = add("other");
  first().hold();
  submit_writes(4);
  wait_until_held(4);
  auto swap = begin_set_bdev("other");
  session_.reset();
  knobs().release_io(first());
  EXPECT_TRUE(swap.get());
  expect_target_alive();
  EXPECT_EQ(writes_of(other), 1U);
}

// "Device Operation": a discard is a hint; write zeroes is not. Both have been negotiated.
TEST_F(VhostBdevSwap, ZeroesAreWrittenWhereTheBdevKnowsNoWriteZeroes) {
  knobs().add_bdev("plain", options().size_bytes, 512, false);
  ASSERT_TRUE(set_bdev("plain"));
  start();
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureWriteZeroes));
  constexpr uint32_t kSectors = 3 * vhost::kZeroesBytes / vhost::kSectorSize / 2;  // more than are written at a time
  const Bytes data = pattern(512, 3);
  const uint64_t edges[] = {10, 11, 10 + kSectors, 11 + kSectors, 9000, 9001, 9002};
  for (const uint64_t sector : edges) ASSERT_EQ(blk().write(sector, data), BlkStatus::kOk);
  const std::array<BlkDiscardSegment, 2> ranges = {BlkDiscardSegment{.sector = 11, .num_sectors = kSectors},
                                                   {.sector = 9001, .num_sectors = 1}};
  EXPECT_EQ(blk().write_zeroes(ranges), BlkStatus::kOk);
  for (const uint64_t sector : edges) {
    Bytes back(512, 7);
    ASSERT_EQ(blk().read(sector, back), BlkStatus::kOk);
    const bool zeroed = sector == 11 || sector == 10 + kSectors || sector == 9001;
    EXPECT_TRUE(back == (zeroed ? Bytes(512) : data)) << sector;
  }
}

TEST_F(VhostBdevSwap, ZeroesThatAreWrittenAreFlushedOnceWhenWritingThrough) {
  HeldBdev& plain = knobs().add_bdev("plain", options().size_bytes, 512, false);
  ASSERT_TRUE(set_bdev("plain"));
  start({.leave_features = vhost::kBlkFeatureFlush | vhost::kBlkFeatureConfigWce});
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureWriteZeroes));
  const int before = plain.flush_count();
  const std::array<BlkDiscardSegment, 2> ranges = {BlkDiscardSegment{.sector = 0, .num_sectors = 5000},
                                                   {.sector = 9000, .num_sectors = 8}};
  EXPECT_EQ(blk().write_zeroes(ranges), BlkStatus::kOk);
  EXPECT_EQ(plain.flush_count(), before + 1);
}

TEST_F(VhostBdevSwap, DiscardsAreDoneWithWhereTheBdevKnowsNone) {
  start();
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureDiscard));
  HeldBdev& plain = knobs().add_bdev("plain", options().size_bytes, 512, false);
  ASSERT_TRUE(set_bdev("plain"));
  const Bytes data = pattern(512, 3);
  ASSERT_EQ(blk().write(20, data), BlkStatus::kOk);
  const std::array<BlkDiscardSegment, 1> range = {BlkDiscardSegment{.sector = 20, .num_sectors = 8}};
  EXPECT_EQ(blk().discard(range), BlkStatus::kOk);
  Bytes back(512);
  ASSERT_EQ(blk().read(20, back), BlkStatus::kOk);
  EXPECT_TRUE(back == data) << "nothing was done";
  const std::array<BlkDiscardSegment, 1> beyond = {
      BlkDiscardSegment{.sector = options().size_bytes / vhost::kSectorSize, .num_sectors = 8}};
  EXPECT_EQ(blk().discard(beyond), BlkStatus::kIoErr);
  EXPECT_EQ(writes_of(plain), 1U);
}

}  // namespace
}  // namespace sluice::test
