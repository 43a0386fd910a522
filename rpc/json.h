// JSON text to values and back: jsoncpp, with its exceptions kept inside.
#pragma once

#include <json/value.h>

#include <expected>
#include <string>
#include <string_view>

namespace sluice::rpc {

// One strict JSON value, and nothing behind it but white space. The error says where and what, on one line.
// Refuses duplicate keys, and nesting deeper than kMaxNesting.
std::expected<Json::Value, std::string> parse_json(std::string_view text);

// On one line, ASCII only: whatever bytes a client put into a name, the text is valid JSON.
std::string write_json(const Json::Value& value);

}  // namespace sluice::rpc
