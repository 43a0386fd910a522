#include "rpc/hand_over.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "lib/base/fd_passing.h"
#include "lib/vhost/virt_queue.h"
#include "rpc/json.h"

namespace sluice::rpc {
namespace {

constexpr uint32_t kFormat = 1;
constexpr size_t kMaxText = size_t{256} << 20;
constexpr size_t kMaxDescriptors = 1 << 20;
constexpr size_t kFdsAtOnce = 128;

// What comes first; then the descriptors, so many with each byte; then the text.
struct Preamble {
  uint32_t format = kFormat;
  uint32_t descriptors = 0;
  uint64_t text_bytes = 0;
};
static_assert(sizeof(Preamble) == 16);

// --- To JSON ---

class Writer {
 public:
  Json::Value hand_over(const HandOver& from) {
    Json::Value json(Json::objectValue);
    json["config"] = from.config;
    json["vhost_directory"] = from.vhost_directory;
    json["rpc_path"] = from.rpc_path;
    json["rpc_listener"] = number(from.rpc_listener);
    json["state_path"] = from.state_path;
    json["state_directory"] = number(from.state_directory);
    json["controllers"] = Json::Value(Json::arrayValue);
    for (const vhost::ControllerState& controller : from.controllers) {
      Json::Value entry(Json::objectValue);
      entry["name"] = controller.name;
      entry["listener"] = number(controller.listener);
      if (controller.session) entry["session"] = session(*controller.session);
      json["controllers"].append(std::move(entry));
    }
    return json;
  }
  const std::vector<int>& fds() const { return fds_; }

 private:
  // null: there is none.
  Json::Value number(const UniqueFd& fd) { return fd ? number(fd.get()) : Json::Value(); }
  Json::Value number(int fd) {
    fds_.push_back(fd);
    return static_cast<Json::UInt>(fds_.size() - 1);
  }

  Json::Value session(const vhost::SessionState& from) {
    Json::Value json(Json::objectValue);
    json["socket"] = number(from.socket);
    json["features"] = from.features;
    json["protocol_features"] = from.protocol_features;
    json["rings_enabled"] = from.rings_enabled;
    json["writeback"] = from.writeback;
    json["backend_channel"] = number(from.backend_channel);
    json["memory"] = Json::Value(Json::arrayValue);
    for (const auto& [region, fd] : from.memory->parts()) {
      Json::Value entry(Json::objectValue);
      entry["guest_address"] = region.guest_address;
      entry["size"] = region.size;
      entry["user_address"] = region.user_address;
      entry["mmap_offset"] = region.mmap_offset;
      entry["fd"] = number(fd);
      json["memory"].append(std::move(entry));
    }
    json["status"] = from.status;
    if (from.inflight != nullptr) {
      Json::Value& inflight = json["inflight"];
      inflight["mmap_size"] = from.inflight->description().mmap_size;
      inflight["mmap_offset"] = from.inflight->description().mmap_offset;
      inflight["num_queues"] = from.inflight->description().num_queues;
      inflight["queue_size"] = from.inflight->description().queue_size;
      inflight["fd"] = number(from.inflight->file());
    }
    if (from.log != nullptr) {
      Json::Value& log = json["log"];
      log["size"] = from.log->description().size;
      log["mmap_offset"] = from.log->description().mmap_offset;
      log["fd"] = number(from.log->file());
    }
    json["rings"] = Json::Value(Json::arrayValue);
    for (const vhost::RingState& state : from.rings) json["rings"].append(ring(state));
    return json;
  }

  Json::Value ring(const vhost::RingState& from) {
    Json::Value json(Json::objectValue);
    json["index"] = from.index;
    json["size"] = from.size;
    if (from.addresses) {
      Json::Value& addresses = json["addresses"];
      addresses["flags"] = from.addresses->flags;
      addresses["descriptors"] = from.addresses->desc;
      addresses["used"] = from.addresses->used;
      addresses["available"] = from.addresses->avail;
      addresses["log"] = from.addresses->log;
    }
    if (from.base) json["base"] = *from.base;
    if (from.enabled) json["enabled"] = *from.enabled;
    json["started"] = from.started;
    json["fault"] = static_cast<uint32_t>(from.fault);
    json["kick"] = number(from.kick);
    json["call"] = number(from.call);
    json["error"] = number(from.error);
    return json;
  }

  std::vector<int> fds_;
};

// --- From JSON ---

// Notes the first thing that is missing or wrong, and goes on with nothing.
class Reader {
 public:
  explicit Reader(std::vector<UniqueFd> fds) : fds_(std::move(fds)) {}

