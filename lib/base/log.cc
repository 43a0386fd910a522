#include "lib/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <strings.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <memory>

namespace sluice {
namespace {

constexpr size_t kFlagCount = std::size(kLogFlagNames);

std::atomic<LogLevel> kept_level{LogLevel::kDebug};
std::atomic<LogLevel> printed_level{LogLevel::kNotice};
std::array<std::atomic<bool>, kFlagCount> flags;
std::atomic<bool> timestamps{true};

constexpr const char* kPatternWithTime = "[%Y-%m-%d %H:%M:%S.%e] %v";

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto made = std::make_shared<spdlog::logger>("sluice", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    made->set_pattern(kPatternWithTime);
    made->set_level(spdlog::level::trace);
    made->flush_on(spdlog::level::trace);
    return made;
  }();
  return *instance;
}

template <typename Enum>
std::optional<Enum> parse(std::span<const std::string_view> names, std::string_view name) {
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i].size() == name.size() && strncasecmp(names[i].data(), name.data(), name.size()) == 0)
      return static_cast<Enum>(i);
  }
  return std::nullopt;
}

}  // namespace

std::optional<LogLevel> parse_log_level(std::string_view name) { return parse<LogLevel>(kLogLevelNames, name); }
std::optional<LogFlag> parse_log_flag(std::string_view name) { return parse<LogFlag>(kLogFlagNames, name); }

void set_log_level(LogLevel level) { kept_level.store(level, std::memory_order_relaxed); }
LogLevel log_level() { return kept_level.load(std::memory_order_relaxed); }
void set_log_print_level(LogLevel level) { printed_level.store(level, std::memory_order_relaxed); }
LogLevel log_print_level() { return printed_level.load(std::memory_order_relaxed); }
void set_log_flag(LogFlag flag, bool on) { flags[static_cast<size_t>(flag)].store(on, std::memory_order_relaxed); }
bool log_flag(LogFlag flag) { return flags[static_cast<size_t>(flag)].load(std::memory_order_relaxed); }
void set_log_timestamps(bool on) {
  timestamps.store(on, std::memory_order_relaxed);
  logger().set_pattern(on ? kPatternWithTime : "%v");
}
bool log_timestamps() { return timestamps.load(std::memory_order_relaxed); }

bool log_enabled(LogLevel level, LogFlag flag) {
  if (level > std::min(log_level(), log_print_level())) return false;
  return level != LogLevel::kDebug || log_flag(flag);
}

void log_line(LogLevel level, LogFlag flag, std::string_view text) {
  static constexpr spdlog::level::level_enum kColours[] = {spdlog::level::err, spdlog::level::warn, spdlog::level::info,
                                                           spdlog::level::debug, spdlog::level::trace};
  const auto index = static_cast<size_t>(level);
  logger().log(kColours[index], "{} {}: {}", kLogLevelNames[index], kLogFlagNames[static_cast<size_t>(flag)], text);
}

bool LogLimiter::allow(uint64_t now_ns, uint64_t& held_back) {
  const std::lock_guard lock(mutex_);
  now_ns = std::max(now_ns, last_refill_ns_);  // the callers' clocks differ a little
  const uint64_t refill = (now_ns - last_refill_ns_) / interval_ns_;
  if (refill >= burst_ - tokens_) {
    tokens_ = burst_;
    last_refill_ns_ = now_ns;
  } else {
    tokens_ += static_cast<uint32_t>(refill);
    last_refill_ns_ += refill * interval_ns_;  // the rest of the time counts towards the next one
  }
  if (tokens_ == 0) {
    ++held_back_;
    return false;
  }
  --tokens_;
  held_back = std::exchange(held_back_, 0);
  return true;
}

}  // namespace sluice
