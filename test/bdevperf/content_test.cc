#include "app/bdevperf/content.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

namespace sluice::bdevperf {
namespace {

TEST(Content, IsFoundUnchanged) {
  for (const size_t size : {512U, 520U, 4096U, 65536U}) {
    std::vector<std::byte> bytes(size);
    fill_content(bytes, 42);
    EXPECT_EQ(find_difference(bytes, 42), std::nullopt);
    EXPECT_EQ(find_difference(bytes, 43), 0U);
  }
}

TEST(Content, EachBitCounts) {
  std::vector<std::byte> bytes(4096);
  fill_content(bytes, 42);
  for (const size_t place : {0U, 1U, 7U, 8U, 511U, 512U, 4095U}) {
    bytes[place] ^= std::byte{0x80};
    EXPECT_EQ(find_difference(bytes, 42), place);
    bytes[place] ^= std::byte{0x80};
  }
}

TEST(Content, MovedBytesAreNoticed) {
  std::vector<std::byte> bytes(4096);
  fill_content(bytes, 42);
  std::rotate(bytes.begin(), bytes.begin() + 512, bytes.end());
  EXPECT_TRUE(find_difference(bytes, 42));
}

TEST(Content, KeysDifferBySeedOffsetAndGeneration) {
  std::set<uint64_t> keys;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    for (uint64_t offset = 0; offset < 10 * 512; offset += 512) {
      for (uint64_t generation = 0; generation < 10; ++generation) keys.insert(content_key(seed, offset, generation));
    }
  }
  EXPECT_EQ(keys.size(), 1000U);
}

}  // namespace
}  // namespace sluice::bdevperf