  HandOver hand_over(const Json::Value& json) {
    HandOver to{.config = json["config"],
                .vhost_directory = text(json, "vhost_directory"),
                .rpc_path = text(json, "rpc_path"),
                .rpc_listener = fd(json, "rpc_listener"),
                .state_path = text(json, "state_path"),
                .state_directory = fd(json, "state_directory"),
                .controllers = {}};
    for (const Json::Value& entry : array(json, "controllers")) {
      vhost::ControllerState& controller = to.controllers.emplace_back();
      controller.name = text(entry, "name");
      controller.listener = fd(entry, "listener");
      if (entry.isMember("session")) controller.session = session(entry["session"]);
    }
    return to;
  }
  const std::string& complaint() const { return complaint_; }

 private:
  void complain(std::string what) {
    if (complaint_.empty()) complaint_ = std::move(what);
  }
  const Json::Value& array(const Json::Value& json, const char* name) {
    static const Json::Value kNothing(Json::arrayValue);
    if (json[name].isArray()) return json[name];
    complain(fmt::format("'{}' is missing", name));
    return kNothing;
  }
  std::string text(const Json::Value& json, const char* name) {
    if (json[name].isString()) return json[name].asString();
    complain(fmt::format("'{}' is missing", name));
    return "";
  }
  bool flag(const Json::Value& json, const char* name) {
    if (json[name].isBool()) return json[name].asBool();
    complain(fmt::format("'{}' is missing", name));
    return false;
  }
  template <typename T>
  T number(const Json::Value& json, const char* name) {
    if (json[name].isUInt64() && std::in_range<T>(json[name].asUInt64())) return static_cast<T>(json[name].asUInt64());
    complain(fmt::format("'{}' is missing or out of range", name));
    return 0;
  }
  UniqueFd fd(const Json::Value& json, const char* name) {
    if (json.isMember(name) && json[name].isNull()) return {};
    const auto place = number<size_t>(json, name);
    if (place < fds_.size() && fds_[place]) return std::move(fds_[place]);
    complain(fmt::format("the descriptor '{}' is missing", name));
    return {};
  }

  vhost::SessionState session(const Json::Value& json) {
    vhost::SessionState to{.socket = fd(json, "socket"),
                           .features = number<uint64_t>(json, "features"),
                           .protocol_features = number<uint64_t>(json, "protocol_features"),
                           .rings_enabled = flag(json, "rings_enabled"),
                           .writeback = flag(json, "writeback"),
                           .status = number<uint64_t>(json, "status"),
                           .backend_channel = fd(json, "backend_channel"),
                           .memory = {},
                           .inflight = {},
                           .log = {},
                           .rings = {}};
    vhost::MemoryMap map;
    for (const Json::Value& entry : array(json, "memory")) {
      const vhost::MemoryRegion region{.guest_address = number<uint64_t>(entry, "guest_address"),
                                       .size = number<uint64_t>(entry, "size"),
                                       .user_address = number<uint64_t>(entry, "user_address"),
                                       .mmap_offset = number<uint64_t>(entry, "mmap_offset")};
      // What kinds of files may be guest memory was the other one's decision.
      auto with = map.with(region, fd(entry, "fd"), {}, true);
      if (!with) {
        complain(fmt::format("{}: {}", with.error().what, ::strerrordesc_np(with.error().code)));
        break;
      }
      map = std::move(*with);
    }
    to.memory = std::make_shared<const vhost::MemoryMap>(std::move(map));
    if (json.isMember("inflight")) to.inflight = inflight(json["inflight"], to.features);
    if (json.isMember("log")) to.log = log(json["log"]);
    for (const Json::Value& entry : array(json, "rings")) to.rings.push_back(ring(entry));
    return to;
  }

  std::shared_ptr<const vhost::InflightRegion> inflight(const Json::Value& json, uint64_t features) {
    const vhost::InflightDescription description{.mmap_size = number<uint64_t>(json, "mmap_size"),
                                                 .mmap_offset = number<uint64_t>(json, "mmap_offset"),
                                                 .num_queues = number<uint16_t>(json, "num_queues"),
                                                 .queue_size = number<uint16_t>(json, "queue_size")};
    return mapped(vhost::InflightRegion::map(description, vhost::VirtQueue::wants_packed(features), fd(json, "fd")));
  }
  std::shared_ptr<vhost::DirtyLog> log(const Json::Value& json) {
    const vhost::LogDescription description{.size = number<uint64_t>(json, "size"),
                                            .mmap_offset = number<uint64_t>(json, "mmap_offset")};
    return mapped(vhost::DirtyLog::map(fd(json, "fd"), description));
  }
  template <typename T>
  T mapped(Result<T> result) {
    if (result) return std::move(*result);
    complain(fmt::format("{}: {}", result.error().what, ::strerrordesc_np(result.error().code)));
    return {};
  }

