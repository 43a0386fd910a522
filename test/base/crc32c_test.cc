#include "lib/base/crc32c.h"

#include <gtest/gtest.h>

#include <array>
#include <string_view>

namespace sluice {
namespace {

// RFC 3720 (iSCSI), B.4 "CRC Examples".
TEST(Crc32c, IsThatOfIscsi) {
  std::array<std::byte, 32> bytes{};
  EXPECT_EQ(crc32c(bytes), 0x8a9136aaU);
  bytes.fill(std::byte{0xff});
  EXPECT_EQ(crc32c(bytes), 0x62a8ab43U);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  EXPECT_EQ(crc32c(bytes), 0x46dd794eU);
  constexpr std::string_view kText = "123456789";
  EXPECT_EQ(crc32c(std::as_bytes(std::span(kText))), 0xe3069283U);
  EXPECT_EQ(crc32c({}), 0U);
}

}  // namespace
}  // namespace sluice
