// Dispatcher: JSON-RPC 2.0 without the transport: a request or batch in, the reply out.
//
// It forgives what real clients do: `jsonrpc` and `id` may be missing, `params` may be null. A request without an id
// gets a reply with the id null, where the specification has none: such clients wait for one.
// Thread: the application's lightweight thread.
// Source: the JSON-RPC 2.0 specification.
#pragma once

#include <json/value.h>

#include <string>

#include "lib/thread/task.h"
#include "rpc/method.h"

namespace sluice::rpc {

class Dispatcher {
 public:
  explicit Dispatcher(const MethodTable& methods) : methods_(methods) {}

  // Answers one JSON text; the reply is one line. The requests of a batch run one after the other.
  Task<std::string> handle(std::string text);

  // Runs one method; its errors begin with its name.
  Task<RpcResult> call(std::string name, const Json::Value& params);

  // The reply to what is no request at all.
  static std::string error_reply(int code, std::string_view message);

 private:
  Task<Json::Value> handle_request(const Json::Value& request);
  Task<std::string> handle_batch(const Json::Value& batch);

  const MethodTable& methods_;
};

}  // namespace sluice::rpc
