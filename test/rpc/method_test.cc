#include "rpc/method.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "rpc/describe.h"
#include "rpc/json.h"

namespace sluice::rpc {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

enum class Colour : uint8_t { kRed, kGreen };
constexpr std::string_view kColourNames[] = {"red", "green"};

struct Everything {
  std::string text;
  bool flag = true;
  int32_t i32 = -1;
  uint32_t u32 = 512;
  std::optional<uint64_t> u64;
  Colour colour = Colour::kGreen;
  std::vector<std::string> names;
  std::vector<uint32_t> numbers;
  std::optional<Uuid> uuid;
};

}  // namespace

template <>
struct EnumNames<Colour> {
  static constexpr std::span<const std::string_view> kNames = kColourNames;
};

namespace {

Everything seen;

Task<RpcResult> look(Everything params) {
  seen = std::move(params);
  co_return true;
}

Method make_everything() {
  return make_method<Everything>(
      {"everything", "Takes one of each type.", kTrue, nothing(), {"all_of_it"}},
      {required("text", &Everything::text, "some text"), optional("flag", &Everything::flag, "a flag"),
       optional("i32", &Everything::i32, "signed"), optional("u32", &Everything::u32, "small"),
       optional("u64", &Everything::u64, "large").alias("size"), optional("colour", &Everything::colour, "a colour"),
       optional("names", &Everything::names, "some names").alias("name"),
       optional("numbers", &Everything::numbers, "some numbers"), optional("uuid", &Everything::uuid, "a uuid")},
      look);
}

RpcResult call(const Method& method, std::string_view params) {
  std::optional<RpcResult> result;
  start(method.call(*parse_json(params)), [&](RpcResult value) { result = std::move(value); });
  return *result;
}

RpcError error_of(std::string_view params) {
  seen = {};
  const RpcResult result = call(make_everything(), params);
  EXPECT_FALSE(result.has_value()) << params;
  return result ? RpcError{} : result.error();
}

TEST(Method, DecodesEachType) {
  ASSERT_TRUE(call(make_everything(), R"({"text":"t","flag":false,"i32":-5,"u32":4294967295,"u64":18446744073709551615,
      "colour":"red","names":["a","b"],"numbers":[3,4294967295],"uuid":"2B6601BA-eada-44fb-9a83-a20eb9eb9e90"})"));
  EXPECT_EQ(seen.text, "t");
  EXPECT_FALSE(seen.flag);
  EXPECT_EQ(seen.i32, -5);
  EXPECT_EQ(seen.u32, 4294967295);
  EXPECT_EQ(seen.u64, UINT64_MAX);
  EXPECT_EQ(seen.colour, Colour::kRed);
  EXPECT_THAT(seen.names, ElementsAre("a", "b"));
  EXPECT_THAT(seen.numbers, ElementsAre(3, 4294967295));
  EXPECT_EQ(seen.uuid->to_string(), "2b6601ba-eada-44fb-9a83-a20eb9eb9e90");
}

TEST(Method, KeepsDefaultsOfWhatIsLeftOutOrNull) {
  ASSERT_TRUE(call(make_everything(), R"({"text":"t","flag":null,"u64":null,"uuid":null})"));
  EXPECT_TRUE(seen.flag);
  EXPECT_EQ(seen.u32, 512);
  EXPECT_EQ(seen.u64, std::nullopt);
  EXPECT_EQ(seen.colour, Colour::kGreen);
  EXPECT_EQ(seen.uuid, std::nullopt);
}

TEST(Method, TakesOlderNamesOfParameters) {
  ASSERT_TRUE(call(make_everything(), R"({"text":"t","size":7,"name":"one"})"));
  EXPECT_EQ(seen.u64, 7);
  EXPECT_THAT(seen.names, ElementsAre("one"));
  EXPECT_THAT(error_of(R"({"text":"t","size":7,"u64":8})").message, AllOf(HasSubstr("'u64'"), HasSubstr("'size'")));
}

TEST(Method, NamesTheParameterAndWhatWasExpected) {
  const struct {
    const char* params;
    const char* name;
    const char* expected;
  } cases[] = {
      {R"({})", "'text'", "missing"},
      {R"({"text":null})", "'text'", "missing"},
      {R"({"text":5})", "'text'", "a string, not 5"},
      {R"({"text":"a\u0000b"})", "'text'", "without NUL"},
      {R"({"text":"t","flag":1})", "'flag'", "true or false, not 1"},
      {R"({"text":"t","flag":"yes"})", "'flag'", "true or false"},
      {R"({"text":"t","i32":2147483648})", "'i32'", "from -2147483648 to 2147483647"},
      {R"({"text":"t","u32":-1})", "'u32'", "from 0 to 4294967295, not -1"},
      {R"({"text":"t","u32":4294967296})", "'u32'", "from 0 to 4294967295"},
      {R"({"text":"t","u32":1.5})", "'u32'", "an integer"},
      {R"({"text":"t","u32":"512"})", "'u32'", "an integer"},
      {R"({"text":"t","u64":18446744073709551616})", "'u64'", "an integer from 0"},
      {R"({"text":"t","u64":-1})", "'u64'", "an integer from 0"},
      {R"({"text":"t","colour":"blue"})", "'colour'", R"(one of "red", "green")"},
      {R"({"text":"t","colour":0})", "'colour'", R"(one of "red", "green")"},
      {R"({"text":"t","names":[1]})", "'names'", "an array of strings"},
      {R"({"text":"t","names":{}})", "'names'", "an array of strings"},
      {R"({"text":"t","numbers":5})", "'numbers'", "an array, each element an integer from 0 to 4294967295"},
      {R"({"text":"t","numbers":[1,-1]})", "'numbers'", "an array, each element"},
      {R"({"text":"t","uuid":"no"})", "'uuid'", "a UUID"},
      {R"({"text":"t","nam":"x"})", "unknown parameter 'nam'", "text, flag, i32"},
      {R"([1])", "params", "an object"},
      {R"("x")", "params", "an object"},
  };
  for (const auto& [params, name, expected] : cases) {
    const RpcError error = error_of(params);
    EXPECT_EQ(error.code, kInvalidParams) << params;
    EXPECT_THAT(error.message, AllOf(HasSubstr("Invalid parameters"), HasSubstr(name), HasSubstr(expected))) << params;
    EXPECT_EQ(seen.text, "") << "the method ran";
  }
}

TEST(Method, TakesNullAndEmptyListsAsNoParameters) {
  const Method method = make_method<NoParams>({"none", "Takes nothing.", kTrue, nothing()}, {},
                                              [](NoParams) { return detail::finished(Json::Value(true)); });
  for (const char* params : {"null", "{}", "[]"}) EXPECT_TRUE(call(method, params).has_value()) << params;
  EXPECT_THAT(call(method, R"({"x":1})").error().message, HasSubstr("takes none"));
}

TEST(Method, ShortensLongValuesInErrors) {
  const std::string error = error_of(R"({"text":["t)" + std::string(100'000, 'x') + R"("]})").message;
  EXPECT_LT(error.size(), 200);
}

TEST(MethodTable, FindsByNameAndAlias) {
  MethodTable table;
  table.add(make_everything());
  EXPECT_EQ(table.find("everything"), table.find("all_of_it"));
  EXPECT_NE(table.find("everything"), nullptr);
  EXPECT_EQ(table.find("every"), nullptr);
}

TEST(Describe, SaysAllThatTheTableKnows) {
  MethodTable table;
  table.add(make_everything());
  const Json::Value document = describe(table);
  EXPECT_EQ(document["openrpc"].asString(), "1.2.6");
  const Json::Value& method = document["methods"][0];
  EXPECT_EQ(method["name"].asString(), "everything");
  EXPECT_EQ(method["x-aliases"][0].asString(), "all_of_it");
  EXPECT_EQ(method["result"]["schema"]["type"].asString(), "boolean");
  const Json::Value& params = method["params"];
  ASSERT_EQ(params.size(), 9);
  EXPECT_TRUE(params[0]["required"].asBool());
  EXPECT_FALSE(params[0]["schema"].isMember("default"));
  EXPECT_EQ(params[1]["schema"]["default"], Json::Value(true));
  EXPECT_EQ(params[3]["schema"]["maximum"].asUInt64(), UINT32_MAX);
  EXPECT_EQ(params[4]["x-alias"].asString(), "size");
  EXPECT_EQ(params[5]["schema"]["enum"][1].asString(), "green");
  EXPECT_EQ(params[5]["schema"]["default"].asString(), "green");
  EXPECT_EQ(params[7]["schema"]["items"]["maximum"].asUInt64(), UINT32_MAX);
  EXPECT_EQ(params[8]["schema"]["format"].asString(), "uuid");
}

TEST(RpcError, HoldsThePlainTextOfTheErrno) {
  const RpcError error = to_rpc_error({ENOENT, "cannot open the file"}, "'/x'");
  EXPECT_EQ(error.code, -ENOENT);
  EXPECT_EQ(error.message, "'/x': cannot open the file: No such file or directory");
}

}  // namespace
}  // namespace sluice::rpc
