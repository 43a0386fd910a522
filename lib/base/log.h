// Logging: five levels as storage operators know them, and a flag per component that lets its debug lines through.
// Any thread. Lines go to standard error through spdlog. Not for the data path: no line per I/O.
#pragma once

#include <fmt/format.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>

namespace sluice {

enum class LogLevel : uint8_t { kError, kWarning, kNotice, kInfo, kDebug };

// One per component. A debug line is written when the level is DEBUG and its component's flag is set.
enum class LogFlag : uint8_t { kApp, kReactor, kThread, kBdev, kLvol, kVhost, kRpc };
inline constexpr std::string_view kLogFlagNames[] = {"app", "reactor", "thread", "bdev", "lvol", "vhost", "rpc"};
inline constexpr std::string_view kLogLevelNames[] = {"ERROR", "WARNING", "NOTICE", "INFO", "DEBUG"};

std::optional<LogLevel> parse_log_level(std::string_view name);
std::optional<LogFlag> parse_log_flag(std::string_view name);

// `level` is what is kept at all; `print_level` is what reaches standard error: a line needs both.
void set_log_level(LogLevel level);
LogLevel log_level();
void set_log_print_level(LogLevel level);
LogLevel log_print_level();
void set_log_flag(LogFlag flag, bool on);
bool log_flag(LogFlag flag);
void set_log_timestamps(bool on);
bool log_timestamps();

bool log_enabled(LogLevel level, LogFlag flag);
void log_line(LogLevel level, LogFlag flag, std::string_view text);

template <typename... Args>
void log(LogLevel level, LogFlag flag, fmt::format_string<Args...> format, Args&&... args) {
  if (log_enabled(level, flag)) log_line(level, flag, fmt::format(format, std::forward<Args>(args)...));
}

// Lets through `burst` lines at once and then one per `interval_ns`; counts what it held back. One thread.
// For everything that a guest or a client can cause as often as it likes.
class LogLimiter {
 public:
  explicit LogLimiter(uint32_t burst = 5, uint64_t interval_ns = 10'000'000'000)
      : tokens_(burst), burst_(burst), interval_ns_(interval_ns) {}

  // Any thread. True when a line may be written now; `held_back` then tells how many were not since the last one.
  bool allow(uint64_t now_ns, uint64_t& held_back);

 private:
  std::mutex mutex_;
  uint32_t tokens_;
  const uint32_t burst_;
  const uint64_t interval_ns_;
  uint64_t last_refill_ns_ = 0;
  uint64_t held_back_ = 0;
};

}  // namespace sluice
