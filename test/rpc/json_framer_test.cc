#include "rpc/json_framer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <tuple>
#include <vector>

#include "rpc/json.h"

namespace sluice::rpc {
namespace {

using Status = JsonFramer::Status;
using ::testing::ElementsAre;

// All values of a stream that arrives in pieces of `piece` bytes.
std::vector<std::string> frame(std::string_view stream, size_t piece, size_t limit = 1024) {
  JsonFramer framer(limit);
  std::vector<std::string> values;
  for (size_t at = 0; at < stream.size(); at += piece) {
    framer.append(stream.substr(at, piece));
    std::string value;
    while (framer.next(value) == Status::kValue) values.push_back(value);
  }
  return values;
}

TEST(JsonFramer, FindsValuesThatNothingSeparates) {
  EXPECT_THAT(frame(R"({"a":1}{"b":[2]}[3] {"c":{}})", 1000),
              ElementsAre(R"({"a":1})", R"({"b":[2]})", "[3]", R"({"c":{}})"));
}

TEST(JsonFramer, FindsTheSameValuesHoweverTheStreamIsCut) {
  const std::string stream = R"( {"a":"}\"{","b":["]\\"]}  [{"c":"\\\""}]{})"
                             "\n";
  const std::vector<std::string> whole = frame(stream, stream.size());
  ASSERT_EQ(whole.size(), 3);
  for (size_t piece = 1; piece < stream.size(); ++piece) EXPECT_EQ(frame(stream, piece), whole) << piece;
}

TEST(JsonFramer, TellsWhetherTheStreamStopsWithinAValue) {
  JsonFramer framer(1024);
  std::string value;
  framer.append(" ");
  EXPECT_EQ(framer.next(value), Status::kNeedMore);
  EXPECT_FALSE(framer.inside_value());
  framer.append("{\"a");
  EXPECT_EQ(framer.next(value), Status::kNeedMore);
  EXPECT_TRUE(framer.inside_value());
}

TEST(JsonFramer, StopsAtGarbageBetweenValues) {
  for (const char* garbage : {"hello", "5", "\"text\"", "}", "]", "null", "\0x", "\xff"}) {
    JsonFramer framer(1024);
    std::string value;
    framer.append("{}");
    framer.append(std::string_view(garbage, 1));
    EXPECT_EQ(framer.next(value), Status::kValue) << garbage;
    EXPECT_EQ(framer.next(value), Status::kGarbage) << garbage;
    framer.append("{}");
    EXPECT_EQ(framer.next(value), Status::kGarbage) << garbage;
  }
}

TEST(JsonFramer, AcceptsAValueOfExactlyTheLimit) {
  const std::string longest = "[\"" + std::string(12, 'x') + "\"]";
  EXPECT_THAT(frame(longest + longest, 5, 16), ElementsAre(longest, longest));
}

TEST(JsonFramer, RefusesAValueBeyondTheLimitBeforeItsEndIsHere) {
  JsonFramer framer(16);
  std::string value;
  framer.append("[\"" + std::string(15, 'x'));
  EXPECT_EQ(framer.next(value), Status::kTooLong);
  framer.append("\"]{}");
  EXPECT_EQ(framer.next(value), Status::kTooLong);
}

TEST(JsonFramer, RefusesAValueBeyondTheLimitThatIsComplete) {
  JsonFramer framer(16);
  std::string value;
  framer.append("[\"" + std::string(13, 'x') + "\"]");
  EXPECT_EQ(framer.next(value), Status::kTooLong);
  EXPECT_EQ(framer.next(value), Status::kTooLong);
}

TEST(JsonFramer, DoesNotKeepWhiteSpace) {
  JsonFramer framer(16);
  std::string value;
  for (int i = 0; i < 1000; ++i) {
    framer.append(std::string(1000, ' '));
    ASSERT_EQ(framer.next(value), Status::kNeedMore);
  }
  framer.append("{}");
  EXPECT_EQ(framer.next(value), Status::kValue);
}

// Bytes that mean something to the framer, at random: it must neither crash nor lose or invent a byte.
TEST(JsonFramer, CutsRandomBytesIntoTheSameValuesHoweverTheyArrive) {
  constexpr std::string_view kAlphabet = "{}[]\"\\ ,a";
  for (unsigned seed = 0; seed < 500; ++seed) {
    std::mt19937 random(seed);
    std::string stream = "{";
    for (int i = 0; i < 200; ++i) stream.push_back(kAlphabet[random() % kAlphabet.size()]);
    const std::vector<std::string> whole = frame(stream, stream.size());
    EXPECT_EQ(frame(stream, 1), whole) << "seed " << seed;
    EXPECT_EQ(frame(stream, 7), whole) << "seed " << seed;
    size_t at = 0;
    for (const std::string& value : whole) {
      at = stream.find(value, at);
      ASSERT_NE(at, std::string::npos) << "seed " << seed;
      at += value.size();
      std::ignore = parse_json(value);
    }
  }
}

TEST(Json, SaysOnOneLineWhatIsWrong) {
  const auto json = parse_json("{\"a\": }");
  ASSERT_FALSE(json.has_value());
  EXPECT_THAT(json.error(), ::testing::HasSubstr("Line 1, Column 7"));
  EXPECT_EQ(json.error().find('\n'), std::string::npos);
}

TEST(Json, RefusesWhatIsNotStrictJson) {
  for (const char* text : {"", "{", "{]", "[1,]", "{'a':1}", "{a:1}", "[1] 2", "[NaN]", "{\"a\":1,\"a\":2}"}) {
    EXPECT_FALSE(parse_json(text).has_value()) << text;
  }
}

TEST(Json, LimitsNesting) {
  EXPECT_TRUE(parse_json(std::string(60, '[') + std::string(60, ']')).has_value());
  const auto json = parse_json(std::string(100'000, '['));
  ASSERT_FALSE(json.has_value());
  EXPECT_THAT(json.error(), ::testing::HasSubstr("nested too deep"));
}

TEST(Json, WritesAsciiWhateverTheBytesWere) {
  const Json::Value bytes("a\xff\xc3\xa9\x01");
  const std::string text = write_json(bytes);
  for (const char c : text) EXPECT_TRUE(c >= ' ' && c <= '~') << text;
  EXPECT_TRUE(parse_json(text).has_value()) << text;
}

}  // namespace
}  // namespace sluice::rpc
