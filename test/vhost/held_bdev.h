// HeldBdev: a block device in memory that counts flushes and can keep requests until it is told to let them go.
//
// Thread: as any Bdev; hold(), flush_count() and held_count(): any OS thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <vector>

#include "lib/bdev/bdev.h"
#include "lib/thread/thread_directory.h"

namespace sluice::test {

class HeldBdev final : public Bdev {
 public:
  // `discards`: and writes zeroes.
  HeldBdev(std::string name, uint64_t size_bytes, uint32_t block_size, bool discards = true);

  void hold() { holding_ = true; }
  // Completes what was held. On the application's thread.
  Task<> release(ThreadDirectory& threads);
  // Completes the oldest `count` of each channel, and goes on holding. On the application's thread.
  Task<> release_oldest(ThreadDirectory& threads, int count);
  int flush_count() const { return flushes_; }
  int held_count() const { return held_; }
  // No more channels of it are opened.
  void refuse_channels() { refusing_ = true; }

 private:
  class HeldChannel;
  Result<std::unique_ptr<BdevChannel>> make_channel() override;

  std::vector<std::byte> memory_;
  std::atomic<bool> holding_ = false;
  std::atomic<bool> refusing_ = false;
  std::atomic<int> flushes_ = 0;
  std::atomic<int> held_ = 0;
};

}  // namespace sluice::test
