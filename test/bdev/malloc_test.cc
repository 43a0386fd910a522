#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <memory>

#include "lib/bdev/malloc/malloc_bdev.h"
#include "test/support/allocation_count.h"
#include "test/support/disk_user.h"

namespace sluice {
namespace {

constexpr uint64_t kMiB = 1U << 20;

// A disk of 64 MiB, and somebody who uses it.
class MallocBdevTest : public testing::Test {
 protected:
  MallocBdevTest() { user_ = std::make_unique<DiskUser>(world_); }

  // The content as another request finds it.
  std::vector<std::byte> content(uint64_t offset_bytes, uint64_t length_bytes) {
    std::vector<std::byte> bytes(length_bytes);
    EXPECT_EQ(user_->read(offset_bytes, bytes), IoStatus::kOk);
    return bytes;
  }

  BdevWorld world_;
  Bdev& bdev_ = world_.add(create_malloc_bdev({.name = "disk", .num_blocks = 131'072}));
  std::unique_ptr<DiskUser> user_;
};

uint64_t resident_bytes() {
  unsigned long long size = 0;
  unsigned long long resident = 0;
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen("/proc/self/statm", "re"), std::fclose);
  EXPECT_EQ(std::fscanf(file.get(), "%llu %llu", &size, &resident), 2);
  return resident * static_cast<uint64_t>(::getpagesize());
}

TEST_F(MallocBdevTest, ReadsZeroesAtFirst) { EXPECT_TRUE(all_zero(content(0, 64 * kMiB))); }

TEST_F(MallocBdevTest, ReadsBackWhatWasWritten) {
  PageBuffer first(4096, 1);
  PageBuffer second(512, 2);
  PageBuffer third(8192, 3);
  TestIo write(IoType::kWrite, 512, {first.bytes(), second.bytes(), third.bytes()});
  user_->submit(write);
  EXPECT_EQ(user_->finish(write), IoStatus::kOk);
  EXPECT_EQ(user_->flush(), IoStatus::kOk);

  PageBuffer whole(12'800);
  TestIo read(IoType::kRead, 512, {whole.bytes(0, 700), whole.bytes(700, 12'100)});
  user_->submit(read);
  EXPECT_EQ(user_->finish(read), IoStatus::kOk);
  EXPECT_TRUE(std::ranges::equal(whole.bytes(0, 4096), first.bytes()));
  EXPECT_TRUE(std::ranges::equal(whole.bytes(4096, 512), second.bytes()));
  EXPECT_TRUE(std::ranges::equal(whole.bytes(4608, 8192), third.bytes()));
  EXPECT_TRUE(all_zero(content(0, 512)));
}

TEST_F(MallocBdevTest, CopiesALargeRequestInSeveralTurns) {
  PageBuffer data(8 * kMiB, 1);
  TestIo write(IoType::kWrite, 4096, {data.bytes(0, 3 * kMiB + 100), data.bytes(3 * kMiB + 100, 5 * kMiB - 100)});
  user_->submit(write);
  int turns = 0;
  for (; !write.done; ++turns) world_.hosts.turn();
  EXPECT_GE(turns, 8);
  EXPECT_EQ(write.status, IoStatus::kOk);
  PageBuffer back(8 * kMiB);
  EXPECT_EQ(user_->read(4096, back.bytes()), IoStatus::kOk);
  EXPECT_EQ(back, data);
}

TEST_F(MallocBdevTest, DiscardedBlocksReadZeroes) {
  PageBuffer data(8 * kMiB, 1);
  ASSERT_EQ(user_->write(0, data.bytes()), IoStatus::kOk);
  // From within one page to within another.
  ASSERT_EQ(user_->discard(512, 5 * kMiB), IoStatus::kOk);
  PageBuffer back(8 * kMiB);
  ASSERT_EQ(user_->read(0, back.bytes()), IoStatus::kOk);
  EXPECT_TRUE(std::ranges::equal(back.bytes(0, 512), data.bytes(0, 512)));
  EXPECT_TRUE(all_zero(back.bytes(512, 5 * kMiB)));
  EXPECT_TRUE(
      std::ranges::equal(back.bytes(5 * kMiB + 512, 3 * kMiB - 512), data.bytes(5 * kMiB + 512, 3 * kMiB - 512)));
}

TEST_F(MallocBdevTest, ZeroesWithinOnePage) {
  PageBuffer data(4096, 1);
  for (const bool may_unmap : {false, true}) {
    ASSERT_EQ(user_->write(8192, data.bytes()), IoStatus::kOk);
    ASSERT_EQ(user_->write_zeroes(8704, 1024, may_unmap), IoStatus::kOk);
    const std::vector<std::byte> back = content(8192, 4096);
    EXPECT_TRUE(std::ranges::equal(std::span(back).first(512), data.bytes(0, 512)));
    EXPECT_TRUE(all_zero(std::span(back).subspan(512, 1024)));
    EXPECT_TRUE(std::ranges::equal(std::span(back).subspan(1536), data.bytes(1536, 2560)));
  }
}

TEST_F(MallocBdevTest, ZeroingHoldsUpNobody) {
  PageBuffer data(64 * kMiB, 1);
  ASSERT_EQ(user_->write(0, data.bytes()), IoStatus::kOk);
  TestIo zero(IoType::kWriteZeroes, 0, 64 * kMiB);
  user_->submit(zero);
  PageBuffer buffer(4096);
  int others = 0;
  while (!zero.done) {
    TestIo read(IoType::kRead, 0, {buffer.bytes()});
    user_->submit(read);
    while (!read.done) world_.hosts.turn();
    ++others;
  }
  EXPECT_GE(others, 30);
  EXPECT_EQ(zero.status, IoStatus::kOk);
  EXPECT_TRUE(all_zero(content(0, 64 * kMiB)));
}

TEST_F(MallocBdevTest, DiscardGivesMemoryBack) {
  PageBuffer data(2 * kMiB, 1);
  for (uint64_t offset = 0; offset < 64 * kMiB; offset += 2 * kMiB) {
    ASSERT_EQ(user_->write(offset, data.bytes()), IoStatus::kOk);
  }
  const uint64_t before = resident_bytes();
  ASSERT_EQ(user_->discard(0, 64 * kMiB), IoStatus::kOk);
  EXPECT_LT(resident_bytes() + 48 * kMiB, before);
  EXPECT_TRUE(all_zero(content(0, kMiB)));
}

TEST_F(MallocBdevTest, QueuedRequestsCompleteInOrder) {
  std::vector<std::unique_ptr<TestIo>> ios;
  for (uint64_t i = 0; i < 100; ++i) ios.push_back(std::make_unique<TestIo>(IoType::kDiscard, i * 4096, 4096));
  for (const auto& io : ios) user_->submit(*io);
  size_t done = 0;
  while (done < ios.size()) {
    world_.hosts.turn();
    size_t first = done;
    while (first < ios.size() && ios[first]->done) ++first;
    for (size_t i = first; i < ios.size(); ++i) EXPECT_FALSE(ios[i]->done);
    done = first;
  }
}

TEST_F(MallocBdevTest, ResetSucceeds) { EXPECT_EQ(user_->reset(), IoStatus::kOk); }

TEST_F(MallocBdevTest, IdleChannelPollsNothing) {
  ASSERT_EQ(user_->discard(0, kMiB), IoStatus::kOk);
  world_.hosts.run_until_idle();
  EXPECT_FALSE(world_.hosts[0].runnable());
  int pollers = 0;
  world_.app().for_each_poller([&pollers](Poller&) { ++pollers; });
  EXPECT_EQ(pollers, 0);
}

TEST_F(MallocBdevTest, RemovalEndsRequestsInFlight) {
  TestIo zero(IoType::kWriteZeroes, 0, 64 * kMiB);
  user_->submit(zero);
  world_.hosts.turn();
  bool gone = false;
  world_.hosts.on(world_.app(),
                  [&] { start(world_.manager.remove(bdev_, RemoveMode::kForce), [&](Result<>) { gone = true; }); });
  EXPECT_TRUE(user_->removed);
  EXPECT_EQ(user_->finish(zero), IoStatus::kRemoved);
  EXPECT_FALSE(gone);
  user_->close();
  EXPECT_TRUE(world_.hosts.run_until([&] { return gone; }));
}

TEST_F(MallocBdevTest, AllocatesNothingPerRequest) {
  PageBuffer buffer(kMiB, 1);
  TestIo write(IoType::kWrite, 0, {buffer.bytes()});
  TestIo read(IoType::kRead, 4096, {buffer.bytes(0, 512), buffer.bytes(512, 4096)});
  TestIo discard(IoType::kDiscard, 0, kMiB);
  const auto round = [&] {
    for (int i = 0; i < 20; ++i) {
      for (TestIo* io : {&write, &read, &discard}) {
        io->done = false;
        user_->submit(*io);
      }
      while (!write.done || !read.done || !discard.done) world_.hosts.turn();
    }
  };
  round();
  const uint64_t before = allocation_count();
  round();
  EXPECT_EQ(allocation_count(), before);
}

TEST(MallocBdev, HasTheParametersItWasMadeWith) {
  BdevWorld world;
  const Bdev& bdev = world.add(create_malloc_bdev({.name = "disk",
                                                   .num_blocks = 1000,
                                                   .block_size_bytes = 4096,
                                                   .physical_block_size_bytes = 16'384,
                                                   .optimal_io_boundary_blocks = 8}));
  EXPECT_STREQ(bdev.product_name(), "Malloc disk");
  EXPECT_EQ(bdev.size_bytes(), 4'096'000U);
  EXPECT_EQ(bdev.limits().block_size_bytes, 4096U);
  EXPECT_EQ(bdev.limits().physical_block_size_bytes, 16'384U);
  EXPECT_EQ(bdev.limits().optimal_boundary_bytes, 32'768U);
}

TEST(MallocBdev, RefusesWrongParameters) {
  const auto refused = [](MallocBdevOptions options) {
    const auto made = create_malloc_bdev(options);
    return made ? 0 : made.error().code;
  };
  EXPECT_EQ(refused({.name = "disk", .num_blocks = 0}), EINVAL);
  EXPECT_EQ(refused({.name = "disk", .num_blocks = 8, .block_size_bytes = 0}), EINVAL);
  EXPECT_EQ(refused({.name = "disk", .num_blocks = 8, .block_size_bytes = 256}), EINVAL);
  EXPECT_EQ(refused({.name = "disk", .num_blocks = 8, .block_size_bytes = 1000}), EINVAL);
  EXPECT_EQ(refused({.name = "disk", .num_blocks = 8, .block_size_bytes = 131'072}), EINVAL);
  EXPECT_EQ(refused({.name = "disk", .num_blocks = 8, .physical_block_size_bytes = 768}), EINVAL);
  EXPECT_EQ(refused({.name = "disk", .num_blocks = 8, .block_size_bytes = 4096, .physical_block_size_bytes = 512}),
            EINVAL);
  EXPECT_EQ(refused({.name = "disk", .num_blocks = UINT64_MAX}), EINVAL);
  EXPECT_EQ(refused({.name = "disk", .num_blocks = UINT64_MAX / 512 + 2}), EINVAL);
  // 2^60 bytes are more than an address space holds.
  EXPECT_EQ(refused({.name = "disk", .num_blocks = uint64_t{1} << 51}), ENOMEM);
}

TEST(MallocBdev, TakesNoMemoryBeforeItIsWritten) {
  const uint64_t before = resident_bytes();
  BdevWorld world;
  world.add(create_malloc_bdev({.name = "disk", .num_blocks = 2'097'152}));
  EXPECT_LT(resident_bytes(), before + 16 * kMiB);
}

TEST(MallocBdev, IsTheSameDiskFromEveryThread) {
  BdevWorld world(2);
  world.add(create_malloc_bdev({.name = "disk", .num_blocks = 2048}));
  DiskUser here(world, "disk", world.hosts.home(0));
  DiskUser there(world, "disk", world.hosts.home(1));
  PageBuffer data(65'536, 7);
  PageBuffer back(65'536);
  EXPECT_EQ(here.write(512, data.bytes()), IoStatus::kOk);
  EXPECT_EQ(there.read(512, back.bytes()), IoStatus::kOk);
  EXPECT_EQ(back, data);
}

}  // namespace
}  // namespace sluice
