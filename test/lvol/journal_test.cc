#include "lib/lvol/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <random>

#include "test/bdev/test_disk.h"
#include "test/lvol/journal_user.h"

namespace sluice::lvol {
namespace {

using testing::ElementsAre;

// A journal on a disk that the test can look into, and hold up. The disk is full of noise, as a used one is.
class LvolJournal : public testing::Test {
 protected:
  LvolJournal() {
    std::mt19937_64 random(1);
    for (std::byte& byte : disk_.data) byte = static_cast<std::byte>(random());
    user_.emplace(world_);
    use_ring(32);
  }

  void use_ring(uint32_t pages) {
    superblock_ = superblock_of(pages);
    user_->open(superblock_);
    disk_.seen.clear();
  }
  // Closes the journal and opens it again with what replay finds.
  int reopen() {
    user_->close();
    const int code = user_->replay(superblock_);
    if (code == 0) user_->open(superblock_, user_->position);
    return code;
  }
  // A power failure loses these slots of the ring, which hold what they held before.
  void copy_slots(uint64_t first, uint64_t count, std::vector<std::byte>& saved) {
    const auto begin = disk_.data.begin() + static_cast<ptrdiff_t>((kJournalFirstPage + first) * kPageBytes);
    saved.assign(begin, begin + static_cast<ptrdiff_t>(count * kPageBytes));
  }
  void restore_slots(uint64_t first, const std::vector<std::byte>& saved) {
    std::ranges::copy(saved, disk_.data.begin() + static_cast<ptrdiff_t>((kJournalFirstPage + first) * kPageBytes));
  }
  void damage(uint64_t slot) { disk_.data[(kJournalFirstPage + slot) * kPageBytes + 1000] ^= std::byte{1}; }
  void let_go() {
    user_->on([&] { disk_.let_go(); });
    world_.hosts.run_until_idle();
  }
  JournalHeader header_at(uint64_t slot) {
    const auto bytes = std::span<const std::byte>(disk_.data).subspan((kJournalFirstPage + slot) * kPageBytes);
    return decode_journal_header(PageView(bytes.first<kPageBytes>()), kStore).value_or(JournalHeader{});
  }
  static TestDisk::Seen pages(uint64_t first_slot, uint64_t count) {
    return {(kJournalFirstPage + first_slot) * kPageBytes, count * kPageBytes};
  }

  static constexpr TestDisk::Seen kFlush{0, 0};

  BdevWorld world_;
  TestDisk& disk_ = static_cast<TestDisk&>(world_.add(std::make_unique<TestDisk>(disk_options())));
  std::optional<JournalUser> user_;
  Superblock superblock_;

