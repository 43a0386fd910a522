#include "lib/base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace sluice {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;

// Leaves the process's settings as they were.
class Log : public testing::Test {
 protected:
  ~Log() override {
    set_log_level(level_);
    set_log_print_level(print_level_);
    set_log_flag(LogFlag::kBdev, flag_);
    set_log_timestamps(true);
  }

  static std::string written(LogLevel level) {
    testing::internal::CaptureStderr();
    log(level, LogFlag::kBdev, "disk {} has {} blocks", "d0", 8);
    return testing::internal::GetCapturedStderr();
  }

 private:
  const LogLevel level_ = log_level();
  const LogLevel print_level_ = log_print_level();
  const bool flag_ = log_flag(LogFlag::kBdev);
};

TEST_F(Log, ReadsLevelsAndFlagsInAnyCase) {
  EXPECT_EQ(parse_log_level("ERROR"), LogLevel::kError);
  EXPECT_EQ(parse_log_level("warning"), LogLevel::kWarning);
  EXPECT_EQ(parse_log_level("Notice"), LogLevel::kNotice);
  EXPECT_EQ(parse_log_level("INFO"), LogLevel::kInfo);
  EXPECT_EQ(parse_log_level("DEBUG"), LogLevel::kDebug);
  EXPECT_EQ(parse_log_flag("vhost"), LogFlag::kVhost);
  EXPECT_EQ(parse_log_flag("RPC"), LogFlag::kRpc);
}

TEST_F(Log, RefusesOtherNames) {
  for (const char* name : {"", "DEBU", "DEBUGG", "all", "0"}) {
    EXPECT_FALSE(parse_log_level(name)) << name;
    EXPECT_FALSE(parse_log_flag(name)) << name;
  }
}

TEST_F(Log, LineNamesLevelComponentAndText) {
  set_log_timestamps(false);
  EXPECT_EQ(written(LogLevel::kError), "ERROR bdev: disk d0 has 8 blocks\n");
  set_log_timestamps(true);
  EXPECT_THAT(written(LogLevel::kError),
              MatchesRegex("\\[....-..-.. ..:..:......\\] ERROR bdev: disk d0 has 8 blocks\n"));
}

TEST_F(Log, LineNeedsBothLevels) {
  set_log_level(LogLevel::kInfo);
  set_log_print_level(LogLevel::kWarning);
  EXPECT_THAT(written(LogLevel::kWarning), HasSubstr("WARNING bdev"));
  EXPECT_THAT(written(LogLevel::kNotice), IsEmpty());
  set_log_print_level(LogLevel::kDebug);
  EXPECT_THAT(written(LogLevel::kInfo), HasSubstr("INFO bdev"));
  EXPECT_THAT(written(LogLevel::kDebug), IsEmpty());
}

TEST_F(Log, DebugLineNeedsTheFlagOfItsComponent) {
  set_log_level(LogLevel::kDebug);
  set_log_print_level(LogLevel::kDebug);
  set_log_flag(LogFlag::kBdev, false);
  EXPECT_THAT(written(LogLevel::kDebug), IsEmpty());
  EXPECT_THAT(written(LogLevel::kInfo), HasSubstr("INFO bdev")) << "the flag is about debug lines only";
  set_log_flag(LogFlag::kBdev, true);
  EXPECT_THAT(written(LogLevel::kDebug), HasSubstr("DEBUG bdev"));
  EXPECT_FALSE(log_enabled(LogLevel::kDebug, LogFlag::kRpc));
}

constexpr uint64_t kSecond = 1'000'000'000;

class LimiterTest : public testing::Test {
 protected:
  // How many of `times` lines get through at `now_ns`.
  int allowed(uint64_t now_ns, int times) {
    int count = 0;
    for (int i = 0; i < times; ++i) count += limiter_.allow(now_ns, held_back_) ? 1 : 0;
    return count;
  }
  LogLimiter limiter_{3, 10 * kSecond};
  uint64_t held_back_ = 0;
  const uint64_t start_ns_ = 1000 * kSecond;
};

TEST_F(LimiterTest, LetsABurstThroughAndThenOnePerInterval) {
  EXPECT_EQ(allowed(start_ns_, 10), 3);
  EXPECT_EQ(allowed(start_ns_ + 10 * kSecond - 1, 10), 0);
  EXPECT_EQ(allowed(start_ns_ + 10 * kSecond, 10), 1);
  EXPECT_EQ(allowed(start_ns_ + 20 * kSecond, 10), 1);
  EXPECT_EQ(allowed(start_ns_ + 40 * kSecond, 10), 2);
  EXPECT_EQ(allowed(start_ns_ + 1000 * kSecond, 10), 3) << "never more than the burst";
}

TEST_F(LimiterTest, LosesNoTimeToRoundingWhenAskedInBetween) {
  EXPECT_EQ(allowed(start_ns_, 3), 3);
  EXPECT_EQ(allowed(start_ns_ + 19 * kSecond, 10), 1);
  EXPECT_EQ(allowed(start_ns_ + 20 * kSecond, 10), 1);
}

TEST_F(LimiterTest, TellsHowManyLinesItHeldBack) {
  EXPECT_EQ(allowed(start_ns_, 3), 3);
  EXPECT_EQ(held_back_, 0U);
  EXPECT_EQ(allowed(start_ns_, 7), 0);
  EXPECT_EQ(allowed(start_ns_ + 30 * kSecond, 1), 1);
  EXPECT_EQ(held_back_, 7U);
  EXPECT_EQ(allowed(start_ns_ + 30 * kSecond, 1), 1);
  EXPECT_EQ(held_back_, 0U) << "told once";
}

}  // namespace
}  // namespace sluice
