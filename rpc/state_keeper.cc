#include "rpc/state_keeper.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/bdev/blocking_pool.h"
#include "rpc/json.h"
#include "rpc/limits.h"
#include "rpc/state_journal.h"

namespace sluice::rpc {
namespace {

// co_await: runs the work on a thread of the pool, and goes on here.
class BlockingCall : private BlockingJob {
 public:
  BlockingCall(BlockingPool& pool, std::function<Result<>()> work) : pool_(pool), work_(std::move(work)) {}

  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> waiter) {
    waiter_ = waiter;
    target = LwThread::current();
    execute = [](BlockingJob& job) {
      auto& self = static_cast<BlockingCall&>(job);
      self.result_ = self.work_();
      return true;
    };
    run = [](Work& job) { static_cast<BlockingCall&>(job).waiter_.resume(); };
    pool_.submit(*this);
  }
  Result<> await_resume() const {
    if (pool_error != 0) return fail(pool_error, "cannot start a thread to write it");
    return result_;
  }

 private:
  BlockingPool& pool_;
  std::function<Result<>()> work_;
  std::coroutine_handle<> waiter_;
  Result<> result_;
};

std::string_view name_of_kind(StateKind kind) { return kStateKindNames[static_cast<size_t>(kind)]; }

std::string subject(StateKind kind, const std::string& name) {
  return name.empty() ? std::string(name_of_kind(kind)) : fmt::format("{} '{}'", name_of_kind(kind), name);
}

std::optional<StateKind> kind_named(const Json::Value& name) {
  const auto found = std::ranges::find(kStateKindNames, name.isString() ? name.asString() : "");
  if (found == std::end(kStateKindNames)) return std::nullopt;
  return static_cast<StateKind>(found - std::begin(kStateKindNames));
}

Json::Value change_json(StateKind kind, const std::string& name, const Json::Value* calls) {
  Json::Value json(Json::objectValue);
  json["kind"] = std::string(name_of_kind(kind));
  json["name"] = name;
  if (calls != nullptr) json["calls"] = *calls;
  return json;
}

// The value of a parameter, by its name or the older one; null if it is not given.
Json::Value value_of(const Method& method, std::string_view param, const Json::Value& params) {
  if (!params.isObject()) return {};
  const auto info = std::ranges::find(method.params, param, &ParamInfo::name);
  const Json::Value& value = params[std::string(param)];
  return value.isNull() && !info->alias.empty() ? params[std::string(info->alias)] : value;
}

}  // namespace

StateKeeper::StateKeeper(StateJournal& journal, BlockingPool& pool, const MethodTable& methods, StateObjects& objects)
    : journal_(journal), pool_(pool), methods_(methods), objects_(objects), compact_at_bytes_(kStateCompactBytes) {
  look_at_file();
}

StateKeeper::~StateKeeper() { CHECK(!started_ || gate_.closed()); }

// --- The start ---

std::expected<void, std::string> StateKeeper::load() {
  first_start_ = needs_replacing_;
  for (const StateJournal::Line& line : journal_.lines()) {
    if (auto loaded = load_line(line.text); !loaded) {
      return std::unexpected(
          fmt::format("{}, line {}: {}. To fix: start the version of the daemon that has written it; "
                      "or go on without what the line says: sed -i '{}s/^/#/' {}",
                      journal_.path(), line.number, loaded.error(), line.number, journal_.path()));
    }
  }
  uint64_t entry_bytes = 0;
  for (const auto& [key, entry] : entries_) entry_bytes += entry.calls.size() + key.second.size();
  compact_at_bytes_ = std::max(compact_at_bytes_, kStateCompactFactor * entry_bytes);
  return {};
}

std::expected<void, std::string> StateKeeper::load_line(const std::string& text) {
  const auto complain = [](std::string what) { return std::unexpected(std::move(what)); };
  const auto line = parse_json(text);
  if (!line) return complain("not JSON: " + line.error());
  if (!line->isArray()) return complain("it must be an array of objects");
  for (const Json::Value& change : *line) {
    if (!change.isObject() || !change["name"].isString()) return complain("an object without a name");
    const std::optional<StateKind> kind = kind_named(change["kind"]);
    if (!kind) return complain(fmt::format("of an unknown kind: {}", write_json(change["kind"])));
    const Json::Value& calls = change["calls"];
    const Key key{*kind, change["name"].asString()};
    if (calls.isNull()) {
      entries_.erase(key);
      continue;
    }
    const bool good = calls.isArray() && std::ranges::all_of(calls, [](const Json::Value& call) {
                        return call.isObject() && call["method"].isString();
                      });
    if (!good) return complain(fmt::format("the calls of {} are none", subject(key.first, key.second)));
    const auto [entry, added] = entries_.try_emplace(key);
    if (added) entry->second.order = next_order_++;
    entry->second.calls = write_json(calls);
  }
  return {};
}

