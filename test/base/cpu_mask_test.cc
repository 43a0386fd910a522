#include "lib/base/cpu_mask.h"

#include <gtest/gtest.h>

#include <string>

namespace sluice {
namespace {

std::string parsed(std::string_view text) {
  const Result<CpuMask> mask = CpuMask::parse(text);
  return mask ? mask->to_string() : "refused";
}

TEST(CpuMask, ReadsHexadecimal) {
  EXPECT_EQ(parsed("0x1"), "0x1");
  EXPECT_EQ(parsed("0X5"), "0x5");
  EXPECT_EQ(parsed("5"), "0x5");
  EXPECT_EQ(parsed("00f0"), "0xf0");
  EXPECT_EQ(parsed("0xABCdef"), "0xabcdef");
  EXPECT_EQ(parsed("0"), "0x0");
  const std::string widest(CpuMask::kMaxCpus / 4, 'f');
  EXPECT_EQ(parsed("0x" + widest), "0x" + widest);
}

TEST(CpuMask, ReadsListsAndRanges) {
  EXPECT_EQ(parsed("[0]"), "0x1");
  EXPECT_EQ(parsed("[0,2-3]"), "0xd");
  EXPECT_EQ(parsed("[3-3]"), "0x8");
  EXPECT_EQ(parsed("[1,1,0-1]"), "0x3");
  EXPECT_EQ(parsed("[]"), "0x0");
  EXPECT_EQ(parsed("[1023]"), "0x8" + std::string(255, '0'));
}

TEST(CpuMask, RefusesWhatIsNeither) {
  for (const char* text : {"",
                           "0x",
                           "0x ",
                           " 1",
                           "0xg",
                           "x1",
                           "-1",
                           "+1",
                           "0x-1",
                           "1,2",
                           "[",
                           "]",
                           "[0",
                           "0]",
                           "[a]",
                           "[-1]",
                           "[1-]",
                           "[-]",
                           "[1--2]",
                           "[1-2-3]",
                           "[1;2]",
                           "[0x1]",
                           "[,]",
                           "[,0]",
                           "[0,]",
                           "[0,,1]",
                           "[3-2]",
                           "[1024]",
                           "[0-1024]",
                           "[4294967296]",
                           "[0-99999999999999999999]"}) {
    EXPECT_EQ(parsed(text), "refused") << '"' << text << '"';
  }
  EXPECT_EQ(parsed("0x1" + std::string(CpuMask::kMaxCpus / 4, '0')), "refused");
  const std::string_view with_nul("1\0", 2);
  EXPECT_EQ(parsed(with_nul), "refused");
}

TEST(CpuMask, PrintsWhatItReads) {
  CpuMask mask;
  for (uint32_t cpu = 0; cpu < CpuMask::kMaxCpus; cpu += 37) mask.set(cpu);
  const Result<CpuMask> again = CpuMask::parse(mask.to_string());
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(*again, mask);
}

TEST(CpuMask, CountsTestsAndIntersects) {
  const CpuMask low = *CpuMask::parse("0x7");
  const CpuMask high = *CpuMask::parse("0xc");
  EXPECT_EQ(low.count(), 3U);
  EXPECT_FALSE(low.none());
  EXPECT_TRUE(CpuMask().none());
  EXPECT_TRUE(low.test(2));
  EXPECT_FALSE(low.test(3));
  EXPECT_FALSE(low.test(CpuMask::kMaxCpus)) << "beyond the end is not in any mask";
  EXPECT_EQ((low & high).to_string(), "0x4");
}

TEST(CpuMask, NamesTheCoresOfThisProcess) {
  const CpuMask mask = CpuMask::available();
  EXPECT_FALSE(mask.none());
  EXPECT_EQ(mask & mask, mask);
}

}  // namespace
}  // namespace sluice
