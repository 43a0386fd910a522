// Method: the one description of a method, from which come its decoding, its documentation and its command line.
//
//   struct DeleteNull { std::string name; bool force = false; };
//   table.add(make_method<DeleteNull>(
//       {.name = "bdev_null_delete", .help = "Removes a null device.", .result = kTrue,
//        .effect = removes(StateKind::kBdev, "name")},
//       {required("name", &DeleteNull::name, "its name"), optional("force", &DeleteNull::force, "even if in use")},
//       [&](DeleteNull params) { return delete_null(context, std::move(params)); }));
//
// Thread: the application's lightweight thread.
#pragma once

#include <json/value.h>

#include <functional>
#include <map>
#include <string_view>
#include <vector>

#include "lib/thread/task.h"
#include "rpc/effect.h"
#include "rpc/param.h"
#include "rpc/rpc_error.h"

namespace sluice::rpc {

using RpcResult = std::expected<Json::Value, RpcError>;

// What a method returns: its JSON type ("boolean", "string", "array", "object") and its content in words.
struct ResultInfo {
  std::string_view type;
  std::string_view help;
};
inline constexpr ResultInfo kTrue{"boolean", "true"};

struct MethodInfo {
  std::string_view name;
  std::string_view help;  // one sentence
  ResultInfo result;
  Effect effect;
  std::vector<std::string_view> aliases{};
};

struct Method {
  MethodInfo info;
  std::vector<ParamInfo> params;
  // Decodes and runs. `params` is a JSON object or null, and needs to live only until call() returns.
  std::function<Task<RpcResult>(const Json::Value& params)> call;
};

// The parameters of a method that has none.
struct NoParams {};

namespace detail {

// The value of each parameter, in their order; nullptr for one that is left out.
std::expected<std::vector<const Json::Value*>, RpcError> match_params(const Json::Value& json,
                                                                      const std::vector<ParamInfo>& params);
RpcError bad_value(const ParamInfo& param, const Json::Value& json, std::string_view expected);
// A task that has its result already.
Task<RpcResult> finished(RpcResult result);

template <typename P>
std::expected<P, RpcError> decode_params(const Json::Value& json, const std::vector<Field<P>>& fields,
                                         const std::vector<ParamInfo>& infos) {
  const auto values = match_params(json, infos);
  if (!values) return std::unexpected(values.error());
  P params{};
  for (size_t i = 0; i < fields.size(); ++i) {
    const Json::Value* value = (*values)[i];
    if (value == nullptr) continue;
    if (const Decoded decoded = fields[i].set(*value, params); !decoded) {
      return std::unexpected(bad_value(infos[i], *value, decoded.error()));
    }
  }
  return params;
}

}  // namespace detail

// `handler` is called as handler(P) and returns a Task<RpcResult>.
template <typename P, typename Handler>
Method make_method(MethodInfo info, std::vector<Field<P>> fields, Handler handler) {
  std::vector<ParamInfo> params;
  for (const Field<P>& field : fields) params.push_back(field.info);
  auto call = [fields = std::move(fields), params, handler = std::move(handler)](const Json::Value& json) {
    std::expected<P, RpcError> decoded = detail::decode_params(json, fields, params);
    if (!decoded) return detail::finished(std::unexpected(std::move(decoded.error())));
    return handler(std::move(*decoded));
  };
  return {std::move(info), std::move(params), std::move(call)};
}

// All methods that a daemon offers. main() fills it and hands it down.
class MethodTable {
 public:
  // Requires: neither the name nor an alias is taken; what it changes is named by a parameter that it has (checked).
  void add(Method method);
  // By name or alias; nullptr if there is none. Stable until the table's end.
  const Method* find(std::string_view name) const;
  // By name, without aliases.
  const std::map<std::string_view, Method>& all() const { return methods_; }

 private:
  std::map<std::string_view, Method> methods_;
  std::map<std::string_view, std::string_view> aliases_;
};

}  // namespace sluice::rpc
