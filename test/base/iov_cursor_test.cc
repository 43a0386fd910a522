#include "lib/base/iov_cursor.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace sluice {
namespace {

// Buffers that hold the letters of `pieces`.
class Buffers {
 public:
  explicit Buffers(std::vector<std::string> pieces) : pieces_(std::move(pieces)) {
    for (std::string& piece : pieces_) iov_.push_back({.iov_base = piece.data(), .iov_len = piece.size()});
  }
  std::span<const iovec> iov() const { return iov_; }
  std::string text() const {
    std::string all;
    for (const std::string& piece : pieces_) all += piece;
    return all;
  }

 private:
  std::vector<std::string> pieces_;
  std::vector<iovec> iov_;
};

std::string copy_out(IovCursor& cursor, size_t length) {
  std::string out(length, '?');
  out.resize(cursor.copy_out(std::as_writable_bytes(std::span(out))));
  return out;
}

size_t copy_in(IovCursor& cursor, std::string_view text) { return cursor.copy_in(std::as_bytes(std::span(text))); }

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(IovCursor, CopiesOutAcrossPieces) {
  const Buffers buffers({"abc", "d", "efgh"});
  IovCursor cursor(buffers.iov());
  EXPECT_EQ(copy_out(cursor, 2), "ab");
  EXPECT_EQ(copy_out(cursor, 4), "cdef");
  EXPECT_EQ(copy_out(cursor, 10), "gh") << "no more than there is";
  EXPECT_EQ(copy_out(cursor, 1), "");
}

TEST(IovCursor, CopiesInAcrossPieces) {
  const Buffers buffers({"...", ".", "...."});
  IovCursor cursor(buffers.iov());
  EXPECT_EQ(copy_in(cursor, "ab"), 2U);
  EXPECT_EQ(copy_in(cursor, "cde"), 3U);
  EXPECT_EQ(buffers.text(), "abcde...");
  EXPECT_EQ(copy_in(cursor, "fghij"), 3U) << "no more than finds room";
  EXPECT_EQ(buffers.text(), "abcdefgh");
}

TEST(IovCursor, FillsAndSkips) {
  const Buffers buffers({"abc", "def"});
  IovCursor cursor(buffers.iov());
  EXPECT_EQ(cursor.skip(1), 1U);
  EXPECT_EQ(cursor.fill(std::byte{'x'}, 3), 3U);
  EXPECT_EQ(buffers.text(), "axxxef");
  EXPECT_EQ(cursor.skip(9), 2U);
  EXPECT_EQ(cursor.fill(std::byte{'x'}, 1), 0U);
}

TEST(IovCursor, PassesOverEmptyPieces) {
  const Buffers buffers({"", "ab", "", "", "cd", ""});
  IovCursor cursor(buffers.iov());
  EXPECT_EQ(copy_out(cursor, 3), "abc");
  EXPECT_EQ(as_text(cursor.next(8)), "d");
  EXPECT_TRUE(cursor.next(8).empty());
}

TEST(IovCursor, HandsOutContiguousSlices) {
  const Buffers buffers({"abcd", "ef"});
  IovCursor cursor(buffers.iov());
  EXPECT_EQ(as_text(cursor.next(3)), "abc");
  EXPECT_EQ(as_text(cursor.next(3)), "d");
  EXPECT_EQ(as_text(cursor.next(3)), "ef");
  EXPECT_TRUE(cursor.next(3).empty());
}

TEST(IovCursor, IsEmptyWithoutBuffers) {
  IovCursor cursor;
  EXPECT_TRUE(cursor.next(1).empty());
  EXPECT_EQ(cursor.skip(1), 0U);
}

TEST(IovCursor, CopyOfACursorWalksByItself) {
  const Buffers buffers({"abcdef"});
  IovCursor cursor(buffers.iov());
  cursor.skip(2);
  IovCursor ahead = cursor;
  EXPECT_EQ(copy_out(ahead, 2), "cd");
  EXPECT_EQ(copy_out(cursor, 2), "cd");
}

TEST(IovCursor, GivesTheSameBytesHoweverTheyAreCut) {
  const std::string text = "The quick brown fox jumps over the lazy dog.";
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size();) {
      const size_t length = std::min<size_t>(random() % 8, text.size() - at);
      pieces.push_back(text.substr(at, length));
      at += length;
    }
    const Buffers buffers(std::move(pieces));
    EXPECT_EQ(total_length(buffers.iov()), text.size());
    IovCursor cursor(buffers.iov());
    std::string walked;
    for (std::string part = copy_out(cursor, 1); !part.empty(); part = copy_out(cursor, 1 + random() % 9))
      walked += part;
    EXPECT_EQ(walked, text);
  }
}

}  // namespace
}  // namespace sluice
