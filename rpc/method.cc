#include "rpc/method.h"

#include <fmt/format.h>

#include "lib/base/check.h"
#include "rpc/json.h"

namespace sluice::rpc {
namespace {

constexpr size_t kShownValueBytes = 64;

std::unexpected<RpcError> invalid(std::string text) {
  return std::unexpected(RpcError{kInvalidParams, "Invalid parameters: " + std::move(text)});
}

std::string names_of(const std::vector<ParamInfo>& params) {
  if (params.empty()) return "the method takes none";
  std::string text = "the method takes ";
  for (const ParamInfo& param : params) {
    if (&param != &params.front()) text += ", ";
    text += param.name;
  }
  return text;
}

bool is_known(std::string_view name, const std::vector<ParamInfo>& params) {
  for (const ParamInfo& param : params) {
    if (param.name == name || (!param.alias.empty() && param.alias == name)) return true;
  }
  return false;
}

const Json::Value* find_member(const Json::Value& object, std::string_view name) {
  if (name.empty() || !object.isObject()) return nullptr;
  const Json::Value* value = object.find(name.data(), name.data() + name.size());
  return value == nullptr || value->isNull() ? nullptr : value;
}

}  // namespace

namespace detail {

std::expected<std::vector<const Json::Value*>, RpcError> match_params(const Json::Value& json,
                                                                      const std::vector<ParamInfo>& params) {
  // Some clients write "no parameters" as an empty list.
  const bool none = json.isNull() || (json.isArray() && json.empty());
  if (!none && !json.isObject()) return invalid("params must be an object with named members");
  if (!none) {
    for (const std::string& name : json.getMemberNames()) {
      if (!is_known(name, params)) return invalid(fmt::format("unknown parameter '{}': {}", name, names_of(params)));
    }
  }
  std::vector<const Json::Value*> values;
  for (const ParamInfo& param : params) {
    const Json::Value* value = find_member(json, param.name);
    const Json::Value* old = find_member(json, param.alias);
    if (value != nullptr && old != nullptr) {
      return invalid(fmt::format("'{}' and its older name '{}' are both given", param.name, param.alias));
    }
    if (value == nullptr) value = old;
    if (value == nullptr && param.required) {
      return invalid(fmt::format("'{}' ({}) is missing: {}", param.name, type_name(param), param.help));
    }
    values.push_back(value);
  }
  return values;
}

RpcError bad_value(const ParamInfo& param, const Json::Value& json, std::string_view expected) {
  std::string shown = write_json(json);
  if (shown.size() > kShownValueBytes) shown = shown.substr(0, kShownValueBytes) + "...";
  return invalid(fmt::format("'{}' must be {}, not {}", param.name, expected, shown)).error();
}

Task<RpcResult> finished(RpcResult result) { co_return result; }

}  // namespace detail

void MethodTable::add(Method method) {
  const std::string_view name = method.info.name;
  CHECK(find(name) == nullptr);
  for (const Change& change : method.info.effect.changes()) {
    CHECK(change.param.empty() || is_known(change.param, method.params));
  }
  for (const std::string_view alias : method.info.aliases) {
    CHECK(find(alias) == nullptr);
    aliases_[alias] = name;
  }
  methods_.emplace(name, std::move(method));
}

const Method* MethodTable::find(std::string_view name) const {
  if (const auto alias = aliases_.find(name); alias != aliases_.end()) name = alias->second;
  const auto found = methods_.find(name);
  return found == methods_.end() ? nullptr : &found->second;
}

}  // namespace sluice::rpc
