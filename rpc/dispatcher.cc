#include "rpc/dispatcher.h"

#include <fmt/format.h>

#include "lib/base/log.h"
#include "rpc/json.h"
#include "rpc/limits.h"

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
  co_return to_line(co_await handle_request(*json));
}

Task<std::string> Dispatcher::handle_batch(const Json::Value& batch) {
  if (batch.empty() || batch.size() > kMaxBatchRequests) {
    co_return to_line(invalid_request(
        Json::Value(), fmt::format("a batch has 1 to {} requests, not {}", kMaxBatchRequests, batch.size())));
  }
  std::string replies;
  for (const Json::Value& request : batch) {
    replies += replies.empty() ? '[' : ',';
    if (replies.size() < kMaxBatchReplyBytes) {
      replies += write_json(co_await handle_request(request));
    } else {
      const Json::Value id = request.isObject() ? request.get("id", Json::Value()) : Json::Value();
      replies += write_json(make_error(
          id, {kInternalError, "not executed: the replies of this batch have grown too long; make smaller batches"}));
    }
  }
  co_return replies + "]\n";
}

Task<Json::Value> Dispatcher::handle_request(const Json::Value& request) {
  if (!request.isObject()) co_return invalid_request(Json::Value(), "it must be an object");
  const Json::Value id = request.get("id", Json::Value());
  if (!id.isNull() && !id.isString() && !id.isNumeric()) {
    co_return invalid_request(Json::Value(), "id must be a string, a number or null");
  }
  const Json::Value version = request.get("jsonrpc", "2.0");
  if (!version.isString() || version.asString() != "2.0") co_return invalid_request(id, "jsonrpc must be \"2.0\"");
  const Json::Value& method = request["method"];
  if (!method.isString()) co_return invalid_request(id, "method must be a string");

  RpcResult result = co_await call(method.asString(), request["params"]);
  if (!result) co_return make_error(id, result.error());
  Json::Value reply = make_reply(id);
  reply["result"] = std::move(*result);
  co_return reply;
}

Task<RpcResult> Dispatcher::call(std::string name, const Json::Value& params) {
  const Method* method = methods_.find(name);
  if (method == nullptr) {
    co_return std::unexpected(
        RpcError{kMethodNotFound, fmt::format("Method not found: '{}'; rpc_get_methods lists what there is", name)});
  }
  RpcResult result = co_await method->call(params);
  if (!result) {
    result.error().message = fmt::format("{}: {}", name, result.error().message);
    log(LogLevel::kInfo, LogFlag::kRpc, "{} ({})", result.error().message, result.error().code);
  } else {
    log(LogLevel::kDebug, LogFlag::kRpc, "{} succeeded", name);
  }
  co_return result;
}

}  // namespace sluice::rpc
