#include "app/bdevperf/job.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "lib/bdev/null/null_bdev.h"
#include "test/bdevperf/scripted_bdev.h"
#include "test/support/allocation_count.h"
#include "test/support/disk_user.h"
#include "test/support/manual_host.h"

namespace sluice::bdevperf {
namespace {

using Verdict = ScriptedBdev::Verdict;

constexpr uint64_t kSizeBytes = 1U << 20;

// A job on a scripted device, and the time in which it runs: the device holds everything, and turn() lets it go after
// some time, so that each turn completes `queue_depth` requests.
class JobTest : public testing::Test {
 protected:
  JobTest() {
    auto made = std::make_unique<ScriptedBdev>(kSizeBytes);
    disk_ = made.get();
    world_.add(Result<std::unique_ptr<Bdev>>(std::move(made)));
    disk_->judge = [this](const BlockIo& io) {
      seen_.push_back({io.type, io.offset_bytes});
      const Verdict verdict = verdict_(io);
      return verdict == Verdict::kDo ? Verdict::kHold : verdict;
    };
  }

  static JobSpec spec(Workload workload, uint32_t queue_depth) {
    return {.workload = workload,
            .queue_depth = queue_depth,
            .io_size_bytes = 4096,
            .length_bytes = kSizeBytes,
            .clock = manual_clock};
  }

  // Runs it to its end, `step_ns` per round of the device.
  std::unique_ptr<Job> run(const JobSpec& spec, JobTiming timing, uint64_t step_ns = kNsPerMs) {
    auto job = std::make_unique<Job>(*disk_, spec);
    LwThread& thread = world_.app();
    EXPECT_TRUE(world_.hosts.on(thread, [&] { return job->open(); }));
    bool done = false;
    world_.hosts.on(thread, [&] { start(job->run(timing), [&] { done = true; }); });
    for (int rounds = 0; !done && rounds < 100'000; ++rounds) {
      world_.hosts.advance(step_ns);
      world_.hosts.run_until_idle();
      if (on_round_) on_round_(*job);
      world_.hosts.on(thread, [&] { disk_->release(); });
      world_.hosts.run_until_idle();
    }
    EXPECT_TRUE(done);
    world_.hosts.on(thread, [&] { job->close(); });
    return job;
  }

  struct Seen {
    IoType type;
    uint64_t offset_bytes;
    bool operator==(const Seen&) const = default;
  };