Task<> StateKeeper::restore() {
  const uint64_t begin_ns = now_ns();
  const std::vector<Key> keys = in_order(false);
  const uint64_t made = co_await make_all(keys);
  log(made == keys.size() ? LogLevel::kNotice : LogLevel::kError, LogFlag::kApp,
      "{}: {} of {} objects made again in {:.1f} ms{}", journal_.path(), made, keys.size(),
      static_cast<double>(now_ns() - begin_ns) / static_cast<double>(kNsPerMs),
      made == keys.size() ? "" : "; the others stay in it: state_get_info lists them, state_retry tries again");
}

Task<std::expected<void, RpcError>> StateKeeper::start() {
  started_ = true;
  if (needs_replacing_) ++marked_;  // of nothing: so that there is a file
  co_return co_await settle();
}

Task<std::expected<void, RpcError>> StateKeeper::take_over() {
  for (auto& [key, entry] : entries_) entry.error = "it was not there when this daemon took over from another one";
  for (size_t kind = 0; kind < std::size(kStateKindNames); ++kind) mark({static_cast<StateKind>(kind), ""}, false);
  co_return co_await start();
}

Task<> StateKeeper::close() {
  co_await gate_.close();
  pool_.settle();
}

// --- Making what is kept ---

std::vector<StateKeeper::Key> StateKeeper::in_order(bool failed_only) const {
  std::vector<std::pair<uint64_t, Key>> found;
  for (const auto& [key, entry] : entries_) {
    if (!failed_only || !entry.error.empty()) found.emplace_back(entry.order, key);
  }
  std::ranges::sort(found, [](const auto& left, const auto& right) {
    return std::pair(left.second.first, left.first) < std::pair(right.second.first, right.first);
  });
  std::vector<Key> keys;
  for (auto& [order, key] : found) keys.push_back(std::move(key));
  return keys;
}

// `made`: how many of its calls need not be made; and how many need not next time.
Task<std::expected<void, std::string>> StateKeeper::make(Key key, uint32_t& made) {
  const auto calls = parse_json(entries_.at(key).calls);
  CHECK(calls.has_value());
  while (made < calls->size()) {
    const Json::Value& call = (*calls)[made];
    const std::string name = call["method"].asString();
    const Method* method = methods_.find(name);
    if (method == nullptr) co_return std::unexpected(fmt::format("{}: this version has no such method", name));
    const RpcResult result = co_await method->call(call["params"]);
    if (!result) co_return std::unexpected(fmt::format("{}: {}", name, result.error().message));
    ++made;
  }
  co_return std::expected<void, std::string>{};
}

// By turns, until nothing more can be made: some stand on others. Returns how many were.
Task<uint64_t> StateKeeper::make_all(std::vector<Key> keys) {
  const size_t count = keys.size();
  for (size_t before = count + 1; !keys.empty() && keys.size() < before;) {
    before = keys.size();
    std::vector<Key> left;
    for (Key& key : keys) {
      const auto entry = entries_.find(key);
      if (entry == entries_.end()) continue;
      uint32_t made = entry->second.made;
      const auto done = co_await make(key, made);
      // Looked up again: while this waited, it may have gone.
      const auto now = entries_.find(key);
      if (now == entries_.end()) continue;
      now->second.made = done ? 0 : made;
      now->second.error = done ? "" : done.error();
      if (!done) left.push_back(std::move(key));
    }
    keys = std::move(left);
  }
  for (const Key& key : keys) {
    log(LogLevel::kError, LogFlag::kApp, "{}: cannot make {} again: {}", journal_.path(),
        subject(key.first, key.second), entries_.at(key).error);
  }
  co_return count - keys.size();
}

Task<uint64_t> StateKeeper::retry() {
  const std::vector<Key> keys = in_order(true);
  const uint64_t made = co_await make_all(keys);
  for (const Key& key : keys) mark(key, false);
  co_return made;
}

