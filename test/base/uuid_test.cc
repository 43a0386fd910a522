#include "lib/base/uuid.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace sluice {
namespace {

constexpr const char* kText = "01234567-89ab-4cde-8f01-23456789abcd";

TEST(Uuid, PrintsWhatItReads) {
  const std::optional<Uuid> uuid = Uuid::parse(kText);
  ASSERT_TRUE(uuid.has_value());
  EXPECT_EQ(uuid->to_string(), kText);
  EXPECT_EQ(uuid->bytes[0], 0x01);
  EXPECT_EQ(uuid->bytes[15], 0xcd);
}

TEST(Uuid, ReadsAnyCaseAndPrintsLowerCase) {
  const std::optional<Uuid> uuid = Uuid::parse("01234567-89AB-4CDE-8f01-23456789ABCD");
  ASSERT_TRUE(uuid.has_value());
  EXPECT_EQ(uuid->to_string(), kText);
}

TEST(Uuid, RefusesOtherText) {
  const std::string text = kText;
  EXPECT_FALSE(Uuid::parse(""));
  EXPECT_FALSE(Uuid::parse(text.substr(1)));
  EXPECT_FALSE(Uuid::parse(text + "0"));
  EXPECT_FALSE(Uuid::parse("{" + text + "}"));
  EXPECT_FALSE(Uuid::parse("0123456789ab4cde8f0123456789abcd"));
  EXPECT_FALSE(Uuid::parse("01234567-89ab-4cde-8f01-23456789abcg"));
  EXPECT_FALSE(Uuid::parse("012345678-9ab-4cde-8f01-23456789abcd"));
  EXPECT_FALSE(Uuid::parse(std::string_view("01234567-89ab-4cde-8f01-23456789\0bcd", 36)));
}

TEST(Uuid, RandomOnesDifferAndAreOfVersion4) {
  std::set<Uuid> seen;
  for (int i = 0; i < 1000; ++i) {
    const Uuid uuid = Uuid::random();
    EXPECT_FALSE(uuid.is_nil());
    EXPECT_EQ(uuid.bytes[6] >> 4, 4) << "RFC 4122, section 4.4: version";
    EXPECT_EQ(uuid.bytes[8] >> 6, 2) << "RFC 4122, section 4.4: variant";
    EXPECT_TRUE(seen.insert(uuid).second);
  }
}

TEST(Uuid, IsNilUntilSet) {
  EXPECT_TRUE(Uuid().is_nil());
  EXPECT_EQ(Uuid().to_string(), "00000000-0000-0000-0000-000000000000");
}

}  // namespace
}  // namespace sluice
