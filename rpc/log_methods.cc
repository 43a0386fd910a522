// log_*: what is logged.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "lib/base/log.h"
#include "rpc/methods.h"

namespace sluice::rpc {

template <>
struct EnumNames<LogLevel> {
  static constexpr std::span<const std::string_view> kNames = kLogLevelNames;
};

namespace {

struct LevelParams {
  LogLevel level = LogLevel::kNotice;
};

struct FlagParams {
  std::string flag;
};

struct TimestampsParams {
  bool enabled = true;
};

Task<RpcResult> set_level(LevelParams params) {
  set_log_level(params.level);
  co_return true;
}

Task<RpcResult> get_level(NoParams) { co_return std::string(kLogLevelNames[static_cast<size_t>(log_level())]); }

Task<RpcResult> set_print_level(LevelParams params) {
  set_log_print_level(params.level);
  co_return true;
}

Task<RpcResult> get_print_level(NoParams) {
  co_return std::string(kLogLevelNames[static_cast<size_t>(log_print_level())]);
}

RpcResult switch_flag(const std::string& name, bool on) {
  if (name == "all") {
    for (size_t i = 0; i < std::size(kLogFlagNames); ++i) set_log_flag(static_cast<LogFlag>(i), on);
    return true;
  }
  const std::optional<LogFlag> flag = parse_log_flag(name);
  if (!flag) {
    return fail_rpc(EINVAL,
                    fmt::format("there is no log flag '{}'; flags are: all, {}", name, fmt::join(kLogFlagNames, ", ")));
  }
  set_log_flag(*flag, on);
  return true;
}

Task<RpcResult> set_flag(FlagParams params) { co_return switch_flag(params.flag, true); }
Task<RpcResult> clear_flag(FlagParams params) { co_return switch_flag(params.flag, false); }

Task<RpcResult> get_flags(NoParams) {
  Json::Value flags(Json::objectValue);
  for (size_t i = 0; i < std::size(kLogFlagNames); ++i) {
    flags[std::string(kLogFlagNames[i])] = log_flag(static_cast<LogFlag>(i));
  }
  co_return flags;
}

Task<RpcResult> enable_timestamps(TimestampsParams params) {
  set_log_timestamps(params.enabled);
  co_return true;
}

void add_call(Json::Value& calls, const char* method, const char* param, Json::Value value) {
  Json::Value& call = calls.append(Json::Value(Json::objectValue));
  call["method"] = method;
  call["params"][param] = std::move(value);
}

std::string level_name(LogLevel level) { return std::string(kLogLevelNames[static_cast<size_t>(level)]); }

}  // namespace

// What differs from the start.
Task<std::vector<StateObject>> log_state(RpcContext& context) {
  const LogSettings& start = context.log_at_start;
  const LogSettings now;
  Json::Value calls(Json::arrayValue);
  if (now.level != start.level) add_call(calls, "log_set_level", "level", level_name(now.level));
  if (now.print_level != start.print_level) {
    add_call(calls, "log_set_print_level", "level", level_name(now.print_level));
  }
  for (size_t i = 0; i < now.flags.size(); ++i) {
    if (now.flags[i] == start.flags[i]) continue;
    add_call(calls, now.flags[i] ? "log_set_flag" : "log_clear_flag", "flag", std::string(kLogFlagNames[i]));
  }
  if (now.timestamps != start.timestamps) add_call(calls, "log_enable_timestamps", "enabled", now.timestamps);
  std::vector<StateObject> objects;
  if (!calls.empty()) objects.push_back({.name = "", .calls = std::move(calls)});
  co_return objects;
}

void add_log_methods(MethodTable& table) {
  const ResultInfo level{"string", "the level"};
  const std::vector<Field<LevelParams>> set_fields{
      required("level", &LevelParams::level, "lines above it are dropped")};
  const std::vector<Field<FlagParams>> flag_fields{required("flag", &FlagParams::flag, "a component, or \"all\"")};

  table.add(make_method({"log_set_level", "Sets which lines are kept at all.", kTrue, changes_any(StateKind::kLog)},
                        set_fields, set_level));
  table.add(
      make_method<NoParams>({"log_get_level", "Tells which lines are kept at all.", level, nothing()}, {}, get_level));
  table.add(make_method({"log_set_print_level", "Sets which of the kept lines reach standard error.", kTrue,
                         changes_any(StateKind::kLog)},
                        set_fields, set_print_level));
  table.add(make_method<NoParams>(
      {"log_get_print_level", "Tells which of the kept lines reach standard error.", level, nothing()}, {},
      get_print_level));
  table.add(
      make_method({"log_set_flag", "Lets a component's debug lines through.", kTrue, changes_any(StateKind::kLog)},
                  flag_fields, set_flag));
  table.add(
      make_method({"log_clear_flag", "Holds a component's debug lines back.", kTrue, changes_any(StateKind::kLog)},
                  flag_fields, clear_flag));
  table.add(make_method<NoParams>(
      {"log_get_flags", "Tells whose debug lines are let through.", {"object", "component: bool"}, nothing()}, {},
      get_flags));
  table.add(
      make_method<TimestampsParams>({"log_enable_timestamps", "Turns the time at the begin of each line on or off.",
                                     kTrue, changes_any(StateKind::kLog)},
                                    {required("enabled", &TimestampsParams::enabled, "on or off")}, enable_timestamps));
}

}  // namespace sluice::rpc
