#include "rpc/dispatcher.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "lib/base/log.h"
#include "rpc/json.h"
#include "rpc/limits.h"
#include "rpc/state_keeper.h"

namespace sluice::rpc {
namespace {

Json::Value make_reply(const Json::Value& id) {
  Json::Value reply(Json::objectValue);
  reply["jsonrpc"] = "2.0";
  reply["id"] = id;
  return reply;
}

Json::Value make_error(const Json::Value& id, const RpcError& error) {
  Json::Value reply = make_reply(id);
  reply["error"]["code"] = error.code;
  reply["error"]["message"] = error.message;
  return reply;
}

Json::Value not_kept(const Json::Value& id, const std::string& method, const RpcError& error) {
  return make_error(id, {error.code, fmt::format("{}: {}", method, error.message)});
}

Json::Value invalid_request(const Json::Value& id, std::string_view why) {
  return make_error(id, {kInvalidRequest, fmt::format("Invalid request: {}", why)});
}

std::string to_line(const Json::Value& reply) { return write_json(reply) + "\n"; }

}  // namespace

std::string Dispatcher::error_reply(int code, std::string_view message) {
  return to_line(make_error(Json::Value(), {code, std::string(message)}));
}

Task<std::string> Dispatcher::handle(std::string text) {
  const std::expected<Json::Value, std::string> json = parse_json(text);
  if (!json) co_return error_reply(kParseError, fmt::format("Parse error: {}", json.error()));
  if (json->isArray()) co_return co_await handle_batch(*json);
  Answer answer = co_await handle_request(*json);
  if (!answer.changed_by.empty()) {
    if (const auto error = co_await settle()) answer.reply = not_kept(answer.reply["id"], answer.changed_by, *error);
  }
  co_return to_line(answer.reply);
}

Task<std::string> Dispatcher::handle_batch(const Json::Value& batch) {
  if (batch.empty() || batch.size() > kMaxBatchRequests) {
    co_return to_line(invalid_request(
        Json::Value(), fmt::format("a batch has 1 to {} requests, not {}", kMaxBatchRequests, batch.size())));
  }
  struct Changed {
    size_t place;
    Json::Value id;
    std::string method;
  };
  std::vector<std::string> replies;
  std::vector<Changed> changed;
  size_t bytes = 0;
  for (const Json::Value& request : batch) {
    if (bytes < kMaxBatchReplyBytes) {
      Answer answer = co_await handle_request(request);
      if (!answer.changed_by.empty()) {
        changed.push_back({replies.size(), answer.reply["id"], std::move(answer.changed_by)});
      }
      replies.push_back(write_json(answer.reply));
    } else {
      const Json::Value id = request.isObject() ? request.get("id", Json::Value()) : Json::Value();
      replies.push_back(write_json(make_error(
          id, {kInternalError, "not executed: the replies of this batch have grown too long; make smaller batches"})));
    }
    bytes += replies.back().size() + 1;
  }
  // Once for all of them.
  if (!changed.empty()) {
    if (const auto error = co_await settle()) {
      for (const Changed& call : changed) replies[call.place] = write_json(not_kept(call.id, call.method, *error));
    }
  }
  co_return fmt::format("[{}]\n", fmt::join(replies, ","));
}

Task<Dispatcher::Answer> Dispatcher::handle_request(const Json::Value& request) {
  if (!request.isObject()) co_return Answer{invalid_request(Json::Value(), "it must be an object"), ""};
  const Json::Value id = request.get("id", Json::Value());
  if (!id.isNull() && !id.isString() && !id.isNumeric()) {
    co_return Answer{invalid_request(Json::Value(), "id must be a string, a number or null"), ""};
  }
  const Json::Value version = request.get("jsonrpc", "2.0");
  if (!version.isString() || version.asString() != "2.0") {
    co_return Answer{invalid_request(id, "jsonrpc must be \"2.0\""), ""};
  }
  const Json::Value& method = request["method"];
  if (!method.isString()) co_return Answer{invalid_request(id, "method must be a string"), ""};

  const std::string name = method.asString();
  RpcResult result = co_await call(name, request["params"]);
  if (!result) co_return Answer{make_error(id, result.error()), ""};
  Json::Value reply = make_reply(id);
  reply["result"] = std::move(*result);
  co_return Answer{std::move(reply), is_kept(*methods_.find(name)) ? name : ""};
}

bool Dispatcher::is_kept(const Method& method) const {
  return keeper_ != nullptr && method.info.effect.keeping() == Effect::Keeping::kState;
}

Task<std::optional<RpcError>> Dispatcher::settle() {
  const auto settled = co_await keeper_->settle();
  co_return settled ? std::nullopt : std::optional(settled.error());
}

Task<RpcResult> Dispatcher::call(std::string name, const Json::Value& params) {
  const Method* method = methods_.find(name);
  if (method == nullptr) {
    co_return std::unexpected(
        RpcError{kMethodNotFound, fmt::format("Method not found: '{}'; rpc_get_methods lists what there is", name)});
  }
  RpcResult result = is_kept(*method) ? co_await keeper_->run(*method, params) : co_await method->call(params);
  if (!result) {
    result.error().message = fmt::format("{}: {}", name, result.error().message);
    log(LogLevel::kInfo, LogFlag::kRpc, "{} ({})", result.error().message, result.error().code);
  } else {
    log(LogLevel::kDebug, LogFlag::kRpc, "{} succeeded", name);
  }
  co_return result;
}

}  // namespace sluice::rpc
