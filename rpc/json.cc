#include "rpc/json.h"

#include <json/reader.h>
#include <json/writer.h>

#include <algorithm>
#include <memory>

#include "rpc/limits.h"

namespace sluice::rpc {
namespace {

Json::CharReaderBuilder strict_reader() {
  Json::CharReaderBuilder builder;
  Json::CharReaderBuilder::strictMode(&builder.settings_);
  builder["strictRoot"] = false;  // a number is JSON, if no request
  builder["stackLimit"] = Json::UInt64{kMaxNesting};
  return builder;
}

// jsoncpp writes "* Line 1, Column 2\n  Syntax error: ...\n", once per error; the first one is the cause.
std::string first_error(std::string text) {
  const size_t second = text.find("\n* ");
  if (second != std::string::npos) text.resize(second);
  if (text.starts_with("* ")) text.erase(0, 2);
  std::string line;
  for (const char c : text) {
    if (c != '\n') {
      line.push_back(c);
    } else if (!line.empty() && line.back() != ':') {
      line.push_back(':');
    }
  }
  while (!line.empty() && (line.back() == ':' || line.back() == ' ')) line.pop_back();
  for (size_t at; (at = line.find(":  ")) != std::string::npos;) line.erase(at + 1, 1);
  return line;
}

}  // namespace

std::expected<Json::Value, std::string> parse_json(std::string_view text) {
  static const Json::CharReaderBuilder builder = strict_reader();
  const std::unique_ptr<Json::CharReader> reader(builder.newCharReader());
  Json::Value value;
  std::string errors;
  try {
    if (reader->parse(text.data(), text.data() + text.size(), &value, &errors)) return value;
  } catch (const Json::Exception&) {
    // The one thing it throws for.
    return std::unexpected(std::string("nested too deep (64 levels at most)"));
  }
  return std::unexpected(first_error(std::move(errors)));
}

std::string write_json(const Json::Value& value) {
  static const Json::StreamWriterBuilder builder = [] {
    Json::StreamWriterBuilder made;
    made["indentation"] = "";
    made["commentStyle"] = "None";
    return made;
  }();
  return Json::writeString(builder, value);
}

}  // namespace sluice::rpc
