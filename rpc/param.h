// Parameters of methods: what each is called, its type, and how it is read from JSON into a member of a struct.
// All that is ever said about a parameter, to a decoder or to a reader, is made from its ParamInfo.
#pragma once

#include <json/value.h>

#include <cstdint>
#include <expected>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "lib/base/uuid.h"

namespace sluice::rpc {

enum class ParamType : uint8_t { kString, kBool, kI32, kU32, kU64, kUuid, kEnum, kStrings, kU32s };

struct ParamInfo {
  std::string_view name;
  ParamType type = ParamType::kString;
  bool required = false;
  std::string_view help;
  std::span<const std::string_view> allowed{};  // kEnum: the names, in the order of the enumerators
  std::string_view alias{};                     // an older name that clients still send; empty: none
  Json::Value default_value{};                  // null: none
};

// The names of an enum's values in JSON, in the order of its enumerators, which count from 0.
// To be specialised for each enum that is a parameter's type.
template <typename E>
struct EnumNames;

// Success, or what was expected instead of the value: "a string".
using Decoded = std::expected<void, std::string>;

Decoded decode_value(const Json::Value& json, std::string& out);
Decoded decode_value(const Json::Value& json, bool& out);
Decoded decode_value(const Json::Value& json, int32_t& out);
Decoded decode_value(const Json::Value& json, uint32_t& out);
Decoded decode_value(const Json::Value& json, uint64_t& out);
Decoded decode_value(const Json::Value& json, Uuid& out);
// A single string counts as an array of one.
Decoded decode_value(const Json::Value& json, std::vector<std::string>& out);
Decoded decode_value(const Json::Value& json, std::vector<uint32_t>& out);
// The place of the value among the names.
std::expected<size_t, std::string> decode_enum(const Json::Value& json, std::span<const std::string_view> names);

template <typename E>
  requires std::is_enum_v<E>
Decoded decode_value(const Json::Value& json, E& out) {
  const auto index = decode_enum(json, EnumNames<E>::kNames);
  if (!index) return std::unexpected(index.error());
  out = static_cast<E>(*index);
  return {};
}

template <typename T>
Decoded decode_value(const Json::Value& json, std::optional<T>& out) {
  return decode_value(json, out.emplace());
}

namespace detail {

template <typename T>
struct Unwrapped {
  using type = T;
};
template <typename T>
struct Unwrapped<std::optional<T>> {
  using type = T;
};

template <typename T>
constexpr ParamType param_type() {
  if constexpr (std::is_same_v<T, std::string>) return ParamType::kString;
  if constexpr (std::is_same_v<T, bool>) return ParamType::kBool;
  if constexpr (std::is_same_v<T, int32_t>) return ParamType::kI32;
  if constexpr (std::is_same_v<T, uint32_t>) return ParamType::kU32;
  if constexpr (std::is_same_v<T, uint64_t>) return ParamType::kU64;
  if constexpr (std::is_same_v<T, Uuid>) return ParamType::kUuid;
  if constexpr (std::is_same_v<T, std::vector<std::string>>) return ParamType::kStrings;
  if constexpr (std::is_same_v<T, std::vector<uint32_t>>) return ParamType::kU32s;
  if constexpr (std::is_enum_v<T>) return ParamType::kEnum;
}

template <typename T>
Json::Value default_json(const T& value) {
  if constexpr (std::is_enum_v<T>) {
    return Json::Value(std::string(EnumNames<T>::kNames[static_cast<size_t>(value)]));
  } else if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) {
    return Json::Value(value);
  } else {
    return Json::Value();  // std::optional, a list, a uuid: without one, none
  }
}

}  // namespace detail

// A parameter and the member of P that it sets.
template <typename P>
struct Field {
  ParamInfo info;
  std::function<Decoded(const Json::Value&, P&)> set;

  Field alias(std::string_view name) && {
    info.alias = name;
    return std::move(*this);
  }
};

template <typename P, typename T>
Field<P> field(std::string_view name, T P::* member, std::string_view help) {
  using Value = typename detail::Unwrapped<T>::type;
  ParamInfo info{.name = name, .type = detail::param_type<Value>(), .help = help};
  if constexpr (std::is_enum_v<Value>) info.allowed = EnumNames<Value>::kNames;
  return {std::move(info), [member](const Json::Value& json, P& params) { return decode_value(json, params.*member); }};
}

// A parameter that must be given.
template <typename P, typename T>
Field<P> required(std::string_view name, T P::* member, std::string_view help) {
  Field<P> made = field(name, member, help);
  made.info.required = true;
  return made;
}

// One that may be left out, or be null: the member keeps what a new P has there, which is its default.
template <typename P, typename T>
Field<P> optional(std::string_view name, T P::* member, std::string_view help) {
  Field<P> made = field(name, member, help);
  made.info.default_value = detail::default_json(P{}.*member);
  return made;
}

// "string", "u32", "one of a, b": for messages and documents.
std::string type_name(const ParamInfo& info);

}  // namespace sluice::rpc
