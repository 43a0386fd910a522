// What is noted of requests in flight, by itself: a ring of either kind, its notes, and a back end that is killed after
// each single store into either. Whoever comes after it must take up what was in flight, in order, and nothing else.
// Source: Vhost-user Protocol, "Inflight I/O tracking".
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <deque>
#include <random>

#include "app/conformance/ring_driver.h"
#include "lib/vhost/inflight_region.h"
#include "lib/vhost/virt_queue.h"
#include "test/vhost/store_tracer.h"

namespace sluice::test {
namespace {

using vhost::Chain;
using vhost::InflightRegion;
using vhost::QueueInflight;
using vhost::RingFault;
using vhost::UnfinishedChain;
using vhost::VirtQueue;

constexpr uint16_t kRingSize = 8;
constexpr uint16_t kQueueSize = 16;  // of the region, which may be for longer rings
constexpr uint32_t kQueueIndex = 1;

// One that the driver has made available.
struct Offered {
  uint16_t id = 0;
  uint16_t descriptors = 0;
  uint64_t address = 0;  // of its first buffer, by which it is told from all others
};

// The device's side, with its notes, and what it has taken. A new one is a new process.
struct BackEnd {
  VirtQueue queue;
  std::unique_ptr<QueueInflight> inflight;
  struct Taken {
    Chain chain;
    std::vector<iovec> segments;
  };
  std::deque<std::unique_ptr<Taken>> taken;
};

class InflightTest : public ::testing::TestWithParam<bool> {
 public:
  bool packed() const { return GetParam(); }
  uint64_t features() const {
    return vhost::kFeatureEventIdx | vhost::kFeatureIndirectDesc | (packed() ? vhost::kFeatureRingPacked : 0);
  }

  void SetUp() override {
    driver_ = std::make_unique<RingDriver>(
        memory_, RingDriver::Options{.size = kRingSize, .packed = packed(), .event_idx = true, .start_index = 65533});
    const UniqueFd fd(::dup(memory_.fd()));
    for (const auto& region : memory_.regions()) map_ = map_.with(region, fd, {}).value();
    auto file = InflightRegion::make_file({.num_queues = 2, .queue_size = kQueueSize}, packed());
    ASSERT_TRUE(file);
    region_ = InflightRegion::map(file->description, packed(), file->fd).value();
    std::byte* notes = region_->queue_area(kQueueIndex, packed());
    const vhost::VringAddr at = driver_->vring_addr(0);
    const auto part = [this](uint64_t address, size_t bytes) {
      return std::span(map_.translate_user(address, bytes), bytes);
    };
    watched_ = {part(at.desc, vhost::split_desc_bytes(kRingSize)), part(at.avail, vhost::split_avail_bytes(kRingSize)),
                part(at.used, vhost::split_used_bytes(kRingSize)),
                std::span(notes, InflightRegion::queue_bytes(packed(), kQueueSize))};
    first_base_ = driver_->base();
    data_ = memory_.allocate(kHigh, 1 << 16);
  }

  // Attaches and begins; what was in flight is not taken yet. The base is that of the beginning: notes know better.
  RingFault start(BackEnd& end, std::vector<UnfinishedChain>& unfinished) {
    end.inflight = std::make_unique<QueueInflight>(region_, kQueueIndex, packed(), kRingSize, false);
    end.queue.set_base(first_base_);
    EXPECT_TRUE(end.queue.attach(map_, driver_->vring_addr(0), kRingSize, features(), end.inflight->has_notes()));
    return end.queue.begin(end.inflight.get(), unfinished);
  }
  // Takes the next chain, or one that was in flight.
  RingFault take(BackEnd& end, const UnfinishedChain* again = nullptr) {
    auto taken = std::make_unique<BackEnd::Taken>();
    taken->chain.segments = &taken->segments;
    const RingFault fault = again != nullptr ? end.queue.pop_again(taken->chain, *again) : end.queue.pop(taken->chain);
    if (fault != RingFault::kNone) return fault;
    if (again == nullptr && !end.inflight->take(taken->chain, end.queue.copies())) return RingFault::kTooMany;
    end.taken.push_back(std::move(taken));
    return RingFault::kNone;
  }
  static void give_back(BackEnd& end, size_t i) {
    std::swap(end.taken.front(), end.taken[i]);
    const std::unique_ptr<BackEnd::Taken> taken = std::move(end.taken.front());
    end.taken.pop_front();
    end.queue.push_used(taken->chain, 1);
    end.inflight->give_back(taken->chain);
  }
  static void publish(BackEnd& end) {
    end.inflight->before_publish();
    end.queue.publish();
    end.inflight->after_publish();
  }

