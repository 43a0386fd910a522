// LogSettings: what is logged, as the log is now.
#pragma once

#include <array>
#include <iterator>

#include "lib/base/log.h"

namespace sluice::rpc {

struct LogSettings {
  LogLevel level = log_level();
  LogLevel print_level = log_print_level();
  bool timestamps = log_timestamps();
  std::array<bool, std::size(kLogFlagNames)> flags = present_flags();

  static std::array<bool, std::size(kLogFlagNames)> present_flags() {
    std::array<bool, std::size(kLogFlagNames)> flags{};
    for (size_t i = 0; i < flags.size(); ++i) flags[i] = log_flag(static_cast<LogFlag>(i));
    return flags;
  }
};

}  // namespace sluice::rpc
