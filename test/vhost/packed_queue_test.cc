// The packed virtqueue by itself: the device's side against a driver in the same thread, right and wrong.
// Source: VIRTIO 1.2, "Packed Virtqueues".
#include "lib/vhost/packed_queue.h"

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <random>

#include "app/conformance/ring_driver.h"

namespace sluice::test {
namespace {

using vhost::Chain;
using vhost::kDescIndirect;
using vhost::kDescNext;
using vhost::kDescWrite;
using vhost::PackedDesc;
using vhost::PackedQueue;
using vhost::RingFault;

constexpr uint64_t kFeatures = vhost::kFeatureRingPacked | vhost::kFeatureIndirectDesc | vhost::kFeatureEventIdx;

class PackedQueueTest : public ::testing::Test {
 public:
  void start(uint16_t size, uint16_t start_index = 0, uint64_t features = kFeatures) {
    memory_.release(nothing_allocated_);
    driver_ = std::make_unique<RingDriver>(memory_,
                                           RingDriver::Options{.size = size,
                                                               .packed = true,
                                                               .event_idx = (features & vhost::kFeatureEventIdx) != 0,
                                                               .start_index = start_index});
    vhost::MemoryMap map;
    const UniqueFd fd(::dup(memory_.fd()));
    for (const auto& region : memory_.regions()) map = map.with(region, fd, {}).value();
    map_ = std::move(map);
    queue_ = {};
    ASSERT_TRUE(queue_.attach(map_, driver_->vring_addr(0), size, features, driver_->base()));
    header_ = memory_.allocate(kHigh, 16);
    data_ = memory_.allocate(kHigh, 4096);
  }
  // Adds a chain of so many descriptors, the last one writable.
  uint16_t add(size_t descriptors = 1) {
    std::vector<Segment> segments(descriptors - 1, Segment{header_, 16});
    segments.push_back({data_, 512, true});
    return driver_->add_chain(segments);
  }
  RingFault pop() { return queue_.pop(chain_); }
  // One chain through and back. Returns whether the device would call.
  bool serve(size_t descriptors) {
    add(descriptors);
    driver_->publish();
    EXPECT_EQ(pop(), RingFault::kNone);
    queue_.push_used(chain_, 512);
    const bool call = queue_.publish();
    EXPECT_TRUE(driver_->poll_used());
    return call;
  }