  void offer(uint16_t descriptors) {
    Offered chain{.id = 0, .descriptors = descriptors, .address = data_ + (offered_count_++ % 4096) * 16};
    std::vector<Segment> segments(descriptors, Segment{chain.address, 16});
    segments.back().writable = true;
    if (offered_count_ % 3 == 0) {
      chain.descriptors = 1;
      chain.id = driver_->add_indirect(segments);
    } else {
      chain.id = driver_->add_chain(segments);
    }
    offered_.push_back(chain);
  }
  // The driver takes what it has been shown.
  void collect() {
    while (const auto used = driver_->poll_used()) {
      collected_count_++;
      std::erase_if(offered_, [&](const Offered& chain) { return chain.id == used->id; });
    }
    ASSERT_EQ(driver_->violation(), "");
  }
  // The ids that the driver has been shown since it collected last, as memory is now.
  std::vector<uint32_t> shown() const {
    std::vector<uint32_t> ids;
    if (!packed()) {
      const auto* used = reinterpret_cast<const uint16_t*>(watched_[2].data());
      const auto* ring = reinterpret_cast<const vhost::SplitUsedElem*>(watched_[2].data() + sizeof(vhost::SplitUsed));
      for (uint16_t i = driver_->used_taken(); i != used[1]; i++) ids.push_back(ring[i % kRingSize].id);
      return ids;
    }
    const auto* ring = reinterpret_cast<const vhost::PackedDesc*>(watched_[0].data());
    for (RingPosition at = driver_->used_position(); ids.size() <= kRingSize;) {
      const vhost::PackedDesc& desc = ring[at.offset];
      const bool avail = (desc.flags & vhost::kPackedDescAvail) != 0;
      if (avail != at.wrap || ((desc.flags & vhost::kPackedDescUsed) != 0) != at.wrap) break;
      ids.push_back(desc.id);
      const auto chain = std::ranges::find(offered_, desc.id, &Offered::id);
      if (chain == offered_.end()) break;  // that is one too many
      at.advance(chain->descriptors, kRingSize);
    }
    return ids;
  }
  // A back end that begins with memory as it is now takes up what is in flight, and takes what is available: together
  // what the driver has not been shown, in its order. Of that, the first `submitted` at least have been taken before.
  void expect_all_once(size_t submitted, uint32_t seed) {
    std::vector<Offered> expected = offered_;
    const std::vector<uint32_t> before = shown();
    for (const uint32_t id : before) {
      ASSERT_EQ(std::erase_if(expected, [id](const Offered& chain) { return chain.id == id; }), 1U) << "shown: " << id;
    }
    BackEnd end;
    std::vector<UnfinishedChain> unfinished;
    ASSERT_EQ(start(end, unfinished), RingFault::kNone);
    ASSERT_GE(unfinished.size() + before.size(), submitted) << "one that was submitted is to be submitted again";
    ASSERT_LE(unfinished.size(), expected.size());
    for (const auto& chain : unfinished) ASSERT_EQ(take(end, &chain), RingFault::kNone);
    while (end.queue.available().value_or(0) > 0) ASSERT_EQ(take(end), RingFault::kNone);
    ASSERT_EQ(end.taken.size(), expected.size());
    for (size_t i = 0; i < expected.size(); i++) {
      EXPECT_EQ(end.taken[i]->chain.head, expected[i].id);
      const vhost::MemoryMap::Window window = map_.window_at(expected[i].address);
      EXPECT_EQ(end.taken[i]->segments.front().iov_base, window.host + (expected[i].address - window.guest_address));
    }
    // They end in any order, in any batches, and the driver sees each once, when its batch is published.
    std::minstd_rand random(seed);
    std::vector<uint32_t> given = before;
    while (!end.taken.empty()) {
      const size_t i = random() % end.taken.size();
      given.push_back(end.taken[i]->chain.head);
      give_back(end, i);
      if (random() % 2 == 0 && !end.taken.empty()) continue;
      publish(end);
      ASSERT_EQ(shown(), given);
    }
    ASSERT_EQ(given.size(), offered_.size());
    BackEnd last;
    unfinished.clear();
    ASSERT_EQ(start(last, unfinished), RingFault::kNone);
    EXPECT_TRUE(unfinished.empty());
    EXPECT_EQ(last.queue.available(), 0);
  }

