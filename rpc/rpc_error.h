// RpcError: why a call failed, as the client is told.
#pragma once

#include <expected>
#include <string>
#include <string_view>

#include "lib/base/result.h"

namespace sluice::rpc {

// The codes of JSON-RPC 2.0, section 5.1. Every other code is a negated errno.
inline constexpr int kParseError = -32700;
inline constexpr int kInvalidRequest = -32600;
inline constexpr int kMethodNotFound = -32601;
inline constexpr int kInvalidParams = -32602;
inline constexpr int kInternalError = -32603;

struct RpcError {
  int code = 0;
  std::string message;
};

// `code` is a positive errno. The message is `what`, then the plain text of the errno, which clients look for:
// "bdev 'x' does not exist: No such device".
RpcError errno_error(int code, std::string_view what);
inline std::unexpected<RpcError> fail_rpc(int code, std::string_view what) {
  return std::unexpected(errno_error(code, what));
}

// An Error of a library, with the object it is about, which the Error itself cannot name:
// "'/x': cannot open the file: No such file or directory".
RpcError to_rpc_error(const Error& error, std::string_view subject);
inline std::unexpected<RpcError> fail_rpc(const Error& error, std::string_view subject) {
  return std::unexpected(to_rpc_error(error, subject));
}

}  // namespace sluice::rpc
