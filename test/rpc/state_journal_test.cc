#include "rpc/state_journal.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "test/rpc/state_fixture.h"

namespace sluice::rpc {
namespace {

using test::FailingSystem;
using test::TempDirectory;
using ::testing::AllOf;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using Texts = std::vector<std::string>;

class StateJournalTest : public ::testing::Test {
 protected:
  std::unique_ptr<StateJournal> open() {
    auto opened = StateJournal::open(directory_.path(), system_);
    EXPECT_TRUE(opened.has_value()) << opened.error();
    return opened ? std::move(*opened) : nullptr;
  }
  std::string refusal() {
    const auto opened = StateJournal::open(directory_.path(), system_);
    EXPECT_FALSE(opened.has_value());
    return opened ? "" : opened.error();
  }
  Texts texts() {
    Texts found;
    for (const StateJournal::Line& line : open()->lines()) found.push_back(line.text);
    return found;
  }
  // A file of two lines that were written at once, and three that were appended.
  void fill() {
    const auto journal = open();
    ASSERT_TRUE(journal->replace({"a", "b"}));
    for (const char* text : {"c", "dd", ""}) ASSERT_TRUE(journal->append(text));
  }

  TempDirectory directory_;
  FailingSystem system_;
};

TEST_F(StateJournalTest, BeginsWithoutAFile) {
  const auto journal = open();
  EXPECT_TRUE(journal->needs_replacing());
  EXPECT_TRUE(journal->lines().empty());
  EXPECT_EQ(journal->path(), directory_.journal());
  EXPECT_FALSE(std::filesystem::exists(directory_.journal()));
}

TEST_F(StateJournalTest, KeepsWhatIsReplacedAndAppended) {
  fill();
  EXPECT_EQ(texts(), (Texts{"a", "b", "c", "dd", ""}));
  EXPECT_EQ(open()->lines().back().number, 6);
  EXPECT_TRUE(open()->note().empty());
  ASSERT_TRUE(open()->append("more"));
  EXPECT_EQ(texts().back(), "more");
  ASSERT_TRUE(open()->replace({"x"}));
  EXPECT_EQ(texts(), Texts{"x"});
  EXPECT_FALSE(std::filesystem::exists(directory_.path() + "/" + StateJournal::kNewFileName));
}

TEST_F(StateJournalTest, HasTheFormThatIsDocumented) {
  ASSERT_TRUE(open()->replace({"[1]"}));
  ASSERT_TRUE(open()->append("[2]"));
  EXPECT_EQ(directory_.content(), "e238109a sluice-state 1 1\nb83dbc6b [1]\n8cda14f2 [2]\n");
}

// What a power failure leaves of a line that was being appended is any part of it.
TEST_F(StateJournalTest, LoadsWholeLinesWhereverItIsCutOff) {
  fill();
  const std::string content = directory_.content();
  const Texts all = texts();
  size_t written_at_once = 0;
  for (int line = 0; line < 3; ++line) written_at_once = content.find('\n', written_at_once) + 1;
  for (size_t size = 0; size <= content.size(); ++size) {
    const std::string prefix = content.substr(0, size);
    directory_.set_content(prefix);
    if (size < written_at_once) {
      // It was never shorter: somebody has cut it off.
      EXPECT_THAT(refusal(), AllOf(HasSubstr(directory_.journal() + ", line "), HasSubstr("To fix: "))) << size;
      EXPECT_EQ(directory_.content(), prefix) << "nothing is changed then";
      continue;
    }
    const auto whole = static_cast<size_t>(std::count(prefix.begin(), prefix.end(), '\n'));
    EXPECT_EQ(open()->note().empty(), prefix.back() == '\n') << size;
    EXPECT_EQ(texts(), Texts(all.begin(), all.begin() + static_cast<ptrdiff_t>(whole) - 1)) << size;
    ASSERT_TRUE(open()->append("next"));
    EXPECT_EQ(texts().back(), "next") << size;
  }
}

// Pages of a line may reach the disk in any order.
TEST_F(StateJournalTest, CutsOffALastLineWithAHole) {
  fill();
  std::string content = directory_.content();
  ASSERT_TRUE(open()->append(std::string(10'000, 'x')));
  std::string longer = directory_.content();
  std::fill_n(longer.begin() + static_cast<ptrdiff_t>(content.size()) + 3000, 4096, '\0');
  directory_.set_content(longer);
  EXPECT_THAT(open()->note(), AllOf(HasSubstr(directory_.journal() + ", line 7"), HasSubstr("cut off")));
  EXPECT_EQ(directory_.content(), content);
}

TEST_F(StateJournalTest, NamesTheLineThatIsDamagedAndWhatToDo) {
  fill();
  const std::string content = directory_.content();
  size_t begin = 0;
  for (size_t line = 1; line <= 6; ++line) {
    const size_t end = content.find('\n', begin);
    for (size_t at = begin; at <= end; ++at) {
      std::string damaged = content;
      damaged[at] = static_cast<char>(damaged[at] ^ 1);
      directory_.set_content(damaged);
      // The end of a line belongs to it as well: with the next one it makes a damaged one.
      if (line >= 5 && (line == 6 || at == end)) {
        EXPECT_FALSE(open()->note().empty()) << "it could be one that was being written";
        continue;
      }
      EXPECT_THAT(refusal(), AllOf(HasSubstr(fmt::format("{}, line {}: it is damaged", directory_.journal(), line)),
                                   HasSubstr(fmt::format("sed -i '{}s/^/#/' {}", line, directory_.journal()))));
    }
    begin = end + 1;
  }
}

TEST_F(StateJournalTest, GoesOnWithoutLinesThatAreMarkedOff) {
  fill();
  std::string content = directory_.content();
  content.insert(content.find('\n') + 1, "#");
  directory_.set_content(content);
  EXPECT_EQ(texts(), (Texts{"b", "c", "dd", ""}));
  // Without the first line nobody knows how many there were.
  content = "#" + content.substr(0, content.find('\n', content.find('\n') + 1) + 1);
  directory_.set_content(content);
  EXPECT_EQ(texts(), Texts{});
}

TEST_F(StateJournalTest, RefusesOtherFormats) {
  ASSERT_TRUE(open()->replace({}));
  directory_.set_content("fa7d53ea sluice-state 2 0\n");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("line 1"), HasSubstr("sluice-state 2"), HasSubstr("another version")));
}

TEST_F(StateJournalTest, BelongsToOneProcess) {
  const auto journal = open();
  EXPECT_THAT(refusal(), AllOf(HasSubstr(directory_.path()), HasSubstr("another daemon uses it")));
}

TEST_F(StateJournalTest, RefusesWhatIsNoDirectory) {
  EXPECT_THAT(StateJournal::open(directory_.path() + "/none").error(), HasSubstr("mkdir"));
  directory_.set_content("");
  EXPECT_THAT(StateJournal::open(directory_.journal()).error(), HasSubstr("Not a directory"));
}

TEST_F(StateJournalTest, FollowsNoLink) {
  std::filesystem::create_symlink("/etc/passwd", directory_.journal());
  EXPECT_THAT(refusal(), HasSubstr("cannot open it"));
}

TEST_F(StateJournalTest, TakesRoomInAdvance) {
  const auto journal = open();
  ASSERT_TRUE(journal->replace({"a"}));
  EXPECT_EQ(journal->room_bytes(), 0);
  ASSERT_TRUE(journal->reserve(1000));
  EXPECT_GE(journal->room_bytes(), 1000);
  const uint64_t size = journal->size_bytes();
  EXPECT_EQ(std::filesystem::file_size(directory_.journal()), size) << "behind its end";
  const uint64_t room = journal->room_bytes();
  ASSERT_TRUE(journal->append("b"));
  EXPECT_EQ(room - journal->room_bytes(), journal->size_bytes() - size);
  system_.full = true;
  const Result<> reserved = journal->reserve(room + 1);
  ASSERT_FALSE(reserved);
  EXPECT_EQ(reserved.error().code, ENOSPC);
  EXPECT_FALSE(journal->needs_replacing()) << "nothing has happened";
  EXPECT_TRUE(journal->append("c"));
}

// Each call to the system fails once, alone and for good; afterwards, what has succeeded is there, and of what has not,
// all or nothing.
TEST_F(StateJournalTest, LosesNothingWhicheverCallFails) {
  for (const uint64_t failures : {uint64_t{1}, FailingSystem::kNever}) {
    for (uint64_t fail_at = 0;; ++fail_at) {
      std::filesystem::remove(directory_.journal());
      system_ = {};
      Texts sure;
      std::vector<Texts> doubtful;  // what has been tried since
      uint64_t failed = 0;
      {
        const auto journal = open();
        system_.fail_at = fail_at;
        system_.failures = failures;
        const auto write = [&](const std::string& text) {
          Texts next = sure;
          next.push_back(text);
          const Result<> written = journal->needs_replacing() ? journal->replace(next) : journal->append(text);
          failed += written ? 0 : 1;
          doubtful.push_back(next);
          if (!written) return;
          sure = std::move(next);
          doubtful.clear();
        };
        for (const char* text : {"a", "b", "c"}) write(text);
        failed += journal->replace(sure) ? 0 : 1;
        write("d");
      }
      const uint64_t calls = std::exchange(system_.calls, 0);
      system_.fail_at = FailingSystem::kNever;
      const Texts found = texts();
      EXPECT_TRUE(found == sure || std::ranges::find(doubtful, found) != doubtful.end()) << fail_at;
      if (failed == 0) {
        EXPECT_EQ(calls, fail_at);
        EXPECT_EQ(found, (Texts{"a", "b", "c", "d"}));
        break;
      }
    }
  }
}

}  // namespace
}  // namespace sluice::rpc
