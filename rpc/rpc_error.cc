#include "rpc/rpc_error.h"

#include <fmt/format.h>

#include <cstring>

namespace sluice::rpc {
namespace {

std::string_view errno_text(int code) {
  const char* text = ::strerrordesc_np(code);
  return text == nullptr ? "Unknown error" : text;
}

}  // namespace

RpcError errno_error(int code, std::string_view what) {
  return {.code = -code, .message = fmt::format("{}: {}", what, errno_text(code))};
}

RpcError to_rpc_error(const Error& error, std::string_view subject) {
  return errno_error(error.code, fmt::format("{}: {}", subject, error.what));
}

}  // namespace sluice::rpc
