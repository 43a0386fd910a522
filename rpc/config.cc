#include "rpc/config.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "lib/base/log.h"
#include "lib/base/unique_fd.h"
#include "rpc/json.h"
#include "rpc/limits.h"

namespace sluice::rpc {
namespace {

struct Entry {
  std::string place;  // "subsystem 'bdev', entry 3"
  std::string method;
  Json::Value params;
};

std::unexpected<std::string> complain(std::string text) { return std::unexpected(std::move(text)); }

std::expected<std::string, std::string> read_file(const std::string& path) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return complain(::strerrordesc_np(errno));
  std::string text;
  for (;;) {
    char chunk[16384];
    const ssize_t count = ::read(file.get(), chunk, sizeof(chunk));
    if (count == 0) return text;
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return complain(::strerrordesc_np(errno));
    text.append(chunk, static_cast<size_t>(count));
    if (text.size() > kMaxConfigBytes) return complain(fmt::format("longer than {} bytes", kMaxConfigBytes));
  }
}

// The entries of one element of "subsystems".
std::expected<std::vector<Entry>, std::string> read_subsystem(const Json::Value& subsystem, Json::ArrayIndex number) {
  const std::string place = fmt::format("subsystems[{}]", number);
  if (!subsystem.isObject() || !subsystem["subsystem"].isString()) {
    return complain(place + " must be an object with \"subsystem\" and \"config\"");
  }
  const std::string name = subsystem["subsystem"].asString();
  const Json::Value& config = subsystem["config"];  // null: nothing to do
  if (!config.isNull() && !config.isArray())
    return complain(fmt::format("{} ('{}'): config must be an array", place, name));
  std::vector<Entry> entries;
  for (const Json::Value& call : config) {
    std::string at = fmt::format("subsystem '{}', entry {}", name, entries.size());
    if (!call.isObject() || !call["method"].isString()) return complain(at + " must be an object with \"method\"");
    entries.push_back({std::move(at), call["method"].asString(), call["params"]});
  }
  return entries;
}

std::expected<Json::Value, std::string> read_config(const std::string& path) {
  const auto text = read_file(path);
  if (!text) return complain(text.error());
  auto json = parse_json(*text);
  if (!json) return complain("not JSON: " + json.error());
  return std::move(*json);
}

std::expected<std::vector<Entry>, std::string> read_entries(const Json::Value& json) {
  if (!json.isObject() || !json["subsystems"].isArray())
    return complain("must be an object with an array \"subsystems\"");
  std::vector<Entry> entries;
  Json::ArrayIndex number = 0;
  for (const Json::Value& subsystem : json["subsystems"]) {
    auto more = read_subsystem(subsystem, number++);
    if (!more) return more;
    for (Entry& entry : *more) entries.push_back(std::move(entry));
  }
  return entries;
}

}  // namespace

Task<std::expected<void, std::string>> load_config(Dispatcher& dispatcher, std::string path) {
  auto json = read_config(path);
  if (!json) co_return complain(fmt::format("configuration {}: {}", path, json.error()));
  co_return co_await load_config(dispatcher, std::move(*json), path);
}

Task<std::expected<void, std::string>> load_config(Dispatcher& dispatcher, Json::Value config, std::string path) {
  const std::expected<std::vector<Entry>, std::string> entries = read_entries(config);
  if (!entries) co_return complain(fmt::format("configuration {}: {}", path, entries.error()));
  for (const Entry& entry : *entries) {
    const RpcResult result = co_await dispatcher.call(entry.method, entry.params);
    if (!result) {
      co_return complain(
          fmt::format("configuration {}: {}: {} ({})", path, entry.place, result.error().message, result.error().code));
    }
  }
  log(LogLevel::kInfo, LogFlag::kApp, "{}: {} calls made", path, entries->size());
  co_return std::expected<void, std::string>{};
}

}  // namespace sluice::rpc
