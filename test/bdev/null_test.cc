#include <gtest/gtest.h>

#include <cerrno>

#include "lib/bdev/null/null_bdev.h"
#include "test/support/allocation_count.h"
#include "test/support/disk_user.h"

namespace sluice {
namespace {

constexpr uint64_t kMiB = 1U << 20;

NullBdevOptions small_disk() { return {.name = "disk", .num_blocks = 2048}; }

TEST(NullBdev, CompletesEverythingAndLeavesBuffersAlone) {
  BdevWorld world;
  world.add(create_null_bdev(small_disk()));
  DiskUser user(world);
  PageBuffer buffer(4096, 1);
  const PageBuffer before(4096, 1);
  EXPECT_EQ(user.read(0, buffer.bytes()), IoStatus::kOk);
  EXPECT_EQ(buffer, before);
  EXPECT_EQ(user.write(4096, buffer.bytes()), IoStatus::kOk);
  EXPECT_EQ(user.flush(), IoStatus::kOk);
  EXPECT_EQ(user.discard(0, kMiB), IoStatus::kOk);
  EXPECT_EQ(user.write_zeroes(0, kMiB, false), IoStatus::kOk);
  EXPECT_EQ(user.reset(), IoStatus::kOk);
  EXPECT_EQ(user.read(kMiB, buffer.bytes()), IoStatus::kInvalid);
}

TEST(NullBdev, HasTheParametersItWasMadeWith) {
  const Uuid uuid = Uuid::random();
  BdevWorld world;
  const Bdev& bdev = world.add(create_null_bdev(
      {.name = "disk", .uuid = uuid, .num_blocks = 100, .block_size_bytes = 4096, .physical_block_size_bytes = 8192}));
  EXPECT_STREQ(bdev.product_name(), "Null disk");
  EXPECT_EQ(bdev.uuid(), uuid);
  EXPECT_EQ(bdev.size_bytes(), 409'600U);
  EXPECT_EQ(bdev.limits().block_size_bytes, 4096U);
  EXPECT_EQ(bdev.limits().physical_block_size_bytes, 8192U);
}

TEST(NullBdev, RefusesWrongParameters) {
  const auto refused = [](NullBdevOptions options) {
    const auto made = create_null_bdev(options);
    return made ? 0 : made.error().code;
  };
  EXPECT_EQ(refused({.name = "disk", .num_blocks = 0}), EINVAL);
  EXPECT_EQ(refused({.name = "disk", .num_blocks = 1, .block_size_bytes = 0}), EINVAL);
  EXPECT_EQ(refused({.name = "disk", .num_blocks = 1, .block_size_bytes = 256}), EINVAL);
  EXPECT_EQ(refused({.name = "disk", .num_blocks = 1, .block_size_bytes = 520}), EINVAL);
  EXPECT_EQ(refused({.name = "disk", .num_blocks = 1, .block_size_bytes = 4096, .physical_block_size_bytes = 512}),
            EINVAL);
  EXPECT_EQ(refused({.name = "disk", .num_blocks = UINT64_MAX}), EINVAL);
}

TEST(NullBdev, GrowsAndTellsItsUsers) {
  BdevWorld world;
  Bdev& bdev = world.add(create_null_bdev(small_disk()));
  DiskUser user(world);
  const auto resize = [&](uint64_t mib) {
    const Result<> resized = world.hosts.on(world.app(), [&] { return resize_null_bdev(world.manager, bdev, mib); });
    return resized ? 0 : resized.error().code;
  };
  EXPECT_EQ(resize(3), 0);
  EXPECT_EQ(bdev.size_bytes(), 3 * kMiB);
  EXPECT_EQ(user.resizes, 1);
  PageBuffer buffer(4096);
  EXPECT_EQ(user.read(2 * kMiB, buffer.bytes()), IoStatus::kOk);

  EXPECT_EQ(resize(3), 0);
  EXPECT_EQ(resize(2), EINVAL);
  EXPECT_EQ(resize(UINT64_MAX), EINVAL);
  EXPECT_EQ(bdev.size_bytes(), 3 * kMiB);
  EXPECT_EQ(user.resizes, 1);
}

TEST(NullBdev, KeepsItsSizeWhenThatIsNotWholeMebibytes) {
  BdevWorld world;
  Bdev& bdev = world.add(create_null_bdev({.name = "disk", .num_blocks = 2049}));
  EXPECT_TRUE(world.hosts.on(world.app(), [&] { return resize_null_bdev(world.manager, bdev, 1); }).has_value());
  EXPECT_EQ(bdev.size_bytes(), 2049 * 512U);
}

TEST(NullBdev, AllocatesNothingPerRequest) {
  BdevWorld world;
  world.add(create_null_bdev(small_disk()));
  DiskUser user(world);
  PageBuffer buffer(4096);
  TestIo io(IoType::kRead, 0, {buffer.bytes()});
  const auto round = [&] {
    for (int i = 0; i < 100; ++i) {
      io.done = false;
      user.submit(io);
      while (!io.done) world.hosts.turn();
    }
  };
  round();
  const uint64_t before = allocation_count();
  round();
  EXPECT_EQ(allocation_count(), before);
}

}  // namespace
}  // namespace sluice