Task<std::expected<bool, RpcError>> StateKeeper::forget(StateKind kind, std::string name) {
  if (!failed({kind, name})) co_return false;
  mark({kind, std::move(name)}, true);
  if (auto settled = co_await settle(); !settled) co_return std::unexpected(settled.error());
  co_return true;
}

StateKeeper::Info StateKeeper::info() const {
  Info info{.path = journal_.path(),
            .size_bytes = size_bytes_,
            .objects = entries_.size(),
            .writes = writes_,
            .error = error_.code == 0 ? "" : explain(error_, "").message};
  for (const Key& key : in_order(true)) {
    const Entry& entry = entries_.at(key);
    info.failures.push_back(
        {.kind = key.first, .name = key.second, .calls = *parse_json(entry.calls), .error = entry.error});
  }
  return info;
}

std::string StateKeeper::half_made() const {
  const auto found = std::ranges::find_if(entries_, [](const auto& entry) { return entry.second.made > 0; });
  return found == entries_.end() ? "" : subject(found->first.first, found->first.second);
}

// --- Calls that change something ---

bool StateKeeper::failed(const Key& key) const {
  const auto entry = entries_.find(key);
  return entry != entries_.end() && !entry->second.error.empty();
}

Task<RpcResult> StateKeeper::run(const Method& method, const Json::Value& params) {
  uint64_t room = 0;
  if (started_) {
    room = kStateRoomFactor * write_json(params).size() + kStateRoomOfCall;
    if (auto taken = co_await take_room(room); !taken) co_return std::unexpected(taken.error());
  }
  // By what it is called now, as afterwards it may be gone.
  std::vector<Key> before;
  for (const Change& change : method.info.effect.changes()) {
    const Json::Value name = change.param.empty() ? Json::Value() : value_of(method, change.param, params);
    before.emplace_back(change.kind, name.isString() ? objects_.name_of(change.kind, name.asString()) : "");
  }
  RpcResult result = co_await method.call(params);
  for (size_t i = 0; i < before.size(); ++i) {
    const Change& change = method.info.effect.changes()[i];
    Key key = before[i];
    if (!change.param.empty() && key.second.empty()) {
      if (!result || !result->isString()) continue;
      key.second = result->asString();
    }
    // What only could not be made again is gone as well once somebody has deleted it.
    if (change.removes && !result && result.error().code == -ENODEV && failed(key)) result = Json::Value(true);
    mark(std::move(key), change.removes && result.has_value());
  }
  marked_room_ += room;
  co_return result;
}

void StateKeeper::mark(Key key, bool removed) {
  marks_.push_back({std::move(key), removed});
  ++marked_;
}

Task<std::expected<void, RpcError>> StateKeeper::settle() {
  const uint64_t mine = marked_;
  // Not before somebody waits: what a batch has changed is written at once.
  if (tried_ < mine) begin_writing();
  while (tried_ < mine && durable_ < mine) co_await changed_.wait();
  if (durable_ >= mine) co_return std::expected<void, RpcError>{};
  co_return std::unexpected(
      explain(error_, "it is done, but could not be kept, and a restart undoes it unless a later call succeeds: "));
}

RpcError StateKeeper::explain(const Error& error, std::string_view what) const {
  return to_rpc_error(error, fmt::format("{}{}", what, journal_.path()));
}

// --- Writing ---

void StateKeeper::look_at_file() {
  needs_replacing_ = journal_.needs_replacing();
  size_bytes_ = journal_.size_bytes();
  room_bytes_ = needs_replacing_ ? 0 : journal_.room_bytes();
}

Task<Result<>> StateKeeper::blocking(std::function<Result<>()> work) {
  BlockingCall call(pool_, std::move(work));
  const Result<> result = co_await call;
  look_at_file();
  co_return result;
}

Task<std::expected<void, RpcError>> StateKeeper::take_room(uint64_t bytes) {
  Result<> ready;
  if (needs_replacing_ || room_bytes_ < promised_ + bytes) {
    while (using_file_) co_await changed_.wait();
    using_file_ = true;
    if (needs_replacing_) {
      const uint64_t all = tried_;
      ready = co_await blocking([this] { return replace_file(); });
      if (ready) durable_ = std::max(durable_, all);
    }
    if (ready && room_bytes_ < promised_ + bytes) {
      ready = co_await blocking([this, wanted = promised_ + bytes] { return journal_.reserve(wanted); });
    }
    note_result(ready);
    using_file_ = false;
    changed_.notify_all();
  }
  if (!ready) co_return std::unexpected(explain(ready.error(), "nothing was done, as it could not be kept: "));
  promised_ += bytes;
  co_return std::expected<void, RpcError>{};
}

