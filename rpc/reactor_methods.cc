// framework_get_reactors, reactor_*, thread_*: who runs where, and what it costs. One tick is one nanosecond.
#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include "lib/base/clock.h"
#include "lib/reactor/reactor_group.h"
#include "rpc/methods.h"

namespace sluice::rpc {
namespace {

constexpr std::string_view kModeNames[] = {"poll", "interrupt", "adaptive"};

struct SetMode {
  std::optional<uint32_t> lcore;
  PollMode mode = PollMode::kInterrupt;
};

// What a reactor tells about itself, on its own thread.
struct ReactorReport {
  ReactorStats stats;
  PollMode mode;
  unsigned numa_id;
};

ReactorReport report(Reactor& reactor) {
  ReactorReport made{.stats = reactor.stats(), .mode = reactor.mode(), .numa_id = 0};
  if (::getcpu(nullptr, &made.numa_id) != 0) made.numa_id = 0;
  return made;
}

Json::Value to_json(const Reactor& reactor, const ReactorReport& made) {
  Json::Value json(Json::objectValue);
  json["lcore"] = reactor.lcore();
  json["numa_id"] = made.numa_id;
  json["tid"] = reactor.tid();
  json["busy"] = made.stats.busy_ns;
  json["idle"] = made.stats.idle_ns;
  json["asleep"] = made.stats.asleep_ns;
  json["wakeups"] = made.stats.wakeups;
  json["in_interrupt"] = made.mode != PollMode::kPoll;
  json["mode"] = std::string(kModeNames[static_cast<size_t>(made.mode)]);
  json["lw_threads"] = Json::Value(Json::arrayValue);
  for (const ReactorStats::Thread& thread : made.stats.threads) {
    Json::Value entry(Json::objectValue);
    entry["name"] = thread.name;
    entry["id"] = thread.id;
    entry["cpumask"] = thread.cpumask;
    entry["elapsed"] = thread.elapsed_ns;
    json["lw_threads"].append(std::move(entry));
  }
  return json;
}

Task<RpcResult> get_reactors(RpcContext& context, NoParams) {
  Json::Value json(Json::objectValue);
  json["tick_rate"] = kNsPerSec;
  json["pid"] = ::getpid();
  json["reactors"] = Json::Value(Json::arrayValue);
  for (const auto& reactor : context.reactors.reactors()) {
    const ReactorReport made = co_await call_on(reactor->home(), [&reactor] { return report(*reactor); });
    json["reactors"].append(to_json(*reactor, made));
  }
  co_return json;
}

Task<RpcResult> set_mode(RpcContext& context, SetMode params) {
  if (params.lcore && context.reactors.find(*params.lcore) == nullptr) {
    co_return fail_rpc(ENODEV,
                       fmt::format("no reactor runs on core {}; framework_get_reactors lists them", *params.lcore));
  }
  for (const auto& reactor : context.reactors.reactors()) {
    if (params.lcore && reactor->lcore() != *params.lcore) continue;
    co_await call_on(reactor->home(), [&reactor, &params] { reactor->set_mode(params.mode); });
  }
  co_return true;
}

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
  json["in_interrupt"] = thread.host().mode() != PollMode::kPoll;
  json["active_pollers_count"] = pollers;
  json["timed_pollers_count"] = timers;
  json["paused_pollers_count"] = 0;
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

}  // namespace

template <>
struct EnumNames<PollMode> {
  static constexpr std::span<const std::string_view> kNames = kModeNames;
};

void add_reactor_methods(MethodTable& table, RpcContext& context) {
  table.add(make_method<NoParams>({"framework_get_reactors",
                                   "Tells what each reactor does with its time, and the lightweight threads it runs.",
                                   {"object",
                                    "tick_rate, pid, reactors: [{lcore, numa_id, tid, busy, idle (polling in vain), "
                                    "asleep, wakeups, in_interrupt, mode, "
                                    "lw_threads: [{name, id, cpumask, elapsed}]}]"}},
                                  {}, bind_context(context, get_reactors)));
  table.add(make_method<SetMode>(
      {"reactor_set_mode", "Changes how eagerly a reactor polls, while I/O runs.", kTrue},
      {required("mode", &SetMode::mode,
                "poll: never sleep; interrupt: sleep as soon as nothing is found; adaptive: poll on for a while"),
       optional("lcore", &SetMode::lcore, "the reactor's core; all when left out")},
      bind_context(context, set_mode)));
  table.add(make_method<NoParams>(
      {"thread_get_stats",
       "Tells what each lightweight thread does with its time.",
       {"object",
        "tick_rate, threads: [{name, id, cpumask, busy, idle, in_interrupt, active_pollers_count, timed_pollers_count, "
        "paused_pollers_count}]"}},
      {}, bind_context(context, get_stats)));
  table.add(make_method<NoParams>({"thread_get_pollers",
                                   "Lists the pollers and timers of each lightweight thread.",
                                   {"object",
                                    "tick_rate, threads: [{name, id, active_pollers, timed_pollers, paused_pollers}] "
                                    "of {name, id, state, run_count, "
                                    "busy_count, period_ticks}"}},
                                  {}, bind_context(context, get_pollers)));
  table.add(make_method<NoParams>({"thread_get_io_channels",
                                   "Lists the open channels of each lightweight thread.",
                                   {"object", "tick_rate, threads: [{name, id, io_channels: [{name, ref}]}]"}},
                                  {}, bind_context(context, get_channels)));
}

}  // namespace sluice::rpc
