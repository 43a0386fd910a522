#include "lib/reactor/message_ring.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

namespace sluice {
namespace {

struct Numbered : Message {
  size_t sender = 0;
  size_t number = 0;
};

TEST(MessageRing, GivesOutWhatWasPutInOldestFirst) {
  MessageRing ring(8);
  EXPECT_TRUE(ring.empty());
  Message messages[3];
  for (Message& message : messages) EXPECT_TRUE(ring.push(message));
  EXPECT_FALSE(ring.empty());
  Message* popped[8];
  ASSERT_EQ(ring.pop(popped, 2), 2U) << "no more than was asked for";
  EXPECT_EQ(popped[0], &messages[0]);
  EXPECT_EQ(popped[1], &messages[1]);
  ASSERT_EQ(ring.pop(popped, 8), 1U) << "no more than there is";
  EXPECT_EQ(popped[0], &messages[2]);
  EXPECT_EQ(ring.pop(popped, 8), 0U);
  EXPECT_TRUE(ring.empty());
}

TEST(MessageRing, RefusesWhenFullAndTakesAgainWhenThereIsRoom) {
  MessageRing ring(8);
  Message messages[8];
  for (int i = 0; i < 7; ++i) EXPECT_TRUE(ring.push(messages[i]));
  EXPECT_FALSE(ring.push(messages[7])) << "one place less than its capacity";
  Message* popped[8];
  EXPECT_EQ(ring.pop(popped, 1), 1U);
  EXPECT_TRUE(ring.push(messages[7]));
  EXPECT_FALSE(ring.push(messages[0]));
  EXPECT_EQ(ring.pop(popped, 8), 7U);
  EXPECT_EQ(popped[6], &messages[7]);
}

TEST(MessageRing, GoesRoundManyTimes) {
  MessageRing ring(4);
  Numbered messages[3];
  Message* popped[4];
  for (size_t i = 0; i < 1000; ++i) {
    Numbered& message = messages[i % 3];
    message.number = i;
    ASSERT_TRUE(ring.push(message));
    ASSERT_EQ(ring.pop(popped, 4), 1U);
    ASSERT_EQ(static_cast<Numbered*>(popped[0])->number, i);
  }
}

TEST(MessageRing, LosesNothingAndKeepsTheOrderOfEachProducer) {
  constexpr size_t kProducers = 4;
  constexpr size_t kEach = 20'000;
  MessageRing ring(64);  // small, so that it is full most of the time
  std::vector<std::vector<Numbered>> messages(kProducers);
  std::vector<std::thread> producers;
  for (size_t sender = 0; sender < kProducers; ++sender) {
    messages[sender] = std::vector<Numbered>(kEach);
    producers.emplace_back([&ring, &mine = messages[sender], sender] {
      for (size_t i = 0; i < kEach; ++i) {
        mine[i].sender = sender;
        mine[i].number = i;
        while (!ring.push(mine[i])) std::this_thread::yield();
      }
    });
  }
  size_t next[kProducers] = {};
  for (size_t total = 0; total < kProducers * kEach;) {
    Message* popped[16];
    const size_t count = ring.pop(popped, 16);
    if (count == 0) std::this_thread::yield();
    for (size_t i = 0; i < count; ++i) {
      const auto& message = static_cast<Numbered&>(*popped[i]);
      ASSERT_EQ(message.number, next[message.sender]++);
    }
    total += count;
  }
  for (std::thread& producer : producers) producer.join();
  EXPECT_TRUE(ring.empty());
}

}  // namespace
}  // namespace sluice
