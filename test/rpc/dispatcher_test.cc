#include "rpc/dispatcher.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <optional>
#include <random>

#include "rpc/config.h"
#include "rpc/json.h"
#include "rpc/limits.h"
#include "test/rpc/test_methods.h"

namespace sluice::rpc {
namespace {

using ::testing::HasSubstr;

class DispatcherTest : public ::testing::Test {
 protected:
  DispatcherTest() { test::add_test_methods(table_, event_); }

  std::string handle(std::string text) {
    std::optional<std::string> reply;
    start(dispatcher_.handle(std::move(text)), [&](std::string value) { reply = std::move(value); });
    EXPECT_TRUE(reply.has_value());
    EXPECT_EQ(reply->find('\n'), reply->size() - 1) << "one line";
    return *reply;
  }
  Json::Value ask(std::string text) { return *parse_json(handle(std::move(text))); }
  int error_code(std::string text) {
    const Json::Value reply = ask(std::move(text));
    EXPECT_TRUE(reply["error"]["message"].isString()) << write_json(reply);
    EXPECT_FALSE(reply.isMember("result"));
    return reply["error"]["code"].asInt();
  }

  std::expected<void, std::string> load(const std::string& content) {
    const std::string path = fmt::format("{}rpc_test_config.{}.json", ::testing::TempDir(), ::getpid());
    std::ofstream(path) << content;
    std::optional<std::expected<void, std::string>> result;
    start(load_config(dispatcher_, path), [&](std::expected<void, std::string> value) { result = std::move(value); });
    ::unlink(path.c_str());
    return *result;
  }

  MethodTable table_;
  Event event_;
  Dispatcher dispatcher_{table_};
};

// "id: ... MUST be the same as the value of the id member in the Request Object" (5, Response object).
TEST_F(DispatcherTest, EchoesTheIdWithItsType) {
  for (const char* id : {"0", "1", "-5", "18446744073709551615", "1.5", "\"abc\"", "\"\"", "null"}) {
    const Json::Value reply =
        ask(std::string(R"({"jsonrpc":"2.0","id":)") + id + R"(,"method":"echo","params":{"text":"t"}})");
    EXPECT_EQ(reply["jsonrpc"].asString(), "2.0");
    EXPECT_EQ(reply["result"].asString(), "t");
    EXPECT_EQ(write_json(reply["id"]), id);
  }
}

TEST_F(DispatcherTest, AnswersRequestsWithoutVersionAndId) {
  const Json::Value reply = ask(R"({"method":"echo","params":{"text":"t"}})");
  EXPECT_EQ(reply["result"].asString(), "t");
  EXPECT_TRUE(reply.isMember("id"));
  EXPECT_TRUE(reply["id"].isNull());
}

TEST_F(DispatcherTest, TakesParamsThatAreAbsentNullOrEmpty) {
  for (const char* params : {"", R"(,"params":null)", R"(,"params":{})", R"(,"params":[])"}) {
    EXPECT_EQ(ask(std::string(R"({"id":1,"method":"echo")") + params + "}")["result"].asString(), "") << params;
  }
}

TEST_F(DispatcherTest, TellsParseErrorsFromInvalidRequests) {
  EXPECT_EQ(error_code(R"({"method":)"), kParseError);
  EXPECT_EQ(error_code(R"({"id":1,"id":2,"method":"echo"})"), kParseError);
  EXPECT_EQ(error_code(std::string(100'000, '[')), kParseError);
  EXPECT_EQ(error_code("5"), kInvalidRequest);
  EXPECT_EQ(error_code("{}"), kInvalidRequest);
  EXPECT_EQ(error_code(R"({"method":5})"), kInvalidRequest);
  EXPECT_EQ(error_code(R"({"jsonrpc":"1.0","method":"echo"})"), kInvalidRequest);
  EXPECT_EQ(error_code(R"({"jsonrpc":2,"method":"echo"})"), kInvalidRequest);
  EXPECT_EQ(error_code(R"({"id":{},"method":"echo"})"), kInvalidRequest);
  EXPECT_EQ(error_code(R"({"id":true,"method":"echo"})"), kInvalidRequest);
  EXPECT_EQ(error_code(R"({"method":"echo","params":5})"), kInvalidParams);
  EXPECT_EQ(error_code(R"({"method":"echo","params":{"no":1}})"), kInvalidParams);
}

TEST_F(DispatcherTest, SaysWhichMethodIsUnknown) {
  const Json::Value reply = ask(R"({"id":7,"method":"no_such\nmethod"})");
  EXPECT_EQ(reply["error"]["code"].asInt(), kMethodNotFound);
  EXPECT_THAT(reply["error"]["message"].asString(), HasSubstr("no_such"));
  EXPECT_EQ(reply["id"].asInt(), 7);
}

TEST_F(DispatcherTest, RunsMethodsByTheirAliases) {
  EXPECT_EQ(ask(R"({"method":"old_echo","params":{"text":"t"}})")["result"].asString(), "t");
}

TEST_F(DispatcherTest, BeginsErrorsWithTheMethod) {
  const Json::Value error = ask(R"({"method":"refuse"})")["error"];
  EXPECT_EQ(error["code"].asInt(), -ENODEV);
  EXPECT_EQ(error["message"].asString(), "refuse: bdev 'x' does not exist: No such device");
}

// "The Server should respond with an Array containing the corresponding Response objects" (6, Batch).
TEST_F(DispatcherTest, AnswersABatchInOneReplyAndInOrder) {
  const Json::Value replies = ask(R"([{"id":1,"method":"echo","params":{"text":"a"}},{"id":2,"method":"refuse"},3,
                                      {"method":"echo","params":{"text":"b"}}])");
  ASSERT_EQ(replies.size(), 4);
  EXPECT_EQ(replies[0]["result"].asString(), "a");
  EXPECT_EQ(replies[1]["error"]["code"].asInt(), -ENODEV);
  EXPECT_EQ(replies[2]["error"]["code"].asInt(), kInvalidRequest);
  EXPECT_EQ(replies[3]["result"].asString(), "b");
}

// "If the batch ... [is] an Array with [no] value, the response ... MUST be a single Response object" (6, Batch).
TEST_F(DispatcherTest, RefusesBatchesThatAreEmptyOrTooLong) {
  EXPECT_EQ(error_code("[]"), kInvalidRequest);
  std::string batch = "[1";
  for (size_t i = 0; i < kMaxBatchRequests; ++i) batch += ",1";
  EXPECT_EQ(error_code(batch + "]"), kInvalidRequest);
}

TEST_F(DispatcherTest, StopsABatchWhoseRepliesGrowTooLong) {
  size_t calls = 0;
  table_.add(make_method<NoParams>({"big", "Returns 1 MiB.", {"string", "x"}, nothing()}, {}, [&calls](NoParams) {
    ++calls;
    return detail::finished(Json::Value(std::string(1 << 20, 'x')));
  }));
  std::string batch = "[";
  for (int i = 0; i < 100; ++i) batch += std::string(i == 0 ? "" : ",") + R"({"id":1,"method":"big"})";
  const Json::Value replies = ask(batch + "]");
  EXPECT_EQ(replies.size(), 100);
  EXPECT_EQ(calls, 64);
  EXPECT_EQ(replies[99]["error"]["code"].asInt(), kInternalError);
  EXPECT_EQ(replies[99]["id"].asInt(), 1);
}

TEST_F(DispatcherTest, SurvivesDamagedRequests) {
  const std::string request =
      R"([{"jsonrpc":"2.0","id":1,"method":"echo","params":{"text":"a\u00e9\"b"}},{"id":null}])";
  for (unsigned seed = 0; seed < 2000; ++seed) {
    std::mt19937 random(seed);
    std::string damaged = request;
    for (int i = 0; i < 3; ++i) damaged[random() % damaged.size()] = static_cast<char>(random() % 256);
    EXPECT_TRUE(parse_json(handle(damaged)).has_value()) << "seed " << seed;
  }
}

TEST_F(DispatcherTest, LoadsAConfigurationInOrder) {
  EXPECT_TRUE(
      load(R"({"subsystems":[{"subsystem":"a","config":[{"method":"echo","params":{"text":"t"}},{"method":"echo"}]},
                                     {"subsystem":"b","config":null}]})"));
}

