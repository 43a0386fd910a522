// What the files of methods about logical volumes share.
#pragma once

#include <fmt/format.h>

#include <cerrno>
#include <expected>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rpc/method.h"

namespace sluice::rpc {

struct WhichVolume {
  std::string name;
};

inline std::string volume_subject(std::string_view name) { return fmt::format("logical volume '{}'", name); }

// A store: by name or by uuid.
struct WhichStore {
  std::optional<std::string> uuid;
  std::optional<std::string> lvs_name;
};

inline std::string store_subject(std::string_view name) { return fmt::format("logical volume store '{}'", name); }

// The one of the two that is given.
inline std::expected<std::string, RpcError> chosen(const std::optional<std::string>& name,
                                                   const std::optional<std::string>& uuid) {
  if (name.has_value() == uuid.has_value()) {
    return fail_rpc(EINVAL, "a store is needed, by its name or by its uuid: give one of the two");
  }
  return name ? *name : *uuid;
}
inline std::expected<std::string, RpcError> chosen(const WhichStore& which) {
  return chosen(which.lvs_name, which.uuid);
}

// True, or what has failed on `subject`.
inline RpcResult lvol_answer(const Result<>& result, std::string_view subject) {
  if (!result) return fail_rpc(result.error(), subject);
  return true;
}

inline constexpr const char* kWhichVolume = "the volume: store/volume, or its uuid";

template <typename P>
void add_store_fields(std::vector<Field<P>>& fields) {
  fields.push_back(
      optional("lvs_name", static_cast<std::optional<std::string> P::*>(&WhichStore::lvs_name), "the store, by name"));
  fields.push_back(
      optional("uuid", static_cast<std::optional<std::string> P::*>(&WhichStore::uuid), "or the store, by uuid"));
}

template <typename P>
std::vector<Field<P>> store_fields(std::vector<Field<P>> fields = {}) {
  add_store_fields(fields);
  return fields;
}

}  // namespace sluice::rpc
