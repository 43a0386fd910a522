// framework_*_scheduler: where lightweight threads run.
#include <fmt/format.h>

#include <cmath>

#include "lib/reactor/reactor_group.h"
#include "lib/thread/scheduler.h"
#include "rpc/methods.h"

namespace sluice::rpc {
namespace {

constexpr std::string_view kSchedulerNames[] = {"static", "dynamic"};

constexpr uint64_t kMinPeriodUs = 1'000;
constexpr uint64_t kMaxPeriodUs = 3'600'000'000;
constexpr uint32_t kMaxPercent = 100;

struct SetScheduler {
  SchedulerKind name = SchedulerKind::kStatic;
  std::optional<uint64_t> period;
  std::optional<uint32_t> load_limit;
  std::optional<uint32_t> core_limit;
  std::optional<uint32_t> core_busy;
};

std::string kind_name(SchedulerKind kind) { return std::string(kSchedulerNames[static_cast<size_t>(kind)]); }
uint32_t whole(double percent) { return static_cast<uint32_t>(percent); }

Task<RpcResult> set_scheduler(RpcContext& context, SetScheduler params) {
  SchedulerOptions options = context.scheduler.options();
  options.kind = params.name;
  if (params.period) {
    if (*params.period < kMinPeriodUs || *params.period > kMaxPeriodUs) {
      co_return fail_rpc(EINVAL,
                         fmt::format("period must be {} to {} us, not {}", kMinPeriodUs, kMaxPeriodUs, *params.period));
    }
    options.period_ns = *params.period * kNsPerUs;
  }
  const struct {
    std::string_view name;
    std::optional<uint32_t> value;
    double& target;
  } limits[] = {{"load_limit", params.load_limit, options.limits.load_limit},
                {"core_limit", params.core_limit, options.limits.core_limit},
                {"core_busy", params.core_busy, options.limits.core_busy}};
  for (const auto& limit : limits) {
    if (!limit.value) continue;
    if (*limit.value > kMaxPercent) {
      co_return fail_rpc(EINVAL, fmt::format("{} is in percent, 0 to 100, not {}", limit.name, *limit.value));
    }
    limit.target = *limit.value;
  }
  context.scheduler.set_options(options);
  co_return true;
}

Task<RpcResult> get_scheduler(RpcContext& context, NoParams) {
  const SchedulerOptions& options = context.scheduler.options();
  Json::Value json(Json::objectValue);
  json["scheduler_name"] = kind_name(options.kind);
  json["scheduler_period"] = Json::UInt64{options.period_ns / kNsPerUs};
  json["scheduling_core"] = context.reactors.reactors().front()->lcore();
  json["isolated_core_mask"] = CpuMask().to_string();
  json["load_limit"] = whole(options.limits.load_limit);
  json["core_limit"] = whole(options.limits.core_limit);
  json["core_busy"] = whole(options.limits.core_busy);
  json["moves"] = Json::UInt64{context.scheduler.moves()};
  json["cores"] = Json::Value(Json::arrayValue);
  for (const Scheduler::Core& core : context.scheduler.cores()) {
    Json::Value entry(Json::objectValue);
    entry["lcore"] = core.lcore;
    entry["load"] = std::round(core.load * 100) / 100;
    entry["threads"] = Json::UInt64{core.threads};
    json["cores"].append(std::move(entry));
  }
  co_return json;
}

void add_scheduler_call(const SchedulerOptions& options, Json::Value& calls) {
  Json::Value& call = calls.append(Json::Value(Json::objectValue));
  call["method"] = "framework_set_scheduler";
  call["params"]["name"] = kind_name(options.kind);
  call["params"]["period"] = Json::UInt64{options.period_ns / kNsPerUs};
  call["params"]["load_limit"] = whole(options.limits.load_limit);
  call["params"]["core_limit"] = whole(options.limits.core_limit);
  call["params"]["core_busy"] = whole(options.limits.core_busy);
}

}  // namespace

template <>
struct EnumNames<SchedulerKind> {
  static constexpr std::span<const std::string_view> kNames = kSchedulerNames;
};

// What differs from the defaults.
Task<std::vector<StateObject>> scheduler_state(RpcContext& context) {
  Json::Value calls = co_await reactor_config(context);
  const SchedulerOptions& options = context.scheduler.options();
  if (options != SchedulerOptions{}) add_scheduler_call(options, calls);
  std::vector<StateObject> objects;
  if (!calls.empty()) objects.push_back({.name = "", .calls = std::move(calls)});
  co_return objects;
}

void add_scheduler_methods(MethodTable& table, RpcContext& context) {
  table.add(make_method<SetScheduler>(
      {"framework_set_scheduler", "Tells who decides where lightweight threads run; what is left out stays as it is.",
       kTrue, changes_any(StateKind::kScheduler)},
      {required("name", &SetScheduler::name,
                "static: they stay where they are; dynamic: they move between cores, by what they cost"),
       optional("period", &SetScheduler::period, "dynamic: how often it looks, in us (1000000)"),
       optional("load_limit", &SetScheduler::load_limit,
                "a thread that takes less of a core is idle, and packed on few cores, in percent (20)"),
       optional("core_limit", &SetScheduler::core_limit,
                "a core that is busy for longer gives threads away, in percent (80)"),
       optional("core_busy", &SetScheduler::core_busy, "no core is filled beyond it, in percent (95)")},
      bind_context(context, set_scheduler)));
  table.add(make_method<NoParams>(
      {"framework_get_scheduler",
       "Tells who decides where lightweight threads run, and what it saw when it looked last.",
       {"object",
        "scheduler_name, scheduler_period, scheduling_core, isolated_core_mask, load_limit, core_limit, core_busy, "
        "moves, cores: [{lcore, load (percent), threads}] (none while static)"},
       nothing()},
      {}, bind_context(context, get_scheduler)));
}

}  // namespace sluice::rpc
