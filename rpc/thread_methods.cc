// thread_*: the lightweight threads: what they cost, what they hold, and where they run. One tick is one nanosecond.
#include <fmt/format.h>

#include "lib/base/clock.h"
#include "lib/thread/thread_directory.h"
#include "rpc/methods.h"

namespace sluice::rpc {
namespace {

struct SetCpumask {
  uint64_t id = 0;
  std::string cpumask;
};

Json::Value head(const LwThread& thread) {
  Json::Value json(Json::objectValue);
  json["name"] = thread.name();
  json["id"] = thread.id();
  return json;
}

Json::Value describe_stats(LwThread& thread) {
  Json::Value json = head(thread);
  uint32_t pollers = 0;
  uint32_t timers = 0;
  thread.for_each_poller([&pollers](Poller&) { ++pollers; });
  thread.for_each_timer([&timers](Timer&) { ++timers; });
  json["cpumask"] = thread.cpumask().to_string();
  json["busy"] = thread.busy_ns();
  json["idle"] = thread.idle_ns();
  json["asleep"] = thread.asleep_ns();
  json["in_interrupt"] = thread.host().mode() != PollMode::kPoll;
  json["active_pollers_count"] = pollers;
  json["timed_pollers_count"] = timers;
  json["paused_pollers_count"] = 0;
  json["hot_pollers_count"] = Json::UInt64{thread.hot_count()};
  json["cold_pollers_count"] = Json::UInt64{thread.cold_count()};
  return json;
}

Json::Value describe_pollers(LwThread& thread) {
  Json::Value json = head(thread);
  json["active_pollers"] = Json::Value(Json::arrayValue);
  json["timed_pollers"] = Json::Value(Json::arrayValue);
  json["paused_pollers"] = Json::Value(Json::arrayValue);
  Json::UInt id = 0;
  const auto add = [&id](Json::Value& list, const char* name, const char* state, uint64_t runs,
                         uint64_t busy) -> Json::Value& {
    Json::Value entry(Json::objectValue);
    entry["name"] = name;
    entry["id"] = ++id;
    entry["state"] = state;
    entry["run_count"] = runs;
    entry["busy_count"] = busy;
    return list.append(std::move(entry));
  };
  thread.for_each_poller([&](Poller& poller) {
    add(json["active_pollers"], poller.name(), poller.hot() ? "hot" : "cold", poller.run_count(), poller.busy_count());
  });
  thread.for_each_timer([&](Timer& timer) {
    add(json["timed_pollers"], timer.name(), "waiting", timer.run_count(), timer.run_count())["period_ticks"] =
        timer.period_ns();
  });
  return json;
}

Json::Value describe_channels(LwThread& thread) {
  Json::Value json = head(thread);
  json["io_channels"] = Json::Value(Json::arrayValue);
  for (const Channel* channel : thread.channels()) {
    Json::Value entry(Json::objectValue);
    entry["name"] = std::string(channel->device().device_name());
    entry["ref"] = channel->references();
    json["io_channels"].append(std::move(entry));
  }
  return json;
}

// {tick_rate, threads: [what `describe_one` says on each thread]}
Task<RpcResult> ask_threads(RpcContext& context, Json::Value (*describe_one)(LwThread&)) {
  Json::Value json(Json::objectValue);
  json["tick_rate"] = kNsPerSec;
  Json::Value& threads = json["threads"] = Json::Value(Json::arrayValue);
  co_await context.threads.for_each(
      [&threads, describe_one](LwThread& thread) { threads.append(describe_one(thread)); });
  co_return json;
}

Task<RpcResult> get_stats(RpcContext& context, NoParams) { return ask_threads(context, describe_stats); }
Task<RpcResult> get_pollers(RpcContext& context, NoParams) { return ask_threads(context, describe_pollers); }
Task<RpcResult> get_channels(RpcContext& context, NoParams) { return ask_threads(context, describe_channels); }

Task<RpcResult> set_cpumask(RpcContext& context, SetCpumask params) {
  LwThread* thread = context.threads.find(params.id);
  if (thread == nullptr) {
    co_return fail_rpc(ENODEV, fmt::format("there is no thread {}; thread_get_stats lists them", params.id));
  }
  const Result<CpuMask> cpumask = CpuMask::parse(params.cpumask);
  if (!cpumask) co_return fail_rpc(cpumask.error(), fmt::format("cpumask '{}'", params.cpumask));
  const Result<> set = co_await context.threads.set_cpumask(*thread, *cpumask);
  if (!set) co_return fail_rpc(set.error(), fmt::format("thread {}, cpumask '{}'", params.id, params.cpumask));
  co_return true;
}

}  // namespace

void add_thread_methods(MethodTable& table, RpcContext& context) {
  table.add(make_method<NoParams>(
      {"thread_get_stats",
       "Tells what each lightweight thread does with its time.",
       {"object",
        "tick_rate, threads: [{name, id, cpumask, busy, idle (polling in vain), asleep (neither), in_interrupt, "
        "active_pollers_count, timed_pollers_count, paused_pollers_count, hot_pollers_count, cold_pollers_count}]"},
       nothing()},
      {}, bind_context(context, get_stats)));
  table.add(make_method<NoParams>({"thread_get_pollers",
                                   "Lists the pollers and timers of each lightweight thread.",
                                   {"object",
                                    "tick_rate, threads: [{name, id, active_pollers, timed_pollers, paused_pollers}] "
                                    "of {name, id, state, run_count, "
                                    "busy_count, period_ticks}"},
                                   nothing()},
                                  {}, bind_context(context, get_pollers)));
  table.add(make_method<NoParams>({"thread_get_io_channels",
                                   "Lists the open channels of each lightweight thread.",
                                   {"object", "tick_rate, threads: [{name, id, io_channels: [{name, ref}]}]"},
                                   nothing()},
                                  {}, bind_context(context, get_channels)));
  table.add(make_method<SetCpumask>(
      {"thread_set_cpumask", "Moves a lightweight thread to one of these cores, and keeps it there, while I/O runs.",
       kTrue, changes_any(StateKind::kController)},
      {required("id", &SetCpumask::id, "the thread's, from thread_get_stats"),
       required("cpumask", &SetCpumask::cpumask, "cores that may run it: \"0x5\" or \"[0,2]\"")},
      bind_context(context, set_cpumask)));
}

}  // namespace sluice::rpc
