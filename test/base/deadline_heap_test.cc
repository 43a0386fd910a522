#include "lib/base/deadline_heap.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

struct Alarm : HeapEntry {};

TEST(DeadlineHeap, IsEmptyAtFirst) {
  const DeadlineHeap<Alarm> heap;
  EXPECT_TRUE(heap.empty());
  EXPECT_EQ(heap.size(), 0U);
  EXPECT_EQ(heap.earliest_deadline_ns(), UINT64_MAX);
}

TEST(DeadlineHeap, ShowsTheEarliestWhateverTheOrderOfInsertion) {
  std::vector<uint64_t> deadlines = {10, 20, 30, 40};
  do {
    std::vector<Alarm> alarms(deadlines.size());
    DeadlineHeap<Alarm> heap;
    for (size_t i = 0; i < alarms.size(); ++i) heap.set(alarms[i], deadlines[i]);
    std::vector<uint64_t> order;
    while (!heap.empty()) {
      order.push_back(heap.earliest_deadline_ns());
      heap.remove(heap.earliest());
    }
    EXPECT_THAT(order, ElementsAre(10, 20, 30, 40));
  } while (std::ranges::next_permutation(deadlines).found);
}

TEST(DeadlineHeap, MovesAnElementThatIsSetAgain) {
  Alarm a;
  Alarm b;
  DeadlineHeap<Alarm> heap;
  heap.set(a, 10);
  heap.set(b, 20);
  heap.set(a, 30);
  EXPECT_EQ(heap.size(), 2U);
  EXPECT_EQ(&heap.earliest(), &b);
  heap.set(a, 5);
  EXPECT_EQ(&heap.earliest(), &a);
  EXPECT_EQ(a.deadline_ns(), 5U);
}

TEST(DeadlineHeap, ForgetsWhatIsRemoved) {
  Alarm a;
  DeadlineHeap<Alarm> heap;
  heap.remove(a);  // never was in it: harmless
  heap.set(a, 10);
  EXPECT_TRUE(a.in_heap());
  heap.remove(a);
  EXPECT_FALSE(a.in_heap());
  EXPECT_TRUE(heap.empty());
  heap.remove(a);
  EXPECT_TRUE(heap.empty());
}

TEST(DeadlineHeap, VisitsAll) {
  Alarm a;
  Alarm b;
  DeadlineHeap<Alarm> heap;
  heap.set(a, 2);
  heap.set(b, 1);
  std::vector<const Alarm*> seen;
  heap.for_each([&seen](const Alarm& alarm) { seen.push_back(&alarm); });
  EXPECT_THAT(seen, UnorderedElementsAre(&a, &b));
}

TEST(DeadlineHeap, AgreesWithASortedListUnderRandomUse) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    constexpr size_t kAlarms = 64;
    std::vector<Alarm> alarms(kAlarms);
    std::vector<uint64_t> model(kAlarms, UINT64_MAX);  // UINT64_MAX: not in the heap
    DeadlineHeap<Alarm> heap;
    for (int step = 0; step < 2000; ++step) {
      const size_t i = random() % kAlarms;
      switch (random() % 3) {
        case 0:
          heap.remove(alarms[i]);
          model[i] = UINT64_MAX;
          break;
        default:
          model[i] = random() % 100;
          heap.set(alarms[i], model[i]);
      }
      ASSERT_EQ(heap.earliest_deadline_ns(), *std::ranges::min_element(model));
      ASSERT_EQ(heap.size(), kAlarms - static_cast<size_t>(std::ranges::count(model, UINT64_MAX)));
      ASSERT_EQ(alarms[i].in_heap(), model[i] != UINT64_MAX);
    }
  }
}

}  // namespace
}  // namespace sluice