 protected:
  GuestMemory memory_;
  vhost::MemoryMap map_;
  std::unique_ptr<RingDriver> driver_;
  std::shared_ptr<const InflightRegion> region_;
  std::vector<std::span<std::byte>> watched_;
  uint32_t first_base_ = 0;
  uint64_t data_ = 0;
  std::vector<Offered> offered_;  // and not collected, in their order
  uint64_t offered_count_ = 0;
  size_t collected_count_ = 0;
};

// The back end does something by chance, is stopped after each store of it, and each time another one goes on from
// there, which is stopped in its turn while it begins.
TEST_P(InflightTest, EachRequestIsDoneOnceWhereverTheBackEndIsKilled) {
#if __has_feature(thread_sanitizer)
  GTEST_SKIP() << "ThreadSanitizer's own code cannot be stopped after each instruction";
#endif
  StoreTracer tracer(watched_);
  std::minstd_rand random(7);
  BackEnd end;
  std::vector<UnfinishedChain> unfinished;
  size_t taken_count = 0;
  int cuts = 0;
  for (int step = 0; step < 160; step++) {
    SCOPED_TRACE("step " + std::to_string(step));
    for (uint16_t n = 1 + random() % 3; driver_->free_descriptors() >= n && random() % 2 == 0; n = 1 + random() % 3) {
      offer(n);
    }
    driver_->publish();
    const auto action = step == 0 ? 3 : random() % 3;
    const size_t taken_before = taken_count;
    const std::vector<StoreTracer::Image> images = tracer.trace([&] {
      if (action == 3) {
        std::ignore = start(end, unfinished);
      } else if (action == 0 && end.queue.available().value_or(0) > 0) {
        taken_count += take(end) == RingFault::kNone;
      } else if (action == 1 && !end.taken.empty()) {
        give_back(end, random() % end.taken.size());
      } else {
        publish(end);
      }
    });
    const StoreTracer::Image now = tracer.image();
    for (const StoreTracer::Image& image : images) {
      cuts++;
      std::vector<StoreTracer::Image> starts{image};
      if (cuts % 100 == 0) {
        tracer.restore(image);
        starts = tracer.trace([&] {
          BackEnd next;
          std::vector<UnfinishedChain> found;
          std::ignore = start(next, found);
        });
      }
      for (const StoreTracer::Image& begun : starts) {
        tracer.restore(begun);
        expect_all_once(taken_before - collected_count_, static_cast<uint32_t>(cuts));
        if (HasFatalFailure()) FAIL() << "cut " << cuts;
      }
    }
    tracer.restore(now);
    if (random() % 2 == 0) collect();
  }
  EXPECT_GT(collected_count_, 30U);
  EXPECT_GT(cuts, 400);
}

// Notes of a back end that was killed, with some fields changed to anything: they are found to be damaged, or the ring
// goes on; nothing outside of them is read or written.
TEST_P(InflightTest, DamagedNotesBreakTheRingOrDoNot) {
  BackEnd end;
  std::vector<UnfinishedChain> unfinished;
  ASSERT_EQ(start(end, unfinished), RingFault::kNone);
  for (int i = 0; i < 5; i++) offer(1);
  driver_->publish();
  for (int i = 0; i < 4; i++) ASSERT_EQ(take(end), RingFault::kNone);
  give_back(end, 1);
  publish(end);
  const StoreTracer images(watched_);
  const StoreTracer::Image good = images.image();
  const std::span<std::byte> notes = watched_.back();
  int damaged = 0;
  for (uint32_t seed = 1; seed <= 20'000; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    images.restore(good);
    std::minstd_rand random(seed);
    random.discard(2);
    for (uint32_t changes = 1 + random() % 3; changes > 0; changes--) {
      const uint16_t values[] = {0, 1, kRingSize, kQueueSize, 0xffff, static_cast<uint16_t>(random())};
      const uint16_t value = values[random() % std::size(values)];
      std::memcpy(notes.data() + random() % (notes.size() / 2) * 2, &value, sizeof(value));
    }
    BackEnd next;
    unfinished.clear();
    const RingFault fault = start(next, unfinished);
    if (fault != RingFault::kNone) {
      EXPECT_EQ(fault, RingFault::kBadInflight);
      damaged++;
      continue;
    }
    ASSERT_LE(unfinished.size(), kRingSize);
    bool going = true;
    for (const auto& chain : unfinished) going = going && take(next, &chain) == RingFault::kNone;
    for (int i = 0; going && next.queue.available().value_or(0) > 0 && i < kRingSize; i++) {
      going = take(next) == RingFault::kNone;
    }
    while (!next.taken.empty()) give_back(next, random() % next.taken.size());
    publish(next);
  }
  EXPECT_GT(damaged, 2000);
  EXPECT_LT(damaged, 20'000);
}

TEST_P(InflightTest, RingThatHasNoRoomInTheRegionIsAFault) {
  for (const auto& [index, size] : {std::pair<uint32_t, uint16_t>{2, kRingSize}, {0, 2 * kQueueSize}}) {
    BackEnd end;
    end.inflight = std::make_unique<QueueInflight>(region_, index, packed(), size, false);
    std::vector<UnfinishedChain> unfinished;
    ASSERT_TRUE(end.queue.attach(map_, driver_->vring_addr(0), kRingSize, features(), false));
    EXPECT_EQ(end.queue.begin(end.inflight.get(), unfinished), RingFault::kInflightSize);
  }
}

TEST_P(InflightTest, RegionIsAsLargeAsTheSpecificationsStructures) {
  EXPECT_EQ(InflightRegion::queue_bytes(false, 128), 2112U);
  EXPECT_EQ(InflightRegion::queue_bytes(true, 128), 4160U);
  for (uint32_t size = 1; size <= 1024; size++) {
    // DPDK: the packed header counted to its last byte.
    EXPECT_EQ(InflightRegion::queue_bytes(true, size), (29 + 32 * size + 63) / 64 * 64);
  }
}

INSTANTIATE_TEST_SUITE_P(Rings, InflightTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Packed" : "Split"; });

}  // namespace
}  // namespace sluice::test
