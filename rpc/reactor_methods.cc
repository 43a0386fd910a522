// framework_get_reactors, reactor_*: what each core does with its time. One tick is one nanosecond.
#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>

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

struct SetPolling {
  std::optional<uint32_t> lcore;
  std::optional<uint32_t> max_poll_us;
  std::optional<uint32_t> grow;
  std::optional<uint32_t> grow_start_us;
  std::optional<uint32_t> shrink;
  std::optional<uint32_t> idle_poll_budget;
};

// Each value with what it may be.
struct Range {
  std::string_view name;
  std::optional<uint32_t> SetPolling::* value;
  uint32_t least;
  uint32_t most;
};
constexpr Range kRanges[] = {{"max_poll_us", &SetPolling::max_poll_us, 0, 1'000'000},
                             {"grow", &SetPolling::grow, 1, 1'000},
                             {"grow_start_us", &SetPolling::grow_start_us, 1, 1'000'000},
                             {"shrink", &SetPolling::shrink, 0, 1'000},
                             {"idle_poll_budget", &SetPolling::idle_poll_budget, 0, 1'000}};

// What a reactor tells about itself, on its own thread.
struct ReactorReport {
  ReactorStats stats;
  PollMode mode;
  PollingOptions polling;
  unsigned numa_id;
};

std::string mode_name(PollMode mode) { return std::string(kModeNames[static_cast<size_t>(mode)]); }

ReactorReport report(Reactor& reactor) {
  ReactorReport made{.stats = reactor.stats(), .mode = reactor.mode(), .polling = reactor.polling(), .numa_id = 0};
  if (::getcpu(nullptr, &made.numa_id) != 0) made.numa_id = 0;
  return made;
}

Json::Value to_json(const PollingOptions& options) {
  Json::Value json(Json::objectValue);
  json["max_poll_us"] = Json::UInt64{options.max_poll_ns / kNsPerUs};
  json["grow"] = options.grow;
  json["grow_start_us"] = Json::UInt64{options.grow_start_ns / kNsPerUs};
  json["shrink"] = options.shrink;
  json["idle_poll_budget"] = options.idle_poll_budget;
  return json;
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
  json["hot_pollers"] = Json::UInt64{made.stats.hot};
  json["cold_pollers"] = Json::UInt64{made.stats.cold};
  json["in_interrupt"] = made.mode != PollMode::kPoll;
  json["mode"] = mode_name(made.mode);
  json["polling"] = to_json(made.polling);
  json["lw_threads"] = Json::Value(Json::arrayValue);
  for (const ReactorStats::Thread& thread : made.stats.threads) {
    Json::Value entry(Json::objectValue);
    entry["name"] = thread.name;
    entry["id"] = thread.id;
    entry["cpumask"] = thread.cpumask;
    entry["elapsed"] = thread.elapsed_ns;
    entry["busy"] = thread.busy_ns;
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

// Runs fn(Reactor&) on the reactor of that core, or, without one, on each, one after the other.
template <typename Fn>
Task<RpcResult> on_reactors(RpcContext& context, std::optional<uint32_t> lcore, Fn fn) {
  if (lcore && context.reactors.find(*lcore) == nullptr) {
    co_return fail_rpc(ENODEV, fmt::format("no reactor runs on core {}; framework_get_reactors lists them", *lcore));
  }
  for (const auto& reactor : context.reactors.reactors()) {
    if (lcore && reactor->lcore() != *lcore) continue;
    co_await call_on(reactor->home(), [&reactor, &fn] { fn(*reactor); });
  }
  co_return true;
}

Task<RpcResult> set_mode(RpcContext& context, SetMode params) {
  return on_reactors(context, params.lcore, [mode = params.mode](Reactor& reactor) { reactor.set_mode(mode); });
}

Task<RpcResult> set_polling(RpcContext& context, SetPolling params) {
  for (const Range& range : kRanges) {
    const std::optional<uint32_t> value = params.*range.value;
    if (!value || (*value >= range.least && *value <= range.most)) continue;
    return detail::finished(
        fail_rpc(EINVAL, fmt::format("{} must be {} to {}, not {}", range.name, range.least, range.most, *value)));
  }
  return on_reactors(context, params.lcore, [params](Reactor& reactor) {
    PollingOptions options = reactor.polling();
    if (params.max_poll_us) options.max_poll_ns = *params.max_poll_us * kNsPerUs;
    if (params.grow) options.grow = *params.grow;
    if (params.grow_start_us) options.grow_start_ns = *params.grow_start_us * kNsPerUs;
    if (params.shrink) options.shrink = *params.shrink;
    if (params.idle_poll_budget) options.idle_poll_budget = *params.idle_poll_budget;
    reactor.set_polling(options);
  });
}

}  // namespace

template <>
struct EnumNames<PollMode> {
  static constexpr std::span<const std::string_view> kNames = kModeNames;
};

Task<Json::Value> reactor_config(RpcContext& context) {
  struct Settings {
    PollMode mode;
    PollingOptions polling;
    bool operator==(const Settings&) const = default;
  };
  const Settings start{.mode = context.reactors.start_mode(), .polling = {}};
  std::vector<Settings> all;
  for (const auto& reactor : context.reactors.reactors()) {
    all.push_back(co_await call_on(
        reactor->home(), [&reactor] { return Settings{.mode = reactor->mode(), .polling = reactor->polling()}; }));
  }
  // One call for all reactors where they agree, so that it also holds on a host with other cores.
  const bool agree = std::ranges::all_of(all, [&all](const Settings& one) { return one == all.front(); });
  Json::Value calls(Json::arrayValue);
  for (size_t i = 0; i < (agree ? 1 : all.size()); ++i) {
    Json::Value lcore(Json::objectValue);
    if (!agree) lcore["lcore"] = context.reactors.reactors()[i]->lcore();
    if (all[i].mode != start.mode) {
      Json::Value& call = calls.append(Json::Value(Json::objectValue));
      call["method"] = "reactor_set_mode";
      call["params"] = lcore;
      call["params"]["mode"] = mode_name(all[i].mode);
    }
    if (all[i].polling != start.polling) {
      Json::Value& call = calls.append(Json::Value(Json::objectValue));
      call["method"] = "reactor_set_polling_options";
      call["params"] = to_json(all[i].polling);
      if (!agree) call["params"]["lcore"] = lcore["lcore"];
    }
  }
  co_return calls;
}

void add_reactor_methods(MethodTable& table, RpcContext& context) {
  table.add(make_method<NoParams>(
      {"framework_get_reactors",
       "Tells what each reactor does with its time, and the lightweight threads it runs.",
       {"object",
        "tick_rate, pid, reactors: [{lcore, numa_id, tid, busy, idle (polling in vain), asleep, wakeups, hot_pollers, "
        "cold_pollers, in_interrupt, mode, polling: {max_poll_us, grow, grow_start_us, shrink, idle_poll_budget}, "
        "lw_threads: [{name, id, cpumask, elapsed (busy and idle), busy}]}]"},
       nothing()},
      {}, bind_context(context, get_reactors)));
  table.add(make_method<SetMode>(
      {"reactor_set_mode", "Changes how eagerly a reactor polls, while I/O runs.", kTrue,
       changes_any(StateKind::kScheduler)},
      {required("mode", &SetMode::mode,
                "poll: never sleep; interrupt: sleep as soon as nothing is found; adaptive: poll on for a while"),
       optional("lcore", &SetMode::lcore, "the reactor's core; all when left out")},
      bind_context(context, set_mode)));
  table.add(make_method<SetPolling>(
      {"reactor_set_polling_options",
       "Changes how adaptive mode learns how long to poll in vain; what is left out stays as it is.", kTrue,
       changes_any(StateKind::kScheduler)},
      {optional("max_poll_us", &SetPolling::max_poll_us, "no poller polls on for longer, up to 1000000; 0: never (50)"),
       optional("grow", &SetPolling::grow,
                "how much longer a poller polls on when work came soon after it had stopped, 1 to 1000 times (2)"),
       optional("grow_start_us", &SetPolling::grow_start_us, "how long at first, 1 to 1000000 (10)"),
       optional("shrink", &SetPolling::shrink,
                "how much shorter when none came for long, up to 1000 times; 0: no more at all (2)"),
       optional("idle_poll_budget", &SetPolling::idle_poll_budget,
                "how much polling in vain may add to what the work costs, in percent, up to 1000 (25)"),
       optional("lcore", &SetPolling::lcore, "the reactor's core; all when left out")},
      bind_context(context, set_polling)));
}

}  // namespace sluice::rpc