 private:
  static Bdev::Options disk_options() {
    Bdev::Options made = options();
    made.size_bytes = 4U << 20;
    return made;
  }
};

TEST_F(LvolJournal, ANewOneIsEmptyWhateverWasThere) {
  EXPECT_EQ(reopen(), 0);
  EXPECT_TRUE(user_->records.empty());
  EXPECT_EQ(user_->position.sequence, 1U);
  EXPECT_EQ(user_->position.next_record, 1U);
}

TEST_F(LvolJournal, CommittedRecordsComeBackInOrder) {
  user_->append(1, 3);
  EXPECT_TRUE(user_->journal().dirty());
  EXPECT_EQ(user_->journal().durable(), 0U);
  EXPECT_EQ(user_->commit(), 0);
  EXPECT_FALSE(user_->journal().dirty());
  EXPECT_EQ(user_->journal().durable(), 3U);
  user_->append(4, 500);
  EXPECT_EQ(user_->commit(), 0);
  user_->append(501, 600);  // never committed

  EXPECT_EQ(reopen(), 0);
  EXPECT_EQ(user_->records, numbers(1, 500));
  EXPECT_EQ(user_->position.sequence, 6U);  // 3; 144, 144, 144, 65
  EXPECT_EQ(user_->position.next_record, 501U);
  user_->append(501, 502);
  EXPECT_EQ(user_->commit(), 0);
  EXPECT_EQ(reopen(), 0);
  EXPECT_EQ(user_->records, numbers(1, 502));
}

TEST_F(LvolJournal, FlushesDataBeforeThePagesAndPagesBeforeItSaysSo) {
  user_->append(1, 1);
  disk_.hold = true;
  int code = 0;
  user_->begin_commit(code);
  EXPECT_THAT(disk_.seen, ElementsAre(kFlush));
  let_go();
  EXPECT_THAT(disk_.seen, ElementsAre(kFlush, pages(0, 1)));
  let_go();
  EXPECT_THAT(disk_.seen, ElementsAre(kFlush, pages(0, 1), kFlush));
  EXPECT_EQ(code, -1);
  EXPECT_EQ(user_->journal().durable(), 0U);
  let_go();
  EXPECT_EQ(code, 0);
  EXPECT_EQ(user_->journal().durable(), 1U);
}

TEST_F(LvolJournal, WithoutRecordsACommitIsAFlush) {
  EXPECT_EQ(user_->commit(), 0);
  EXPECT_THAT(disk_.seen, ElementsAre(kFlush));
}

TEST_F(LvolJournal, CommitsThatWaitAreOne) {
  user_->append(1, 1);
  disk_.hold = true;
  int first = 0;
  user_->begin_commit(first);
  user_->append(2, 2);
  int second = 0;
  int third = 0;
  user_->begin_commit(second);
  user_->append(3, 3);
  user_->begin_commit(third);
  // The data of the second may have completed after the flush was submitted: it needs one of its own.
  for (int i = 0; i < 3; ++i) let_go();
  EXPECT_EQ(first, 0);
  EXPECT_EQ(second, -1);
  EXPECT_EQ(user_->journal().durable(), 1U);
  for (int i = 0; i < 3; ++i) let_go();
  EXPECT_EQ(second, 0);
  EXPECT_EQ(third, 0);
  EXPECT_THAT(disk_.seen, ElementsAre(kFlush, pages(0, 1), kFlush, kFlush, pages(1, 1), kFlush));
  disk_.hold = false;
  EXPECT_EQ(reopen(), 0);
  EXPECT_EQ(user_->records, numbers(1, 3));
}

TEST_F(LvolJournal, TellsWhatIsDurable) {
  std::vector<RecordNumber> told;
  user_->on([&] { user_->journal().on_durable([&](RecordNumber durable) { told.push_back(durable); }); });
  user_->append(1, 2);
  EXPECT_EQ(user_->commit(), 0);
  user_->append(3, 9);
  EXPECT_EQ(user_->commit(), 0);
  EXPECT_THAT(told, ElementsAre(2, 9));
}

TEST_F(LvolJournal, AdjacentPagesAreOneRequest) {
  use_ring(150);
  user_->append(1, 10 * kRecordsPerPage);
  EXPECT_EQ(user_->commit(), 0);
  EXPECT_THAT(disk_.seen, ElementsAre(kFlush, pages(0, 10), kFlush));
  disk_.seen.clear();
  user_->append(1, 130 * kRecordsPerPage);
  EXPECT_EQ(user_->journal().pending_pages(), 130U);
  EXPECT_EQ(user_->commit(), 0);
  EXPECT_THAT(disk_.seen, ElementsAre(kFlush, pages(10, 54), pages(64, 64), pages(128, 12), kFlush));
  // Around the end of the ring.
  user_->on([&] { user_->journal().release_before(user_->journal().cut()); });
  disk_.seen.clear();
  user_->append(1, 20 * kRecordsPerPage);
  EXPECT_EQ(user_->commit(), 0);
  EXPECT_THAT(disk_.seen, ElementsAre(kFlush, pages(140, 10), pages(0, 10), kFlush));
}

TEST_F(LvolJournal, WritesOfOneCommitAreInFlightTogether) {
  use_ring(800);
  user_->append(1, 700 * kRecordsPerPage);
  disk_.hold = true;
  int code = 0;
  user_->begin_commit(code);
  let_go();
  EXPECT_EQ(disk_.held.size(), 8U);  // of 11
  let_go();
  EXPECT_EQ(disk_.held.size(), 8U);
  // The flush waits for all of them.
  for (int i = 0; i < 10; ++i) let_go();
  EXPECT_EQ(disk_.seen.back(), kFlush);
  EXPECT_EQ(disk_.held.size(), 1U);
  let_go();
  EXPECT_EQ(code, 0);
  disk_.hold = false;
  EXPECT_EQ(reopen(), 0);
  EXPECT_EQ(user_->records, numbers(1, 700 * kRecordsPerPage));
}

TEST_F(LvolJournal, AfterAnErrorNothingIsDurableAnyMore) {
  user_->append(1, 1);
  EXPECT_EQ(user_->commit(), 0);
  for (const size_t step : {0U, 1U, 2U}) {
    SCOPED_TRACE(step);
    user_->append(2, 2);
    disk_.hold = true;
    int code = 0;
    int waiting = 0;
    user_->begin_commit(code);
    user_->begin_commit(waiting);
    for (size_t i = 0; i < step; ++i) let_go();
    disk_.answer = IoStatus::kFailed;
    let_go();
    disk_.answer = IoStatus::kOk;
    disk_.hold = false;
    EXPECT_EQ(code, EIO);
    EXPECT_EQ(waiting, EIO);
    EXPECT_EQ(user_->commit(), EIO);
    EXPECT_EQ(user_->journal().durable(), 1U);
    // Reopening tells what there is.
    EXPECT_EQ(reopen(), 0);
    EXPECT_EQ(user_->records, step == 2 ? numbers(1, 2) : numbers(1, 1));
    user_->open(superblock_, {.sequence = 2, .previous_crc = header_at(0).crc, .next_record = 2, .first_sequence = 1});
  }
}

TEST_F(LvolJournal, ADeviceThatHasGoneIsNamed) {
  user_->append(1, 1);
  disk_.answer = IoStatus::kRemoved;
  EXPECT_EQ(user_->commit(), ENODEV);
  disk_.answer = IoStatus::kOk;
}

TEST_F(LvolJournal, ReplayTellsErrors) {
  user_->append(1, 1);
  EXPECT_EQ(user_->commit(), 0);
  user_->close();
  disk_.answer = IoStatus::kFailed;
  EXPECT_EQ(user_->replay(superblock_), EIO);
  disk_.answer = IoStatus::kOk;
  const auto replayed = world_.hosts.await(
      world_.app(), replay_journal(superblock_, user_->io(), [](const Record&) { return fail(ENOSPC, "full"); }));
  ASSERT_FALSE(replayed);
  EXPECT_EQ(replayed.error().code, ENOSPC);
}

TEST_F(LvolJournal, WhatWasReplayedIsFlushed) {
  user_->append(1, 1);
  EXPECT_EQ(user_->commit(), 0);
  disk_.seen.clear();
  EXPECT_EQ(reopen(), 0);
  EXPECT_EQ(disk_.seen.back(), kFlush);
}

TEST_F(LvolJournal, ClosingWaitsForTheCommit) {
  user_->append(1, 1);
  disk_.hold = true;
  int code = 0;
  bool closed = false;
  user_->begin_commit(code);
  user_->on([&] { start(user_->journal().close(), [&] { closed = true; }); });
  for (int i = 0; i < 2; ++i) let_go();
  EXPECT_FALSE(closed);
  let_go();
  EXPECT_TRUE(closed);
  EXPECT_EQ(code, 0);
  user_->forget();
}

// --- Room ---

TEST_F(LvolJournal, KeepsPagesInReserve) {
  // A sixteenth of the ring, but 4 at least.
  for (const auto [ring, reserve] : {std::pair{8U, 4U}, {32U, 4U}, {160U, 10U}}) {
    use_ring(ring);
    uint32_t pages = 0;
    while (user_->journal().has_room()) {
      user_->append(1, kRecordsPerPage);
      ++pages;
    }
    EXPECT_EQ(pages, ring - reserve);
    EXPECT_EQ(user_->journal().used_percent(), pages * 100 / ring);
    // A commit needs no room, but makes none: only a checkpoint does.
    EXPECT_EQ(user_->commit(), 0);
    EXPECT_FALSE(user_->journal().has_room());
    for (uint32_t i = 0; i < reserve; ++i) {
      EXPECT_TRUE(user_->journal().has_reserve());
      user_->append(1, 1);
      EXPECT_EQ(user_->commit(), 0);
    }
    EXPECT_FALSE(user_->journal().has_reserve());
    EXPECT_EQ(user_->journal().used_percent(), 100U);
    // All of the ring is in use, and read back.
    EXPECT_EQ(reopen(), 0);
    EXPECT_EQ(user_->records.size(), pages * kRecordsPerPage + reserve);
    EXPECT_FALSE(user_->journal().has_reserve());

    user_->on([&] { user_->journal().release_before(user_->journal().cut()); });
    EXPECT_TRUE(user_->journal().has_room());
    EXPECT_EQ(user_->journal().used_percent(), 0U);
  }
}

TEST_F(LvolJournal, APageThatIsNotWrittenYetIsNotWrittenOverEither) {
  use_ring(8);
  user_->append(1, 3 * kRecordsPerPage);
  // A checkpoint has all of it; but it is still to be written.
  user_->on([&] { user_->journal().release_before(user_->journal().cut()); });
  user_->append(1, kRecordsPerPage);
  EXPECT_FALSE(user_->journal().has_room());
  EXPECT_EQ(user_->journal().pending_pages(), 4U);
  EXPECT_EQ(user_->commit(), 0);
  EXPECT_TRUE(user_->journal().has_room());
  EXPECT_EQ(user_->journal().used_percent(), 12U);
}

// --- Checkpoints ---

TEST_F(LvolJournal, ReplayBeginsAtTheCut) {
  user_->append(1, 200);
  const Journal::Position cut = user_->cut();
  EXPECT_EQ(cut.sequence, 3U);
  EXPECT_EQ(cut.next_record, 201U);
  user_->append(201, 210);
  EXPECT_EQ(user_->commit(), 0);
  EXPECT_EQ(reopen(), 0);
  EXPECT_EQ(user_->records, numbers(1, 210));
  begin_at(superblock_, cut);
  EXPECT_EQ(reopen(), 0);
  EXPECT_EQ(user_->records, numbers(201, 210));
}

TEST_F(LvolJournal, ACutWhileACommitRunsIsBehindIt) {
  user_->append(1, 1);
  disk_.hold = true;
  int code = 0;
  user_->begin_commit(code);
  user_->append(2, 2);
  const Journal::Position cut = user_->cut();
  user_->append(3, 3);
  for (int i = 0; i < 3; ++i) let_go();
  EXPECT_EQ(code, 0);
  disk_.hold = false;
  EXPECT_EQ(user_->commit(), 0);
  EXPECT_EQ(reopen(), 0);
  EXPECT_EQ(user_->records, numbers(1, 3));
  begin_at(superblock_, cut);
  EXPECT_EQ(reopen(), 0);
  EXPECT_EQ(user_->records, numbers(3, 3));
}

TEST_F(LvolJournal, GoesRoundTheRing) {
  use_ring(8);
  uint32_t next = 1;
  for (int checkpoint = 0; checkpoint < 30; ++checkpoint) {
    const uint32_t first = next;
    for (int commit = 0; commit < 3; ++commit) {
      user_->append(next, next + 9);
      next += 10;
      EXPECT_EQ(user_->commit(), 0);
    }
    EXPECT_EQ(reopen(), 0);
    ASSERT_EQ(user_->records, numbers(first, next - 1));
    const Journal::Position cut = user_->cut();
    begin_at(superblock_, cut);
    user_->journal().release_before(cut);
  }
  EXPECT_EQ(user_->position.sequence, 91U);
}

// --- Damage, and what only looks like it ---

TEST_F(LvolJournal, APageThatWasDurableMustBeThere) {
  for (uint32_t number = 1; number <= 5; ++number) {
    user_->append(number, number);
    EXPECT_EQ(user_->commit(), 0);
  }
  user_->close();
  for (uint64_t slot = 0; slot < 4; ++slot) {
    damage(slot);
    EXPECT_EQ(user_->replay(superblock_), EILSEQ) << slot;
    damage(slot);
  }
  // Of the last one nobody knows.
  damage(4);
  EXPECT_EQ(user_->replay(superblock_), 0);
  EXPECT_EQ(user_->records, numbers(1, 4));
}

TEST_F(LvolJournal, ADamagedPageIsFoundHoweverFarBehindItTheProofIs) {
  use_ring(800);
  user_->append(1, 600 * kRecordsPerPage);
  EXPECT_EQ(user_->commit(), 0);
  user_->append(1, 1);
  EXPECT_EQ(user_->commit(), 0);
  user_->close();
  damage(0);
  EXPECT_EQ(user_->replay(superblock_), EILSEQ);
}

TEST_F(LvolJournal, ASuperblockThatTheRingHasLeftBehindIsFound) {
  use_ring(8);
  for (uint32_t number = 1; number <= 12; ++number) {
    user_->append(number, number);
    EXPECT_EQ(user_->commit(), 0);
    user_->on([&] { user_->journal().release_before(user_->journal().cut()); });
  }
  user_->close();
  EXPECT_EQ(user_->replay(superblock_), EILSEQ);
}

TEST_F(LvolJournal, ATornCommitEndsAtItsFirstLostPage) {
  user_->append(1, 1);
  EXPECT_EQ(user_->commit(), 0);
  user_->append(2, 1 + 5 * kRecordsPerPage);
  EXPECT_EQ(user_->commit(), 0);
  user_->close();
  for (uint64_t slot = 5; slot > 0; --slot) {
    damage(slot);
    EXPECT_EQ(user_->replay(superblock_), 0);
    EXPECT_EQ(user_->records, numbers(1, static_cast<uint32_t>(1 + (slot - 1) * kRecordsPerPage)));
  }
}

TEST_F(LvolJournal, APageIsNotTheSuccessorOfOneThatWasWrittenAgain) {
  // Pages 2 and 3 are one commit, of which a power failure leaves page 3.
  user_->append(1, 1);
  EXPECT_EQ(user_->commit(), 0);
  std::vector<std::byte> before;
  copy_slots(1, 1, before);
  user_->append(2, 1 + 2 * kRecordsPerPage);
  EXPECT_EQ(user_->commit(), 0);
  ASSERT_EQ(header_at(2).sequence, 3U);
  restore_slots(1, before);

  EXPECT_EQ(reopen(), 0);
  EXPECT_EQ(user_->records, numbers(1, 1));
  // Then page 2 is written again, once with the very same records.
  std::vector<std::byte> crashed;
  copy_slots(0, 8, crashed);
  for (const uint32_t first : {2U, 1000U}) {
    restore_slots(0, crashed);
    EXPECT_EQ(reopen(), 0);
    user_->append(first, first + kRecordsPerPage - 1);
    EXPECT_EQ(user_->commit(), 0);
    ASSERT_EQ(header_at(2).sequence, 3U);
    EXPECT_EQ(reopen(), 0);
    EXPECT_EQ(user_->records.size(), 1 + kRecordsPerPage);
    EXPECT_EQ(user_->position.sequence, 3U);
    // It goes on, over the old one.
    user_->append(5000, 5000);
    EXPECT_EQ(user_->commit(), 0);
    EXPECT_EQ(reopen(), 0);
    EXPECT_EQ(user_->records.size(), 2 + kRecordsPerPage);
    EXPECT_EQ(user_->records.back(), 5000U);
  }
}

TEST_F(LvolJournal, PagesOfAnotherStoreAreNotReplayed) {
  user_->append(1, 1);
  EXPECT_EQ(user_->commit(), 0);
  superblock_.uuid = Uuid{{7}};
  EXPECT_EQ(reopen(), 0);
  EXPECT_TRUE(user_->records.empty());
}

}  // namespace
}  // namespace sluice::lvol