 protected:
  GuestMemory memory_;
  const GuestMemory::Mark nothing_allocated_ = memory_.mark();
  vhost::MemoryMap map_;
  std::unique_ptr<RingDriver> driver_;
  PackedQueue queue_;
  std::vector<iovec> segments_;
  Chain chain_{.segments = &segments_};
  uint64_t header_ = 0, data_ = 0;
};

TEST_F(PackedQueueTest, TakesAChainWithAllItsBuffers) {
  start(8);
  EXPECT_FALSE(queue_.has_work());
  const uint16_t id = add(3);
  EXPECT_EQ(queue_.look(), 0) << "it is not published";
  driver_->publish();
  EXPECT_TRUE(queue_.has_work());
  EXPECT_EQ(queue_.look(), 1);
  ASSERT_EQ(pop(), RingFault::kNone);
  EXPECT_EQ(chain_.head, id);
  EXPECT_EQ(chain_.descriptors, 3);
  EXPECT_EQ(chain_.readable, 2U);
  EXPECT_EQ(chain_.readable_bytes, 32U);
  EXPECT_EQ(chain_.writable_bytes, 512U);
  EXPECT_EQ(segments_.size(), 3U);
  EXPECT_FALSE(queue_.has_work());
}

TEST_F(PackedQueueTest, ShowsNothingBeforeItPublishesAndThenEverything) {
  start(16);
  for (int i = 0; i < 4; i++) add(2);
  driver_->publish();
  for (int i = 0; i < 4; i++) {
    ASSERT_EQ(pop(), RingFault::kNone);
    queue_.push_used(chain_, 100 + static_cast<uint32_t>(i));
    EXPECT_FALSE(driver_->poll_used());
  }
  queue_.publish();
  for (uint32_t i = 0; i < 4; i++) {
    const auto used = driver_->poll_used();
    ASSERT_TRUE(used);
    EXPECT_EQ(used->len, 100 + i);
  }
  EXPECT_FALSE(driver_->poll_used());
  EXPECT_EQ(driver_->violation(), "");
  EXPECT_FALSE(queue_.publish()) << "there is nothing to tell";
}

// Chains of any length, given back in any order and any number at a time, many times round rings of any size.
TEST_F(PackedQueueTest, GoesRoundWithChainsOutOfOrder) {
  for (const uint16_t size : std::initializer_list<uint16_t>{4, 6, 16, 256}) {
    start(size, static_cast<uint16_t>(3 * size - 1));
    std::minstd_rand random(size);
    std::deque<std::pair<uint16_t, uint16_t>> taken;  // id, descriptors
    int completed = 0;
    for (int step = 0; step < 3000; step++) {
      const size_t descriptors = 1 + random() % 4;
      if (driver_->free_descriptors() >= descriptors) add(descriptors);
      if (random() % 2 == 0) driver_->publish();
      while (queue_.has_work() && random() % 3 != 0) {
        ASSERT_GT(queue_.look(), 0);
        ASSERT_EQ(pop(), RingFault::kNone);
        taken.emplace_back(chain_.head, chain_.descriptors);
      }
      while (!taken.empty() && random() % 3 != 0) {
        std::swap(taken.front(), taken[random() % taken.size()]);
        chain_.head = taken.front().first;
        chain_.descriptors = taken.front().second;
        queue_.push_used(chain_, chain_.head);
        taken.pop_front();
      }
      if (random() % 2 == 0) queue_.publish();
      while (const auto used = driver_->poll_used()) {
        EXPECT_EQ(used->len, used->id);
        completed++;
      }
      ASSERT_EQ(driver_->violation(), "") << "size " << size << ", step " << step;
    }
    EXPECT_GT(completed, 500) << size;
  }
}

TEST_F(PackedQueueTest, FollowsIndirectTables) {
  start(4);
  const std::vector<Segment> segments{{header_, 16}, {data_, 100, true}, {data_ + 100, 200, true}, {data_, 1, true}};
  for (int i = 0; i < 10; i++) {
    const uint16_t id = driver_->add_indirect(segments);
    driver_->publish();
    ASSERT_EQ(pop(), RingFault::kNone);
    EXPECT_EQ(chain_.head, id);
    EXPECT_EQ(chain_.descriptors, 1);
    EXPECT_EQ(segments_.size(), 4U);
    EXPECT_EQ(chain_.writable_bytes, 301U);
    queue_.push_used(chain_, 301);
    queue_.publish();
    ASSERT_TRUE(driver_->poll_used());
  }
}

TEST_F(PackedQueueTest, GathersAnIndirectTableThatCrossesRegions) {
  start(4);
  const auto& middle = memory_.regions()[kMiddle];
  const uint64_t table = middle.guest_address + middle.size - 24;
  memory_.write(table, bytes_of(PackedDesc{.addr = header_, .len = 16}) +
                           bytes_of(PackedDesc{.addr = data_, .len = 512, .flags = kDescWrite}));
  driver_->add_raw(std::vector<PackedDesc>{{.addr = table, .len = 32, .id = 2, .flags = kDescIndirect}});
  driver_->publish();
  ASSERT_EQ(pop(), RingFault::kNone);
  EXPECT_EQ(chain_.readable_bytes, 16U);
  EXPECT_EQ(chain_.writable_bytes, 512U);
}

// What is there is counted in chains, and not without end.
TEST_F(PackedQueueTest, CountsChains) {
  start(128);
  for (int i = 0; i < 5; i++) add(3);
  driver_->publish();
  EXPECT_EQ(queue_.look(), 5);
  for (int i = 0; i < 60; i++) add(1);
  driver_->publish();
  EXPECT_EQ(queue_.look(), vhost::kQueueBatch);
  for (int i = 0; i < 65; i++) ASSERT_EQ(pop(), RingFault::kNone);
  EXPECT_EQ(queue_.look(), 0);
}

// A chain as long as the ring leaves nothing behind it to be taken for available.
TEST_F(PackedQueueTest, TakesAChainAsLongAsTheRing) {
  start(4, 3);
  for (int i = 0; i < 9; i++) {
    add(4);
    driver_->publish();
    EXPECT_EQ(queue_.look(), 1);
    ASSERT_EQ(pop(), RingFault::kNone);
    EXPECT_FALSE(queue_.has_work());
    queue_.push_used(chain_, 1);
    queue_.publish();
    ASSERT_TRUE(driver_->poll_used());
  }
}

// ---- Event suppression: calls

TEST_F(PackedQueueTest, CallsAsTheDriversFlagsSay) {
  for (const uint64_t features : {kFeatures, kFeatures & ~vhost::kFeatureEventIdx}) {
    start(8, 0, features);
    for (int i = 0; i < 20; i++) {
      driver_->set_driver_event({.off_wrap = 0, .flags = vhost::kPackedEventDisable});
      EXPECT_FALSE(serve(2));
      driver_->set_driver_event({.off_wrap = 0, .flags = vhost::kPackedEventEnable});
      EXPECT_TRUE(serve(1));
    }
  }
}

// "Structure Size and Alignment"; DESC: exactly when the batch holds the descriptor that the driver has named. From all
// positions, for all batches and all names.
TEST_F(PackedQueueTest, CallsForTheNamedDescriptorAcrossTheWrap) {
  constexpr uint16_t kSize = 8;
  for (uint16_t from = 0; from < 2 * kSize; from++) {
    for (uint32_t batch = 1; batch <= kSize; batch++) {
      for (uint32_t ahead = 0; ahead < 2 * kSize; ahead++) {
        start(kSize, from);
        RingPosition named = driver_->used_position();
        named.advance(ahead % kSize, kSize);
        if (ahead >= kSize) named.wrap = !named.wrap;
        driver_->set_driver_event({.off_wrap = named.encoded(), .flags = vhost::kPackedEventDesc});
        for (uint32_t i = 0; i < batch; i++) add();
        driver_->publish();
        for (uint32_t i = 0; i < batch; i++) {
          ASSERT_EQ(pop(), RingFault::kNone);
          queue_.push_used(chain_, 1);
        }
        ASSERT_EQ(queue_.publish(), ahead < batch) << "from " << from << ", batch " << batch << ", ahead " << ahead;
      }
    }
  }
}

// Without EVENT_IDX, DESC is not to be used: then a call too many is better than one too few.
TEST_F(PackedQueueTest, CallsWhenTheWishMakesNoSense) {
  start(8, 0, kFeatures & ~vhost::kFeatureEventIdx);
  driver_->set_driver_event({.off_wrap = 5, .flags = vhost::kPackedEventDesc});
  EXPECT_TRUE(serve(1));
  driver_->set_driver_event({.off_wrap = 0, .flags = 3});
  EXPECT_TRUE(serve(1));
}

// ---- Event suppression: kicks

TEST_F(PackedQueueTest, AsksForAKickAtTheNextDescriptorAcrossTheWrap) {
  start(4, 1);
  for (int i = 0; i < 20; i++) {
    EXPECT_FALSE(queue_.enable_kicks());
    EXPECT_EQ(driver_->device_event().flags, vhost::kPackedEventDesc);
    EXPECT_EQ(driver_->device_event().off_wrap, driver_->avail_position().encoded());
    add(1);
    driver_->publish();
    EXPECT_TRUE(driver_->kick_needed());
    driver_->kick();
    add(2);
    driver_->publish();
    EXPECT_FALSE(driver_->kick_needed()) << "one kick is enough";
    queue_.disable_kicks();
    EXPECT_EQ(driver_->device_event().flags, vhost::kPackedEventDisable);
    EXPECT_FALSE(driver_->kick_needed());
    EXPECT_TRUE(queue_.enable_kicks()) << "there is work";
    for (int chains = 0; chains < 2; chains++) {
      ASSERT_EQ(pop(), RingFault::kNone);
      queue_.push_used(chain_, 1);
    }
    queue_.publish();
    ASSERT_TRUE(driver_->poll_used());
    ASSERT_TRUE(driver_->poll_used());
    driver_->kick();
  }
}

TEST_F(PackedQueueTest, AsksForAllKicksWithoutEventIdx) {
  start(4, 0, kFeatures & ~vhost::kFeatureEventIdx);
  EXPECT_FALSE(queue_.enable_kicks());
  EXPECT_EQ(driver_->device_event().flags, vhost::kPackedEventEnable);
  queue_.disable_kicks();
  EXPECT_EQ(driver_->device_event().flags, vhost::kPackedEventDisable);
}

// ---- Where it goes on

TEST_F(PackedQueueTest, TellsWhereItIs) {
  start(4);
  EXPECT_EQ(queue_.base(), 0x8000'8000U);
  add(3);
  driver_->publish();
  ASSERT_EQ(pop(), RingFault::kNone);
  EXPECT_EQ(queue_.base(), 0x8000'8003U);
  queue_.push_used(chain_, 1);
  EXPECT_EQ(queue_.base(), 0x8003'8003U);
  queue_.publish();
  driver_->poll_used();
  serve(2);
  EXPECT_EQ(queue_.base(), 0x0001'0001U);
}

TEST_F(PackedQueueTest, GoesOnWhereItIsTold) {
  start(8);
  const auto addresses = driver_->vring_addr(0);
  const auto attached_at = [&](uint32_t base) { return queue_.attach(map_, addresses, 8, kFeatures, base); };
  EXPECT_TRUE(attached_at(0x8002'0005));
  EXPECT_EQ(queue_.base(), 0x8002'0005U);
  EXPECT_TRUE(attached_at(0x8000)) << "what DPDK's front end says";
  EXPECT_EQ(queue_.base(), 0x8000'8000U);
  EXPECT_FALSE(attached_at(0x8000'8008)) << "beyond the ring";
  EXPECT_FALSE(attached_at(0x8008'8000)) << "beyond the ring";
  EXPECT_FALSE(attached_at(0xffff'ffff));
  EXPECT_EQ(queue_.base(), 0x8000'8000U) << "as it was";
  EXPECT_FALSE(queue_.attach(map_, addresses, 4, kFeatures, 0x8000'8004));
}

// The guest's memory may change under requests in flight, at any place of the ring.
TEST_F(PackedQueueTest, StaysWhereItIsWhenItIsAttachedAgain) {
  for (uint16_t from = 0; from < 16; from++) {
    start(8, from);
    add(3);
    driver_->publish();
    ASSERT_EQ(pop(), RingFault::kNone);
    const uint32_t base = queue_.base();
    ASSERT_TRUE(queue_.attach(map_, driver_->vring_addr(0), 8, kFeatures));
    EXPECT_EQ(queue_.base(), base) << from;
    queue_.push_used(chain_, 1);
    queue_.publish();
    EXPECT_TRUE(driver_->poll_used()) << from;
  }
}

TEST_F(PackedQueueTest, NeedsItsStructuresMappedAndAligned) {
  start(8);
  const auto good = driver_->vring_addr(0);
  for (const auto field : {&vhost::VringAddr::desc, &vhost::VringAddr::avail, &vhost::VringAddr::used}) {
    for (const uint64_t change : {uint64_t{2}, uint64_t{1} << 45, ~uint64_t{0} - good.*field}) {
      auto bad = good;
      bad.*field += change;
      EXPECT_FALSE(queue_.attach(map_, bad, 8, kFeatures)) << change;
    }
  }
  EXPECT_TRUE(queue_.attach(map_, good, 8, kFeatures));
}

// ---- What a driver must not do

constexpr uint64_t kUnmapped = 0x7000'0000'0000;

struct PackedAttack {
  const char* name;
  RingFault fault;
  // What to make available, given where 16 bytes to be read and 4,096 to be written are.
  std::function<std::vector<PackedDesc>(GuestMemory& memory, uint64_t header, uint64_t data)> descs;
};

std::vector<PackedDesc> table_of(GuestMemory& memory, const std::vector<PackedDesc>& entries, uint32_t len,
                                 uint16_t flags = kDescIndirect) {
  const uint64_t table = memory.allocate(kHigh, entries.size() * sizeof(PackedDesc) + 16);
  for (size_t i = 0; i < entries.size(); i++) memory.write(table + i * sizeof(PackedDesc), bytes_of(entries[i]));
  return {{.addr = table, .len = len, .id = 0, .flags = flags}};
}
std::vector<PackedDesc> good_entries(uint64_t header, uint64_t data) {
  return {{.addr = header, .len = 16}, {.addr = data, .len = 512, .flags = kDescWrite}};
}

const PackedAttack kPackedAttacks[] = {
    {"IdIsTheRingsSize", RingFault::kBadId,
     [](auto&, uint64_t header, uint64_t) { return std::vector<PackedDesc>{{.addr = header, .len = 16, .id = 8}}; }},
    {"IdIsHuge", RingFault::kBadId,
     [](auto&, uint64_t header, uint64_t) {
       return std::vector<PackedDesc>{{.addr = header, .len = 16, .id = 0xffff}};
     }},
    {"ChainGoesRoundTheRing", RingFault::kChainTooLong,
     [](auto&, uint64_t header, uint64_t) {
       return std::vector<PackedDesc>(8, {.addr = header, .len = 16, .flags = kDescNext});
     }},
    {"ChainHasNoEnd", RingFault::kTakenBack,
     [](auto&, uint64_t header, uint64_t) {
       return std::vector<PackedDesc>{{.addr = header, .len = 16, .flags = kDescNext}};
     }},
    {"AddressUnmapped", RingFault::kNotMapped,
     [](auto&, uint64_t, uint64_t) { return std::vector<PackedDesc>{{.addr = kUnmapped, .len = 16}}; }},
    {"AddressWraps", RingFault::kNotMapped,
     [](auto&, uint64_t, uint64_t) { return std::vector<PackedDesc>{{.addr = ~uint64_t{7}, .len = 16}}; }},
    {"LengthIsHuge", RingFault::kNotMapped,
     [](auto&, uint64_t header, uint64_t) { return std::vector<PackedDesc>{{.addr = header, .len = 0xffff'ffff}}; }},
    {"ReadableAfterWritable", RingFault::kBadOrder,
     [](auto&, uint64_t header, uint64_t data) {
       return std::vector<PackedDesc>{{.addr = data, .len = 512, .flags = kDescNext | kDescWrite},
                                      {.addr = header, .len = 16}};
     }},
    {"IndirectContinues", RingFault::kBadIndirect,
     [](GuestMemory& memory, uint64_t header, uint64_t data) {
       auto descs = table_of(memory, good_entries(header, data), 32, kDescIndirect | kDescNext);
       descs.push_back({.addr = data, .len = 1, .flags = kDescWrite});
       return descs;
     }},
    {"IndirectAfterDirect", RingFault::kBadIndirect,
     [](GuestMemory& memory, uint64_t header, uint64_t data) {
       std::vector<PackedDesc> descs{{.addr = header, .len = 16, .flags = kDescNext}};
       descs.push_back(table_of(memory, good_entries(header, data), 32).front());
       return descs;
     }},
    {"IndirectNested", RingFault::kBadIndirect,
     [](GuestMemory& memory, uint64_t header, uint64_t data) {
       return table_of(memory, table_of(memory, good_entries(header, data), 32), 16);
     }},
    {"IndirectEmpty", RingFault::kBadIndirect,
     [](GuestMemory& memory, uint64_t header, uint64_t data) {
       return table_of(memory, good_entries(header, data), 0);
     }},
    {"IndirectHasHalfADescriptor", RingFault::kBadIndirect,
     [](GuestMemory& memory, uint64_t header, uint64_t data) {
       return table_of(memory, good_entries(header, data), 24);
     }},
    {"IndirectIsHuge", RingFault::kBadIndirect,
     [](GuestMemory& memory, uint64_t header, uint64_t data) {
       return table_of(memory, good_entries(header, data), 16 * (vhost::kMaxChainLength + 1));
     }},
    {"IndirectUnmapped", RingFault::kNotMapped,
     [](auto&, uint64_t, uint64_t) {
       return std::vector<PackedDesc>{{.addr = kUnmapped, .len = 32, .flags = kDescIndirect}};
     }},
    {"IndirectIsTooMuch", RingFault::kTooLarge,
     [](GuestMemory& memory, uint64_t, uint64_t) {
       const auto& region = memory.regions()[kHigh];
       return table_of(
           memory,
           std::vector<PackedDesc>(
               1000, {.addr = region.guest_address, .len = static_cast<uint32_t>(region.size), .flags = kDescWrite}),
           16000);
     }},
};

class PackedAttackTest : public PackedQueueTest, public ::testing::WithParamInterface<PackedAttack> {};
INSTANTIATE_TEST_SUITE_P(All, PackedAttackTest, ::testing::ValuesIn(kPackedAttacks),
                         [](const auto& info) { return std::string(info.param.name); });

// From each position, so that chains wrap around too.
TEST_P(PackedAttackTest, IsAFault) {
  for (uint16_t from = 0; from < 16; from++) {
    start(8, from);
    const uint32_t base = queue_.base();
    driver_->add_raw(GetParam().descs(memory_, header_, data_));
    driver_->publish();
    EXPECT_GT(queue_.look(), 0);
    EXPECT_EQ(pop(), GetParam().fault) << from;
    EXPECT_EQ(queue_.base(), base) << "nothing was taken";
  }
}

TEST_F(PackedQueueTest, RefusesIndirectTablesThatWereNotNegotiated) {
  start(8, 0, kFeatures & ~vhost::kFeatureIndirectDesc);
  driver_->add_indirect(std::vector<Segment>{{header_, 16}, {data_, 512, true}});
  driver_->publish();
  EXPECT_EQ(pop(), RingFault::kBadIndirect);
}

TEST_F(PackedQueueTest, RefusesAnIdThatIsInFlight) {
  start(8);
  const PackedDesc desc{.addr = header_, .len = 16, .id = 5};
  driver_->add_raw(std::span(&desc, 1));
  driver_->publish();
  ASSERT_EQ(pop(), RingFault::kNone);
  driver_->add_raw(std::span(&desc, 1));
  driver_->publish();
  EXPECT_EQ(pop(), RingFault::kIdInFlight);
  // Once it is back it may be used again.
  queue_.push_used(chain_, 0);
  EXPECT_EQ(pop(), RingFault::kNone);
}

// A descriptor that is made unavailable between the look and the taking is not acted upon.
TEST_F(PackedQueueTest, RefusesADescriptorThatIsTakenBack) {
  start(8);
  add(1);
  driver_->publish();
  ASSERT_EQ(queue_.look(), 1);
  driver_->reset();
  EXPECT_EQ(pop(), RingFault::kTakenBack);
}

}  // namespace
}  // namespace sluice::test