TEST_F(DispatcherTest, NamesTheEntryOfAConfigurationThatFails) {
  const auto loaded = load(R"({"subsystems":[{"subsystem":"a","config":[{"method":"echo"},{"method":"refuse"}]}]})");
  ASSERT_FALSE(loaded);
  EXPECT_THAT(loaded.error(),
              HasSubstr(".json: subsystem 'a', entry 1: refuse: bdev 'x' does not exist: No such device"));
}

TEST_F(DispatcherTest, SaysWhatIsWrongWithAConfigurationsForm) {
  EXPECT_THAT(load("{").error(), HasSubstr("not JSON: Line 1"));
  EXPECT_THAT(load("[]").error(), HasSubstr("\"subsystems\""));
  EXPECT_THAT(load(R"({"subsystems":[5]})").error(), HasSubstr("subsystems[0]"));
  EXPECT_THAT(load(R"({"subsystems":[{"subsystem":"a","config":5}]})").error(), HasSubstr("'a'"));
  EXPECT_THAT(load(R"({"subsystems":[{"subsystem":"a","config":[{}]}]})").error(), HasSubstr("entry 0"));
}

TEST_F(DispatcherTest, NamesAConfigurationFileThatIsMissing) {
  std::optional<std::expected<void, std::string>> result;
  start(load_config(dispatcher_, "/nonexistent/c.json"),
        [&](std::expected<void, std::string> value) { result = std::move(value); });
  EXPECT_EQ(result->error(), "configuration /nonexistent/c.json: No such file or directory");
}

}  // namespace
}  // namespace sluice::rpc
