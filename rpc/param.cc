#include "rpc/param.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <limits>

namespace sluice::rpc {
namespace {

template <typename T>
std::string integer_range() {
  return fmt::format("an integer from {} to {}", std::numeric_limits<T>::min(), std::numeric_limits<T>::max());
}

}  // namespace

Decoded decode_value(const Json::Value& json, std::string& out) {
  if (!json.isString()) return std::unexpected("a string");
  out = json.asString();
  // What is given to the operating system as a path ends at its first NUL: two names would be one file.
  if (out.find('\0') != std::string::npos) return std::unexpected("a string without NUL characters");
  return {};
}

Decoded decode_value(const Json::Value& json, bool& out) {
  if (!json.isBool()) return std::unexpected("true or false");
  out = json.asBool();
  return {};
}

Decoded decode_value(const Json::Value& json, int32_t& out) {
  if (!json.isInt()) return std::unexpected(integer_range<int32_t>());
  out = json.asInt();
  return {};
}

Decoded decode_value(const Json::Value& json, uint32_t& out) {
  if (!json.isUInt()) return std::unexpected(integer_range<uint32_t>());
  out = json.asUInt();
  return {};
}

Decoded decode_value(const Json::Value& json, uint64_t& out) {
  if (!json.isUInt64()) return std::unexpected(integer_range<uint64_t>());
  out = json.asUInt64();
  return {};
}

Decoded decode_value(const Json::Value& json, Uuid& out) {
  const auto uuid = json.isString() ? Uuid::parse(json.asString()) : std::nullopt;
  if (!uuid) return std::unexpected("a UUID, such as 2b6601ba-eada-44fb-9a83-a20eb9eb9e90");
  out = *uuid;
  return {};
}

Decoded decode_value(const Json::Value& json, std::vector<std::string>& out) {
  out.clear();
  if (json.isString()) return decode_value(json, out.emplace_back());
  if (!json.isArray()) return std::unexpected("an array of strings");
  for (const Json::Value& element : json) {
    if (!decode_value(element, out.emplace_back())) return std::unexpected("an array of strings");
  }
  return {};
}

Decoded decode_value(const Json::Value& json, std::vector<uint32_t>& out) {
  out.clear();
  const auto wanted = [] { return std::unexpected("an array, each element " + integer_range<uint32_t>()); };
  if (!json.isArray()) return wanted();
  for (const Json::Value& element : json) {
    if (!decode_value(element, out.emplace_back())) return wanted();
  }
  return {};
}

std::expected<size_t, std::string> decode_enum(const Json::Value& json, std::span<const std::string_view> names) {
  if (json.isString()) {
    const std::string text = json.asString();
    for (size_t i = 0; i < names.size(); ++i) {
      if (names[i] == text) return i;
    }
  }
  return std::unexpected(fmt::format("one of \"{}\"", fmt::join(names, "\", \"")));
}

std::string type_name(const ParamInfo& info) {
  switch (info.type) {
    case ParamType::kString:
      return "string";
    case ParamType::kBool:
      return "bool";
    case ParamType::kI32:
      return "i32";
    case ParamType::kU32:
      return "u32";
    case ParamType::kU64:
      return "u64";
    case ParamType::kUuid:
      return "uuid";
    case ParamType::kEnum:
      return fmt::format("one of {}", fmt::join(info.allowed, ", "));
    case ParamType::kStrings:
      return "array of strings";
    case ParamType::kU32s:
      return "array of u32";
  }
  return "";
}

}  // namespace sluice::rpc
