#include "lib/base/intrusive_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <vector>

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

struct RedTag;
struct BlueTag;

struct Item : ListHook<RedTag>, ListHook<BlueTag> {
  explicit Item(int n) : number(n) {}
  int number;
};

template <typename Tag>
std::vector<int> numbers(List<Item, Tag>& list) {
  std::vector<int> seen;
  list.for_each([&seen](Item& item) { seen.push_back(item.number); });
  return seen;
}

TEST(List, KeepsTheOrderOfPushes) {
  Item one(1);
  Item two(2);
  Item three(3);
  List<Item, RedTag> list;
  EXPECT_TRUE(list.empty());
  list.push_back(two);
  list.push_back(three);
  list.push_front(one);
  EXPECT_FALSE(list.empty());
  EXPECT_EQ(list.front().number, 1);
  EXPECT_THAT(numbers(list), ElementsAre(1, 2, 3));
  EXPECT_EQ(list.pop_front(), &one);
  EXPECT_EQ(list.pop_front(), &two);
  EXPECT_EQ(list.pop_front(), &three);
  EXPECT_EQ(list.pop_front(), nullptr);
  EXPECT_TRUE(list.empty());
}

TEST(List, TakesAllOfAnother) {
  std::vector<std::unique_ptr<Item>> items;
  for (int i = 0; i < 5; ++i) items.push_back(std::make_unique<Item>(i));
  List<Item, RedTag> list;
  List<Item, RedTag> other;
  list.take_all(other);
  EXPECT_TRUE(list.empty());
  other.push_back(*items[0]);
  other.push_back(*items[1]);
  list.take_all(other);
  EXPECT_THAT(numbers(list), ElementsAre(0, 1));
  EXPECT_TRUE(other.empty());
  other.push_back(*items[2]);
  list.take_all(other);
  list.push_back(*items[3]);
  other.push_back(*items[4]);
  EXPECT_THAT(numbers(list), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(numbers(other), ElementsAre(4));
  items[2].reset();
  EXPECT_THAT(numbers(list), ElementsAre(0, 1, 3));
}

TEST(List, ElementIsInSeveralListsAtOnce) {
  Item one(1);
  Item two(2);
  List<Item, RedTag> red;
  List<Item, BlueTag> blue;
  red.push_back(one);
  red.push_back(two);
  blue.push_back(two);
  blue.push_back(one);
  one.ListHook<RedTag>::unlink();
  EXPECT_THAT(numbers(red), ElementsAre(2));
  EXPECT_THAT(numbers(blue), ElementsAre(2, 1));
  EXPECT_FALSE(one.ListHook<RedTag>::linked());
  EXPECT_TRUE(one.ListHook<BlueTag>::linked());
}

TEST(List, ElementLeavesTheListWhenItIsDestroyed) {
  List<Item, RedTag> list;
  Item one(1);
  list.push_back(one);
  {
    Item two(2);
    list.push_back(two);
  }
  EXPECT_THAT(numbers(list), ElementsAre(1));
}

TEST(List, LetsGoOfItsElementsWhenItIsDestroyed) {
  Item one(1);
  Item two(2);
  {
    List<Item, RedTag> list;
    list.push_back(one);
    list.push_back(two);
  }
  EXPECT_FALSE(one.ListHook<RedTag>::linked());
  EXPECT_FALSE(two.ListHook<RedTag>::linked());
  List<Item, RedTag> other;
  other.push_back(two);
  EXPECT_THAT(numbers(other), ElementsAre(2));
}

TEST(List, UnlinkingTwiceIsHarmless) {
  Item one(1);
  List<Item, RedTag> list;
  list.push_back(one);
  one.ListHook<RedTag>::unlink();
  one.ListHook<RedTag>::unlink();
  EXPECT_TRUE(list.empty());
}

TEST(List, ForEachMayUnlinkOrDestroyItsElement) {
  List<Item, RedTag> list;
  std::vector<std::unique_ptr<Item>> items;
  for (int i = 0; i < 6; ++i) {
    items.push_back(std::make_unique<Item>(i));
    list.push_back(*items.back());
  }
  list.for_each([&items](Item& item) {
    if (item.number % 3 == 0) item.ListHook<RedTag>::unlink();
    if (item.number % 3 == 1) items[static_cast<size_t>(item.number)].reset();
  });
  EXPECT_THAT(numbers(list), ElementsAre(2, 5));
}

TEST(ListDeathTest, RefusesAnElementThatIsLinkedAlready) {
  Item one(1);
  List<Item, RedTag> list;
  list.push_back(one);
  EXPECT_DEATH(list.push_back(one), "CHECK failed");
}

struct Job {
  explicit Job(int n) : number(n) {}
  int number;
  Job* next = nullptr;
};

std::vector<int> drain(Fifo<Job>& fifo) {
  std::vector<int> seen;
  while (const Job* job = fifo.pop_front()) seen.push_back(job->number);
  return seen;
}

TEST(Fifo, IsFirstInFirstOut) {
  Job one(1);
  Job two(2);
  Job three(3);
  Fifo<Job> fifo;
  EXPECT_TRUE(fifo.empty());
  EXPECT_EQ(fifo.front(), nullptr);
  fifo.push_back(two);
  fifo.push_back(three);
  fifo.push_front(one);
  EXPECT_EQ(fifo.front(), &one);
  EXPECT_THAT(drain(fifo), ElementsAre(1, 2, 3));
  EXPECT_TRUE(fifo.empty());
}

TEST(Fifo, TakesElementsBackAfterItWasEmptied) {
  Job one(1);
  Job two(2);
  Fifo<Job> fifo;
  fifo.push_front(one);
  EXPECT_EQ(fifo.pop_front(), &one);
  fifo.push_back(one);
  fifo.push_back(two);
  EXPECT_EQ(fifo.pop_front(), &one);
  fifo.push_back(one);
  EXPECT_THAT(drain(fifo), ElementsAre(2, 1));
}

TEST(Fifo, HandsItsElementsOverWhenMoved) {
  Job one(1);
  Job two(2);
  Job three(3);
  Fifo<Job> source;
  source.push_back(one);
  source.push_back(two);
  Fifo<Job> taken = std::move(source);
  source.push_back(three);  // NOLINT(bugprone-use-after-move): a moved-from Fifo is empty
  taken.push_back(source.front() == &three ? *source.pop_front() : one);
  EXPECT_THAT(drain(taken), ElementsAre(1, 2, 3));
  EXPECT_THAT(drain(source), IsEmpty());
}

}  // namespace
}  // namespace sluice