void StateKeeper::begin_writing() {
  if (std::exchange(writing_, true)) return;
  if (!gate_.spawn(write_marked())) writing_ = false;
}

Task<> StateKeeper::write_marked() {
  while (using_file_) co_await changed_.wait();
  using_file_ = true;
  while (tried_ < marked_) {
    const uint64_t all = marked_;
    const uint64_t room = std::exchange(marked_room_, 0);
    const Json::Value line = co_await differences(std::exchange(marks_, {}));
    Result<> written;
    if (needs_replacing_) {
      written = co_await blocking([this] { return replace_file(); });
    } else if (!line.empty()) {
      const std::string text = write_json(line);
      written = co_await blocking([this, &text] { return journal_.append(text); });
      ++writes_;
    }
    promised_ -= room;
    tried_ = all;
    if (written) durable_ = all;
    note_result(written);
    changed_.notify_all();
    if (written && size_bytes_ > compact_at_bytes_) co_await compact();
  }
  using_file_ = writing_ = false;
  changed_.notify_all();
}

Task<> StateKeeper::compact() {
  const Result<> compacted = co_await blocking([this] { return replace_file(); });
  compact_at_bytes_ = std::max(kStateCompactBytes, kStateCompactFactor * size_bytes_);
  if (compacted) co_return;
  log(LogLevel::kWarning, LogFlag::kApp, "{}: it grows, as it cannot be made shorter: {}: {}", journal_.path(),
      compacted.error().what, ::strerrordesc_np(compacted.error().code));
}

void StateKeeper::note_result(const Result<>& result) {
  const bool failed_before = error_.code != 0;
  error_ = result ? Error{} : result.error();
  if (!result && !failed_before) {
    log(LogLevel::kError, LogFlag::kApp, "{}; calls that change something are refused until it can be written again",
        explain(result.error(), "").message);
  } else if (result && failed_before) {
    log(LogLevel::kNotice, LogFlag::kApp, "{}: written again", journal_.path());
  }
}

// On a thread of the pool; nobody else changes what it reads: that is done with using_file_ only.
Result<> StateKeeper::replace_file() {
  std::vector<std::string> lines;
  for (const Key& key : in_order(false)) {
    const std::string head = write_json(change_json(key.first, key.second, nullptr));
    // {"kind":"bdev","name":"n0"} and its calls.
    lines.push_back(
        fmt::format("[{},\"calls\":{}}}]", std::string_view(head).substr(0, head.size() - 1), entries_.at(key).calls));
  }
  return journal_.replace(lines);
}

// What is there is put into entries_, and returned as far as it was not there before.
Task<Json::Value> StateKeeper::differences(std::vector<Mark> marks) {
  std::map<Key, bool> removed;
  for (Mark& mark : marks) removed[std::move(mark.key)] |= mark.removed;
  Json::Value line(Json::arrayValue);
  for (const auto& [key, was_removed] : removed) {
    std::set<std::string> present;
    for (const StateObject& object : co_await objects_.describe(key.first, key.second)) {
      present.insert(object.name);
      if (!object.calls.isNull()) note_change(line, {key.first, object.name}, &object.calls);
    }
    std::vector<Key> gone;
    for (auto entry = entries_.lower_bound({key.first, key.second});
         entry != entries_.end() && entry->first.first == key.first; ++entry) {
      if (!key.second.empty() && entry->first != key) break;
      const bool dropped = entry->second.error.empty() || (was_removed && entry->first == key);
      if (dropped && !present.contains(entry->first.second)) gone.push_back(entry->first);
    }
    for (const Key& name : gone) note_change(line, name, nullptr);
  }
  co_return line;
}

void StateKeeper::note_change(Json::Value& line, const Key& key, const Json::Value* calls) {
  if (calls == nullptr) {
    entries_.erase(key);
  } else {
    std::string text = write_json(*calls);
    const auto [entry, added] = entries_.try_emplace(key);
    if (added) entry->second.order = next_order_++;
    entry->second.error.clear();
    entry->second.made = 0;
    if (entry->second.calls == text) return;
    entry->second.calls = std::move(text);
  }
  line.append(change_json(key.first, key.second, calls));
}

}  // namespace sluice::rpc
