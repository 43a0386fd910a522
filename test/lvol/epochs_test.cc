#include "lib/lvol/epochs.h"

#include <gtest/gtest.h>

namespace sluice::lvol {
namespace {

TEST(Epochs, AreOverAtOnceWhenNobodyIsIn) {
  Epochs epochs;
  const uint64_t ended = epochs.advance();
  EXPECT_EQ(epochs.current(), ended + 1);
  EXPECT_EQ(epochs.oldest(), epochs.current());
  EXPECT_GT(epochs.oldest(), ended);
}

TEST(Epochs, AnEpochLastsUntilEveryReaderHasLeftIt) {
  Epochs epochs;
  EpochReader one(epochs);
  EpochReader two(epochs);
  EpochUse of_one;
  EpochUse of_two;
  one.enter(of_one);
  const uint64_t first = epochs.advance();
  two.enter(of_two);
  const uint64_t second = epochs.advance();
  EXPECT_EQ(epochs.oldest(), first);
  one.leave(of_one);
  EXPECT_EQ(epochs.oldest(), second);
  two.leave(of_two);
  EXPECT_EQ(epochs.oldest(), epochs.current());
}

TEST(Epochs, AReaderIsAsOldAsTheOldestOfItsUses) {
  Epochs epochs;
  EpochReader reader(epochs);
  EpochUse uses[3];
  const uint64_t first = epochs.current();
  for (EpochUse& use : uses) {
    reader.enter(use);
    epochs.advance();
  }
  reader.leave(uses[1]);  // not the oldest: changes nothing
  EXPECT_EQ(epochs.oldest(), first);
  reader.leave(uses[0]);
  EXPECT_EQ(epochs.oldest(), first + 2);
  reader.enter(uses[0]);  // anew: now it is the youngest
  EXPECT_EQ(epochs.oldest(), first + 2);
  reader.leave(uses[2]);
  EXPECT_EQ(epochs.oldest(), epochs.current());
  reader.leave(uses[0]);
}

TEST(Epochs, AnEpochLastsUntilAllUsesHaveLeftIt) {
  Epochs epochs;
  EpochReader reader(epochs);
  EpochUse uses[4];
  const uint64_t first = epochs.current();
  reader.enter(uses[0]);
  reader.enter(uses[1]);
  epochs.advance();
  reader.enter(uses[2]);
  reader.enter(uses[3]);
  reader.leave(uses[0]);
  EXPECT_EQ(epochs.oldest(), first);
  reader.leave(uses[3]);
  EXPECT_EQ(epochs.oldest(), first);
  reader.leave(uses[1]);
  EXPECT_EQ(epochs.oldest(), first + 1);
  epochs.advance();
  EXPECT_EQ(epochs.oldest(), first + 1);
  reader.leave(uses[2]);
  EXPECT_EQ(epochs.oldest(), epochs.current());
}

TEST(Epochs, ReadersComeAndGo) {
  Epochs epochs;
  EpochUse use;
  {
    EpochReader reader(epochs);
    reader.enter(use);
    epochs.advance();
    EXPECT_LT(epochs.oldest(), epochs.current());
    reader.leave(use);
  }
  EXPECT_EQ(epochs.oldest(), epochs.current());
}

TEST(EpochsDeathTest, AReaderMayNotGoWithSomethingInUse) {
  Epochs epochs;
  EpochUse use;
  EXPECT_DEATH(
      {
        EpochReader reader(epochs);
        reader.enter(use);
      },
      "uses_.empty");
}

}  // namespace
}  // namespace sluice::lvol
