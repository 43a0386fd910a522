#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <span>
#include <vector>

#include "test/lvol/crash_disk.h"
#include "test/lvol/journal_user.h"

namespace sluice::lvol {
namespace {

// Appends and commits at random, with checkpoints, until the power fails; then looks at what is there. Three times.
void survive(uint64_t seed, uint64_t cut_change, CutMode mode) {
  SCOPED_TRACE(testing::Message() << "seed " << seed << ", cut at " << cut_change << ", mode " << int(mode));
  std::mt19937_64 random(seed);
  CrashStore store({.size_bytes = 1U << 20, .block_bytes = random() % 2 == 0 ? 512U : 4096U, .seed = seed});
  Superblock superblock = superblock_of(12);
  // Of each record: the number it was given; and what was promised.
  std::vector<uint32_t> appended;
  uint64_t promised = 0;
  uint32_t next = 1;
  uint64_t begin = 0;  // how many of them are before the superblock's position

  for (int life = 0; life < 4; ++life) {
    BdevWorld world;
    world.add(std::make_unique<CrashDisk>("disk", store));
    JournalUser user(world);
    ASSERT_EQ(user.replay(superblock), 0);
    // What was promised is there, nothing of it changed; what is there beyond that was appended.
    ASSERT_GE(user.records.size(), promised - std::min(promised, begin));
    ASSERT_LE(begin + user.records.size(), appended.size());
    appended.resize(begin + user.records.size());
    ASSERT_TRUE(std::ranges::equal(user.records, std::span(appended).subspan(begin)));
    ASSERT_EQ(user.position.next_record, appended.size() + 1);
    if (life == 3) return;

    promised = appended.size();
    user.open(superblock, user.position);
    store.cut_at(store.changes() + cut_change, mode);
    while (!store.cut()) {
      Journal& journal = user.journal();
      for (uint64_t count = random() % 300; count > 0 && journal.has_room(); --count) {
        appended.push_back(next);
        user.append(next, next);
        ++next;
      }
      const uint64_t before = appended.size();
      int code = -1;
      user.begin_commit(code);
      // Some come while it runs.
      for (uint64_t count = random() % 3; count > 0 && journal.has_room(); --count) {
        appended.push_back(next);
        user.append(next, next);
        ++next;
      }
      user.finish([&] { return code != -1; });
      if (code == 0) {
        promised = before;
        ASSERT_GE(journal.durable(), promised);
      }
      if (code == 0 && (random() % 4 == 0 || !journal.has_room())) {
        // As after a checkpoint.
        const Journal::Position cut = user.cut();
        ASSERT_EQ(cut.next_record, appended.size() + 1);
        begin_at(superblock, cut);
        begin = appended.size();
        promised = begin;
        user.on([&] { journal.release_before(cut); });
      }
    }
    user.close();
    store.power_on();
  }
}

TEST(LvolJournalCrash, KeepsItsPromisesWhereverThePowerFails) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    for (uint32_t mode = 0; mode < kCutModes; ++mode) {
      survive(seed, seed % 40 + 1, static_cast<CutMode>(mode));
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace sluice::lvol