  vhost::RingState ring(const Json::Value& json) {
    vhost::RingState to{.index = number<uint32_t>(json, "index"),
                        .size = number<uint16_t>(json, "size"),
                        .addresses = {},
                        .base = {},
                        .enabled = {},
                        .started = flag(json, "started"),
                        .fault = static_cast<vhost::RingFault>(number<uint8_t>(json, "fault")),
                        .kick = fd(json, "kick"),
                        .call = fd(json, "call"),
                        .error = fd(json, "error")};
    if (to.fault > vhost::kLastRingFault) complain("'fault' is out of range");
    if (json.isMember("base")) to.base = number<uint32_t>(json, "base");
    if (json.isMember("enabled")) to.enabled = flag(json, "enabled");
    if (json.isMember("addresses")) {
      const Json::Value& addresses = json["addresses"];
      to.addresses = vhost::VringAddr{.index = to.index,
                                      .flags = number<uint32_t>(addresses, "flags"),
                                      .desc = number<uint64_t>(addresses, "descriptors"),
                                      .used = number<uint64_t>(addresses, "used"),
                                      .avail = number<uint64_t>(addresses, "available"),
                                      .log = number<uint64_t>(addresses, "log")};
    }
    return to;
  }

  std::vector<UniqueFd> fds_;
  std::string complaint_;
};

// --- The socket ---

// All of the bytes; descriptors go with the first one.
Result<> send_all(int socket, std::span<const std::byte> bytes, std::span<const int> fds = {}) {
  while (!bytes.empty()) {
    const ssize_t sent = send_with_fds(socket, bytes, fds);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return fail_errno("cannot send what is handed over");
    bytes = bytes.subspan(static_cast<size_t>(sent));
    fds = {};
  }
  return {};
}

Result<> receive_all(int socket, std::span<std::byte> bytes, std::vector<UniqueFd>* fds = nullptr) {
  while (!bytes.empty()) {
    bool cut_off = false;
    const ssize_t got = fds != nullptr ? receive_with_fds(socket, bytes, *fds, kFdsAtOnce, cut_off)
                                       : ::recv(socket, bytes.data(), bytes.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return fail(ETIMEDOUT, "the other daemon is silent");
    if (got < 0) return fail_errno("cannot receive what is handed over");
    if (got == 0) return fail(ECONNRESET, "the other daemon has gone");
    if (cut_off) return fail(EMFILE, "too few descriptors are free (ulimit -n)");
    bytes = bytes.subspan(static_cast<size_t>(got));
  }
  return {};
}

std::string text_of(const Error& error) { return fmt::format("{}: {}", error.what, ::strerrordesc_np(error.code)); }

}  // namespace

Result<> send_hand_over(int socket, const HandOver& hand_over) {
  Writer writer;
  const std::string text = write_json(writer.hand_over(hand_over));
  std::span<const int> fds = writer.fds();
  const Preamble preamble{.descriptors = static_cast<uint32_t>(fds.size()), .text_bytes = text.size()};
  if (auto sent = send_all(socket, std::as_bytes(std::span(&preamble, 1))); !sent) return sent;
  while (!fds.empty()) {
    const std::byte one{};
    const size_t count = std::min(fds.size(), kFdsAtOnce);
    if (auto sent = send_all(socket, std::span(&one, 1), fds.first(count)); !sent) return sent;
    fds = fds.subspan(count);
  }
  return send_all(socket, std::as_bytes(std::span(text)));
}

std::expected<HandOver, std::string> receive_hand_over(int socket) {
  Preamble preamble;
  if (auto got = receive_all(socket, std::as_writable_bytes(std::span(&preamble, 1))); !got)
    return std::unexpected(text_of(got.error()));
  if (preamble.format != kFormat || preamble.descriptors > kMaxDescriptors || preamble.text_bytes > kMaxText)
    return std::unexpected("the other daemon hands over in a form that this one does not know");
  std::vector<UniqueFd> fds;
  while (fds.size() < preamble.descriptors) {
    std::byte one{};
    const size_t before = fds.size();
    if (auto got = receive_all(socket, std::span(&one, 1), &fds); !got) return std::unexpected(text_of(got.error()));
    if (fds.size() == before) return std::unexpected("descriptors are missing");
  }
  std::string text(preamble.text_bytes, '\0');
  if (auto got = receive_all(socket, std::as_writable_bytes(std::span(text))); !got)
    return std::unexpected(text_of(got.error()));
  const auto json = parse_json(text);
  if (!json || !json->isObject()) return std::unexpected("what was handed over is not JSON");
  Reader reader(std::move(fds));
  HandOver hand_over = reader.hand_over(*json);
  if (!reader.complaint().empty()) return std::unexpected("what was handed over: " + reader.complaint());
  return hand_over;
}

}  // namespace sluice::rpc