  BdevWorld world_;
  ScriptedBdev* disk_ = nullptr;
  std::vector<Seen> seen_;
  std::function<Verdict(const BlockIo&)> verdict_ = [](const BlockIo&) { return Verdict::kDo; };
  std::function<void(Job&)> on_round_;
};

TEST_F(JobTest, KeepsTheQueueFullAndMeasuresEachRequest) {
  const auto job = run(spec(Workload::kRandRead, 4), {.time_ns = 100 * kNsPerMs}, kNsPerMs);
  // One round per millisecond, each of 4 requests that take 1 ms.
  EXPECT_NEAR(static_cast<double>(job->ios()), 400, 8);
  EXPECT_NEAR(static_cast<double>(job->window_ns()), 100e6, 2e6);
  EXPECT_EQ(job->latencies().min(), kNsPerMs);
  EXPECT_EQ(job->latencies().max(), kNsPerMs);
  EXPECT_EQ(job->failed(), 0U);
  EXPECT_FALSE(job->first_failure());
}

TEST_F(JobTest, CountsNothingOfTheWarmUp) {
  const auto job = run(spec(Workload::kRead, 1), {.time_ns = 10 * kNsPerMs, .warmup_ns = 50 * kNsPerMs});
  EXPECT_NEAR(static_cast<double>(job->ios()), 10, 2);
  EXPECT_NEAR(static_cast<double>(seen_.size()), 60, 3);
}

TEST_F(JobTest, LatenciesIncludeRequestsThatOutlastTheWindow) {
  // They take fifty times as long as the window.
  const auto job = run(spec(Workload::kRead, 2), {.time_ns = 10 * kNsPerMs}, 500 * kNsPerMs);
  EXPECT_EQ(job->ios(), 0U);
  EXPECT_EQ(job->latencies().count(), 2U);
  EXPECT_GE(job->latencies().max(), 500 * kNsPerMs);
}

TEST_F(JobTest, SequentialRequestsFollowEachOtherAndStartAnew) {
  JobSpec wanted = spec(Workload::kRead, 1);
  wanted.begin_bytes = 8192;
  wanted.length_bytes = 3 * 4096 + 100;
  run(wanted, {.time_ns = 4 * kNsPerMs});
  ASSERT_GE(seen_.size(), 4U);
  seen_.resize(4);
  EXPECT_THAT(seen_, testing::ElementsAre(Seen{IoType::kRead, 8192}, Seen{IoType::kRead, 12288},
                                          Seen{IoType::kRead, 16384}, Seen{IoType::kRead, 8192}));
}

TEST_F(JobTest, RandomRequestsStayWithinTheirPartAndReachAllOfIt) {
  JobSpec wanted = spec(Workload::kRandWrite, 16);
  wanted.begin_bytes = 64 << 10;
  wanted.length_bytes = 128 << 10;
  run(wanted, {.time_ns = 100 * kNsPerMs});
  std::set<uint64_t> offsets;
  for (const Seen& seen : seen_) {
    EXPECT_EQ(seen.type, IoType::kWrite);
    EXPECT_EQ(seen.offset_bytes % 4096, 0U);
    offsets.insert(seen.offset_bytes);
  }
  EXPECT_EQ(offsets.size(), 32U);
  EXPECT_EQ(*offsets.begin(), 64U << 10);
  EXPECT_EQ(*offsets.rbegin(), (192U << 10) - 4096);
}

TEST_F(JobTest, MixesReadsAndWritesAsAsked) {
  for (const Workload workload : {Workload::kReadWrite, Workload::kRandReadWrite}) {
    for (const uint32_t percent : {0U, 30U, 100U}) {
      seen_.clear();
      JobSpec wanted = spec(workload, 32);
      wanted.read_percent = percent;
      run(wanted, {.time_ns = 200 * kNsPerMs});
      const auto reads = std::ranges::count(seen_, IoType::kRead, &Seen::type);
      EXPECT_NEAR(static_cast<double>(reads) * 100 / static_cast<double>(seen_.size()), percent, 2) << percent;
    }
  }
}

TEST_F(JobTest, EachWorkloadSendsItsKindOfRequest) {
  const std::map<Workload, IoType> types{{Workload::kWrite, IoType::kWrite},
                                         {Workload::kUnmap, IoType::kDiscard},
                                         {Workload::kWriteZeroes, IoType::kWriteZeroes},
                                         {Workload::kFlush, IoType::kFlush}};
  for (const auto& [workload, type] : types) {
    seen_.clear();
    EXPECT_GT(run(spec(workload, 2), {.time_ns = 5 * kNsPerMs})->ios(), 0U);
    for (const Seen& seen : seen_) EXPECT_EQ(seen.type, type);
  }
}

TEST_F(JobTest, OnceEndsAfterOnePass) {
  JobSpec wanted = spec(Workload::kWrite, 32);
  wanted.length_bytes = 100 * 4096;
  wanted.once = true;
  run(wanted, {.time_ns = 3600 * kNsPerSec});
  std::set<uint64_t> offsets;
  for (const Seen& seen : seen_) offsets.insert(seen.offset_bytes);
  EXPECT_EQ(seen_.size(), 100U);
  EXPECT_EQ(offsets.size(), 100U);

  seen_.clear();
  wanted.length_bytes = 5 * 4096;
  run(wanted, {.time_ns = 3600 * kNsPerSec});
  EXPECT_EQ(seen_.size(), 5U);
}

TEST_F(JobTest, StopsAtTheFirstFailureAndTellsItsPlace) {
  verdict_ = [](const BlockIo& io) { return io.offset_bytes == 40960 ? Verdict::kFail : Verdict::kDo; };
  const auto job = run(spec(Workload::kWrite, 4), {.time_ns = kNsPerSec});
  EXPECT_EQ(job->failed(), 1U);
  ASSERT_TRUE(job->first_failure());
  EXPECT_EQ(job->first_failure()->to_string(), "write at offset 40960: failed");
  EXPECT_LE(seen_.size(), 16U);
}

TEST_F(JobTest, GoesOnAfterFailuresWhenAsked) {
  verdict_ = [](const BlockIo& io) { return io.offset_bytes == 0 ? Verdict::kFail : Verdict::kDo; };
  JobSpec wanted = spec(Workload::kRead, 4);
  wanted.continue_on_failure = true;
  const auto job = run(wanted, {.time_ns = kNsPerSec});
  EXPECT_GT(job->failed(), 10U);
  EXPECT_GT(job->ios(), 3000U);
}

TEST_F(JobTest, EndsEarlyWhenStopped) {
  on_round_ = [this, rounds = 0](Job& job) mutable {
    if (++rounds == 20) world_.hosts.on(world_.app(), [&job] { job.stop(); });
  };
  const auto job = run(spec(Workload::kRead, 1), {.time_ns = kNsPerSec});
  EXPECT_NEAR(static_cast<double>(job->window_ns()), 20e6, 2e6);
  EXPECT_NEAR(static_cast<double>(job->ios()), 20, 2);
}

// --- an open loop ---

// Lets it go on in steps that are shorter than the gaps between requests, and completes them at once.
class OpenLoopTest : public JobTest {
 protected:
  static JobSpec open(double rate, uint32_t queue_depth) {
    JobSpec wanted = spec(Workload::kRandRead, queue_depth);
    wanted.rate = rate;
    return wanted;
  }
};

TEST_F(OpenLoopTest, RequestsArriveAtTheRateHoweverSoonTheyComplete) {
  for (const PollMode mode : {PollMode::kPoll, PollMode::kInterrupt, PollMode::kAdaptive}) {
    world_.hosts.set_mode(mode);
    const auto job = run(open(10'000, 16), {.time_ns = kNsPerSec / 2}, 10 * kNsPerUs);
    // The standard deviation of a count is its root: 71.
    EXPECT_NEAR(static_cast<double>(job->ios()), 5000, 300);
    EXPECT_EQ(job->waiting(), 0U);
    // Issued in the step in which they are due, and completed in the same.
    EXPECT_LE(job->latencies().max(), 20 * kNsPerUs);
  }
}

TEST_F(OpenLoopTest, GapsAreExponential) {
  std::vector<uint64_t> issued_ns;
  verdict_ = [&](const BlockIo&) {
    issued_ns.push_back(world_.hosts.now_ns());
    return Verdict::kDo;
  };
  run(open(1000, 64), {.time_ns = 5 * kNsPerSec}, 100 * kNsPerUs);
  double sum = 0;
  double squares = 0;
  for (size_t i = 1; i < issued_ns.size(); ++i) {
    const auto gap = static_cast<double>(issued_ns[i] - issued_ns[i - 1]);
    sum += gap;
    squares += gap * gap;
  }
  const auto count = static_cast<double>(issued_ns.size() - 1);
  const double mean = sum / count;
  EXPECT_NEAR(mean, 1e6, 0.06e6);
  // Their standard deviation is as large as their mean; of a steady pace it would be 0.
  EXPECT_NEAR(std::sqrt(squares / count - mean * mean), 1e6, 0.1e6);
}

TEST_F(OpenLoopTest, TheSameSeedBringsTheSameRequestsAtTheSameTime) {
  std::vector<std::vector<uint64_t>> runs(2);
  for (auto& seen : runs) {
    const uint64_t begin_ns = world_.hosts.now_ns();
    verdict_ = [&](const BlockIo& io) {
      seen.push_back(world_.hosts.now_ns() - begin_ns);
      seen.push_back(io.offset_bytes);
      return Verdict::kDo;
    };
    run(open(1000, 4), {.time_ns = 100 * kNsPerMs}, 20 * kNsPerUs);
  }
  EXPECT_GT(runs[0].size(), 100U);
  EXPECT_EQ(runs[0], runs[1]);
}

TEST_F(OpenLoopTest, LatenciesCountFromWhenRequestsWereDueThoughTheyHadToWait) {
  // The device stands still for 100 ms, in which 1,000 requests are due; 4 of them may be in flight.
  int in_flight = 0;
  int most_in_flight = 0;
  verdict_ = [&](const BlockIo&) {
    most_in_flight = std::max(most_in_flight, ++in_flight);
    return Verdict::kDo;
  };
  disk_->spoil = [&](const BlockIo&, std::span<std::byte>) { --in_flight; };
  bool stood_still = false;
  on_round_ = [&](Job& job) {
    if (stood_still || job.ios() < 500) return;
    stood_still = true;
    world_.hosts.advance(100 * kNsPerMs);
    world_.hosts.run_until_idle();
  };
  const auto job = run(open(10'000, 4), {.time_ns = kNsPerSec / 2}, 10 * kNsPerUs);
  EXPECT_EQ(most_in_flight, 4);
  EXPECT_NEAR(static_cast<double>(job->ios()), 5000, 300);
  // A fifth of all waited, 50 ms on average. Without what was due meanwhile, it would be 4 of 4,000.
  EXPECT_NEAR(static_cast<double>(job->latencies().percentile(90)), 50e6, 10e6);
  EXPECT_NEAR(static_cast<double>(job->latencies().max()), 100e6, 2e6);
}

TEST_F(OpenLoopTest, WhatWaitsAtTheEndIsCountedAndInTheLatencies) {
  // One at a time, 1 ms each: a tenth of what is asked for.
  const auto job = run(open(10'000, 1), {.time_ns = kNsPerSec}, kNsPerMs);
  EXPECT_NEAR(static_cast<double>(job->ios()), 1000, 20);
  EXPECT_NEAR(static_cast<double>(job->waiting()), 9000, 400);
  EXPECT_EQ(job->latencies().count(), job->ios() + job->waiting() + 1);  // one was in flight
  EXPECT_GT(job->latencies().percentile(50), 300 * kNsPerMs);
}

TEST_F(OpenLoopTest, WhatWasDueWhileTheThreadDidNotRunUntilTheEndIsIssuedAndInTheLatencies) {
  on_round_ = [&, stood_still = false](Job& job) mutable {
    if (job.ios() < 90 || std::exchange(stood_still, true)) return;
    world_.hosts.advance(2 * kNsPerSec);
  };
  const auto job = run(open(100, 1024), {.time_ns = kNsPerSec}, kNsPerMs);
  EXPECT_EQ(job->waiting(), 0U);
  EXPECT_GT(job->latencies().count(), job->ios() + 100);
  EXPECT_GT(job->latencies().percentile(90), kNsPerSec);
}

TEST_F(OpenLoopTest, SleepsUntilTheNextRequestIsDue) {
  world_.hosts.set_mode(PollMode::kInterrupt);
  Job job(*disk_, open(1, 1));
  LwThread& thread = world_.app();
  ASSERT_TRUE(world_.hosts.on(thread, [&] { return job.open(); }));
  bool done = false;
  world_.hosts.on(thread, [&] { start(job.run({.time_ns = 100 * kNsPerSec}), [&] { done = true; }); });
  world_.hosts.run_until_idle();
  EXPECT_FALSE(world_.hosts[0].runnable());
  // From one request to the next, however far that is; nothing happens in between.
  for (size_t requests = 1; requests <= 10; ++requests) {
    const uint64_t due_ns = thread.next_deadline_ns();
    world_.hosts.advance(due_ns - world_.hosts.now_ns() - 1);
    world_.hosts.run_until_idle();
    EXPECT_EQ(seen_.size(), requests - 1);
    world_.hosts.advance(1);
    world_.hosts.run_until_idle();
    EXPECT_EQ(seen_.size(), requests);
    world_.hosts.on(thread, [&] { disk_->release(); });
    world_.hosts.run_until_idle();
    EXPECT_FALSE(world_.hosts[0].runnable());
  }
  world_.hosts.on(thread, [&] { job.stop(); });
  EXPECT_TRUE(world_.hosts.run_until([&] { return done; }));
  world_.hosts.on(thread, [&] { job.close(); });
}

TEST_F(OpenLoopTest, EndsAtTheFirstFailureAndEarlyWhenStopped) {
  verdict_ = [](const BlockIo&) { return Verdict::kFail; };
  EXPECT_EQ(run(open(1000, 4), {.time_ns = kNsPerSec}, 20 * kNsPerUs)->failed(), 1U);
  verdict_ = [](const BlockIo&) { return Verdict::kDo; };
  on_round_ = [this, rounds = 0](Job& job) mutable {
    if (++rounds == 1000) world_.hosts.on(world_.app(), [&job] { job.stop(); });
  };
  const auto job = run(open(1000, 4), {.time_ns = kNsPerSec}, 20 * kNsPerUs);
  EXPECT_NEAR(static_cast<double>(job->window_ns()), 20e6, 1e6);
}

// --- verify ---

TEST_F(JobTest, VerifyPassesOnADeviceThatKeepsWhatIsWritten) {
  const auto job = run(spec(Workload::kVerify, 8), {.time_ns = kNsPerSec});
  EXPECT_GT(job->ios(), 1000U);
  EXPECT_EQ(job->mismatches(), 0U);
  const auto writes = std::ranges::count(seen_, IoType::kWrite, &Seen::type);
  EXPECT_NEAR(static_cast<double>(writes), static_cast<double>(seen_.size()) / 2, 8);
}

TEST_F(JobTest, VerifyNeverHasTwoRequestsOnOnePlace) {
  JobSpec wanted = spec(Workload::kVerify, 7);
  wanted.length_bytes = 10 * 4096;
  std::set<uint64_t> round;
  verdict_ = [&](const BlockIo& io) {
    EXPECT_TRUE(round.insert(io.offset_bytes).second);
    return Verdict::kDo;
  };
  on_round_ = [&](Job&) { round.clear(); };
  run(wanted, {.time_ns = kNsPerSec});
  std::set<uint64_t> offsets;
  for (const Seen& seen : seen_) offsets.insert(seen.offset_bytes);
  EXPECT_EQ(offsets.size(), 10U);
}

TEST_F(JobTest, VerifyFindsASpoiltByteAndNamesItsOffset) {
  int reads = 0;
  uint64_t spoilt_at = 0;
  disk_->spoil = [&](const BlockIo& io, std::span<std::byte> bytes) {
    if (++reads != 50) return;
    bytes[1234] ^= std::byte{1};
    spoilt_at = io.offset_bytes + 1234;
  };
  const auto job = run(spec(Workload::kVerify, 4), {.time_ns = kNsPerSec});
  EXPECT_EQ(job->mismatches(), 1U);
  EXPECT_EQ(job->failed(), 0U);
  ASSERT_TRUE(job->first_failure());
  EXPECT_EQ(job->first_failure()->offset_bytes, spoilt_at);
  EXPECT_THAT(job->first_failure()->to_string(), testing::HasSubstr(std::to_string(spoilt_at)));
}

TEST_F(JobTest, VerifyFindsALostWriteAlsoOfTheSameJob) {
  // What is there then is what an earlier write of this very place has left.
  JobSpec wanted = spec(Workload::kVerify, 1);
  wanted.length_bytes = 4096;
  int writes = 0;
  disk_->judge = [&](const BlockIo& io) {
    return io.type == IoType::kWrite && ++writes == 10 ? Verdict::kPretend : Verdict::kHold;
  };
  const auto job = run(wanted, {.time_ns = kNsPerSec});
  EXPECT_EQ(job->mismatches(), 1U);
  EXPECT_EQ(writes, 10);
}

TEST_F(JobTest, VerifyFindsAReadThatDoesNotFillItsBuffer) {
  disk_->judge = [](const BlockIo& io) { return io.type == IoType::kRead ? Verdict::kPretend : Verdict::kHold; };
  EXPECT_EQ(run(spec(Workload::kVerify, 1), {.time_ns = kNsPerSec})->mismatches(), 1U);
}

TEST_F(JobTest, ResetVerifiesBetweenResetsAndToleratesFailures) {
  int requests = 0;
  verdict_ = [&](const BlockIo& io) {
    return io.type != IoType::kReset && ++requests % 50 == 0 ? Verdict::kFail : Verdict::kDo;
  };
  const auto job = run(spec(Workload::kReset, 4), {.time_ns = kNsPerSec});
  EXPECT_GT(job->failed(), 0U);
  EXPECT_EQ(job->mismatches(), 0U);
  EXPECT_GT(job->ios(), 1000U);
  const auto resets = std::ranges::count(seen_, IoType::kReset, &Seen::type);
  EXPECT_NEAR(static_cast<double>(resets), 10, 1);
}

// --- cost ---

TEST(JobCost, AllocatesNothingPerRequest) {
  BdevWorld world;
  Bdev& disk = world.add(create_null_bdev({.name = "disk", .num_blocks = 2048}));
  for (const Workload workload : {Workload::kRandReadWrite, Workload::kRead}) {
    Job job(disk, {.workload = workload, .queue_depth = 8, .length_bytes = kSizeBytes, .clock = manual_clock});
    ASSERT_TRUE(world.hosts.on(world.app(), [&] { return job.open(); }));
    bool done = false;
    world.hosts.on(world.app(), [&] { start(job.run({.time_ns = kNsPerMs}), [&] { done = true; }); });
    for (int i = 0; i < 10; ++i) world.hosts.turn();
    const uint64_t before = allocation_count();
    const uint64_t ios_before = job.ios();
    for (int i = 0; i < 100; ++i) world.hosts.turn();
    EXPECT_EQ(allocation_count(), before);
    EXPECT_GT(job.ios(), ios_before + 1000);
    world.hosts.advance(kNsPerMs);
    EXPECT_TRUE(world.hosts.run_until([&] { return done; }));
    world.hosts.on(world.app(), [&] { job.close(); });
  }
}

TEST(JobCost, AllocatesNothingPerRequestOfAnOpenLoop) {
  for (const PollMode mode : {PollMode::kPoll, PollMode::kInterrupt}) {
    BdevWorld world(1, mode);
    Bdev& disk = world.add(create_null_bdev({.name = "disk", .num_blocks = 2048}));
    Job job(disk, {.queue_depth = 8, .length_bytes = kSizeBytes, .rate = 100'000, .clock = manual_clock});
    ASSERT_TRUE(world.hosts.on(world.app(), [&] { return job.open(); }));
    bool done = false;
    world.hosts.on(world.app(), [&] { start(job.run({.time_ns = kNsPerSec}), [&] { done = true; }); });
    const auto go_on = [&] {
      for (int i = 0; i < 1000; ++i) {
        world.hosts.advance(5 * kNsPerUs);
        world.hosts.run_until_idle();
      }
    };
    go_on();
    const uint64_t before = allocation_count();
    go_on();
    EXPECT_EQ(allocation_count(), before);
    EXPECT_GT(job.ios(), 800U);
    world.hosts.on(world.app(), [&] { job.stop(); });
    EXPECT_TRUE(world.hosts.run_until([&] { return done; }));
    world.hosts.on(world.app(), [&] { job.close(); });
  }
}

}  // namespace
}  // namespace sluice::bdevperf
