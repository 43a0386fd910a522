// TestDisk: a disk in memory for tests of what is above the modules, and BdevTest, the tests' world with such disks.
// Thread: as any Bdev; the test's fields and let_go(): anywhere on the hosts' OS thread.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/base/iov_cursor.h"
#include "lib/bdev/bdev.h"
#include "lib/bdev/bdev_manager.h"
#include "test/support/disk_user.h"

namespace sluice {

inline constexpr uint64_t kDiskBytes = 1U << 20;
inline constexpr IoTypes kAllTypes = {IoType::kRead,    IoType::kWrite,       IoType::kFlush,
                                      IoType::kDiscard, IoType::kWriteZeroes, IoType::kReset};

// A disk in memory. Completes inside do_submit(), or holds requests until the test lets them go; checks that it is
// given only what it can take.
class TestDisk final : public Bdev {
 public:
  explicit TestDisk(Options options) : Bdev(std::move(options)), data(size_bytes()) {}

  // One request as the disk saw it.
  struct Seen {
    uint64_t offset;
    uint64_t length;
    bool operator==(const Seen&) const = default;
  };

  bool hold = false;
  IoStatus answer = IoStatus::kOk;
  bool recording = true;
  std::vector<Seen> seen;
  std::vector<BlockIo*> held;
  const void* last_buffer = nullptr;
  std::vector<std::byte> data;

  // Ends the oldest request that is held. On its thread's host.
  void let_go() {
    BlockIo& io = *held.front();
    held.erase(held.begin());
    TestChannel::finish(io);
  }

 private:
  class TestChannel final : public BdevChannel {
   public:
    explicit TestChannel(TestDisk& disk) : BdevChannel(disk), disk_(disk) {}

    static void finish(BlockIo& io) {
      auto& disk = static_cast<TestDisk&>(io.channel->bdev());
      if (disk.answer == IoStatus::kOk && (io.type == IoType::kRead || io.type == IoType::kWrite)) {
        IovCursor cursor({io.iov, io.iov_count});
        const std::span<std::byte> place(disk.data.data() + io.offset_bytes, io.length_bytes);
        if (io.type == IoType::kWrite) cursor.copy_out(place);
        if (io.type == IoType::kRead) cursor.copy_in(place);
      }
      complete(io, disk.answer);
    }

   private:
    void do_submit(BlockIo& io) override {
      if (io.type == IoType::kRead || io.type == IoType::kWrite) check_limits(io);
      if (disk_.recording) disk_.seen.push_back({io.offset_bytes, io.length_bytes});
      if (disk_.hold) {
        disk_.held.push_back(&io);
      } else {
        finish(io);
      }
    }

    void check_limits(const BlockIo& io) {
      const BdevLimits& limits = disk_.limits();
      ASSERT_EQ(io.offset_bytes % limits.block_size_bytes, 0U);
      ASSERT_EQ(io.length_bytes % limits.block_size_bytes, 0U);
      ASSERT_GT(io.length_bytes, 0U);
      ASSERT_LE(io.length_bytes, limits.max_transfer_bytes);
      ASSERT_LE(io.iov_count, limits.max_segments);
      ASSERT_EQ(total_length({io.iov, io.iov_count}), io.length_bytes);
      if (limits.optimal_boundary_bytes != 0) {
        ASSERT_LE(io.offset_bytes % limits.optimal_boundary_bytes + io.length_bytes, limits.optimal_boundary_bytes);
      }
      for (uint32_t i = 0; i < io.iov_count; ++i) {
        ASSERT_EQ(reinterpret_cast<uintptr_t>(io.iov[i].iov_base) % limits.buffer_alignment_bytes, 0U);
        ASSERT_EQ(io.iov[i].iov_len % limits.buffer_alignment_bytes, 0U);
      }
      disk_.last_buffer = io.iov[0].iov_base;
    }

    TestDisk& disk_;
  };

  Result<std::unique_ptr<BdevChannel>> make_channel() override { return std::make_unique<TestChannel>(*this); }
};

inline Bdev::Options options(std::string name = "disk", BdevLimits limits = {}) {
  return {.name = std::move(name),
          .product_name = "Test disk",
          .size_bytes = kDiskBytes,
          .limits = limits,
          .io_types = kAllTypes};
}

class BdevTest : public testing::Test {
 protected:
  TestDisk& add(Bdev::Options disk_options = options()) {
    return static_cast<TestDisk&>(world_.add(std::make_unique<TestDisk>(std::move(disk_options))));
  }
  // 0, or the error's code.
  int try_add(Bdev::Options disk_options) {
    const auto added = world_.hosts.on(
        world_.app(), [&] { return world_.manager.add(std::make_unique<TestDisk>(std::move(disk_options))); });
    return added ? 0 : added.error().code;
  }
  int remove(Bdev& bdev, RemoveMode mode) {
    const Result<> removed = world_.hosts.await(world_.app(), world_.manager.remove(bdev, mode));
    return removed ? 0 : removed.error().code;
  }
  // Begins a removal; `code` is set at its end.
  void begin_remove(Bdev& bdev, int& code) {
    code = -1;
    world_.hosts.on(world_.app(), [&] {
      start(world_.manager.remove(bdev, RemoveMode::kForce),
            [&code](Result<> removed) { code = removed ? 0 : removed.error().code; });
    });
  }
  void let_go(TestDisk& disk) {
    world_.hosts.on(world_.app(), [&] { disk.let_go(); });
    world_.hosts.run_until_idle();
  }
  IoStats iostat(Bdev& bdev) { return world_.hosts.await(world_.app(), world_.manager.iostat(bdev)); }

  BdevWorld world_{2};
};

}  // namespace sluice
