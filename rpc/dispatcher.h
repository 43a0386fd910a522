// Dispatcher: JSON-RPC 2.0 without the transport: a request or batch in, the reply out.
//
// It forgives what real clients do: `jsonrpc` and `id` may be missing, `params` may be null. A request without an id
// gets a reply with the id null, where the specification has none: such clients wait for one.
// Thread: the application's lightweight thread.
// Source: the JSON-RPC 2.0 specification.
#pragma once

#include <json/value.h>

#include <optional>
#include <string>

#include "lib/thread/task.h"
#include "rpc/method.h"

namespace sluice::rpc {

class StateKeeper;

class Dispatcher {
 public:
  // With a keeper, what calls have changed is kept before they are answered with success.
  explicit Dispatcher(const MethodTable& methods, StateKeeper* keeper = nullptr) : methods_(methods), keeper_(keeper) {}

  // Answers one JSON text; the reply is one line. The requests of a batch run one after the other.
  Task<std::string> handle(std::string text);

  // Runs one method; its errors begin with its name. What it has changed may not be kept yet.
  Task<RpcResult> call(std::string name, const Json::Value& params);

  // The reply to what is no request at all.
  static std::string error_reply(int code, std::string_view message);

 private:
  struct Answer {
    Json::Value reply;
    std::string changed_by;  // the method, if it has succeeded and its changes are to be kept; else empty
  };

  Task<Answer> handle_request(const Json::Value& request);
  Task<std::string> handle_batch(const Json::Value& batch);
  // Why what has been changed so far is not kept; nothing when it is.
  Task<std::optional<RpcError>> settle();
  bool is_kept(const Method& method) const;

  const MethodTable& methods_;
  StateKeeper* const keeper_;
};

}  // namespace sluice::rpc
