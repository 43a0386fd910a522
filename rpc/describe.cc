#include "rpc/describe.h"

#include <limits>

#include "rpc/version.h"

namespace sluice::rpc {
namespace {

constexpr std::string_view kKeepingNames[] = {"", "store", "no", "state"};

template <typename T>
void set_integer(Json::Value& schema) {
  schema["type"] = "integer";
  schema["minimum"] = std::numeric_limits<T>::min();
  schema["maximum"] = std::numeric_limits<T>::max();
}

Json::Value schema_of(const ParamInfo& param) {
  Json::Value schema(Json::objectValue);
  switch (param.type) {
    case ParamType::kString:
      schema["type"] = "string";
      break;
    case ParamType::kBool:
      schema["type"] = "boolean";
      break;
    case ParamType::kI32:
      set_integer<int32_t>(schema);
      break;
    case ParamType::kU32:
      set_integer<uint32_t>(schema);
      break;
    case ParamType::kU64:
      set_integer<uint64_t>(schema);
      break;
    case ParamType::kUuid:
      schema["type"] = "string";
      schema["format"] = "uuid";
      break;
    case ParamType::kEnum:
      schema["type"] = "string";
      for (const std::string_view name : param.allowed) schema["enum"].append(std::string(name));
      break;
    case ParamType::kStrings:
      schema["type"] = "array";
      schema["items"]["type"] = "string";
      break;
    case ParamType::kU32s:
      schema["type"] = "array";
      set_integer<uint32_t>(schema["items"]);
      break;
  }
  if (!param.default_value.isNull()) schema["default"] = param.default_value;
  return schema;
}

Json::Value describe_param(const ParamInfo& param) {
  Json::Value json(Json::objectValue);
  json["name"] = std::string(param.name);
  json["description"] = std::string(param.help);
  json["required"] = param.required;
  json["schema"] = schema_of(param);
  json["x-type"] = param.type == ParamType::kEnum ? "enum" : type_name(param);
  if (!param.alias.empty()) json["x-alias"] = std::string(param.alias);
  return json;
}

Json::Value describe_method(const Method& method) {
  Json::Value json(Json::objectValue);
  json["name"] = std::string(method.info.name);
  json["summary"] = std::string(method.info.help);
  json["paramStructure"] = "by-name";
  json["params"] = Json::Value(Json::arrayValue);
  for (const ParamInfo& param : method.params) json["params"].append(describe_param(param));
  json["result"]["name"] = "result";
  json["result"]["description"] = std::string(method.info.result.help);
  json["result"]["schema"]["type"] = std::string(method.info.result.type);
  json["x-kept"] = std::string(kKeepingNames[static_cast<size_t>(method.info.effect.keeping())]);
  for (const std::string_view alias : method.info.aliases) json["x-aliases"].append(std::string(alias));
  return json;
}

}  // namespace

Json::Value describe(const MethodTable& methods) {
  Json::Value json(Json::objectValue);
  json["openrpc"] = "1.2.6";
  json["info"]["title"] = "Sluice";
  json["info"]["version"] = kVersion;
  json["methods"] = Json::Value(Json::arrayValue);
  for (const auto& [name, method] : methods.all()) json["methods"].append(describe_method(method));
  return json;
}

}  // namespace sluice::rpc
