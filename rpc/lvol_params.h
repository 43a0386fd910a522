// What the two files of methods about logical volumes share.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

#include "rpc/method.h"

namespace sluice::rpc {

struct WhichVolume {
  std::string name;
};

inline std::string volume_subject(std::string_view name) { return fmt::format("logical volume '{}'", name); }

// True, or what has failed on `subject`.
inline RpcResult lvol_answer(const Result<>& result, std::string_view subject) {
  if (!result) return fail_rpc(result.error(), subject);
  return true;
}

}  // namespace sluice::rpc
