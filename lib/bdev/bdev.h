// Bdev: a block device, whatever is below it. All offsets and lengths in this library are bytes.
//
// Thread:    made and changed on the application's lightweight thread; the getters that other threads use (size,
//            limits, supports, readonly) are constant or atomic. Aliases: the application's thread.
// Ownership: BdevManager owns it. Modules derive from it, and from BdevChannel.
#pragma once

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/uuid.h"
#include "lib/bdev/bdev_channel.h"
#include "lib/bdev/io_buffer.h"
#include "lib/bdev/io_stats.h"
#include "lib/thread/channel.h"

namespace sluice {

// What a device takes in one request. Requests beyond max_* are split, and unaligned buffers bounced, on the way to it.
struct BdevLimits {
  uint32_t block_size_bytes = 512;           // a power of two, 512 at least
  uint32_t physical_block_size_bytes = 512;  // a smaller write costs a read, though it works
  uint32_t buffer_alignment_bytes = 1;       // of each buffer's address and length
  uint32_t max_segments = 1024;              // iovecs in a read or write
  uint64_t max_transfer_bytes = 1U << 30;    // read, write
  uint64_t optimal_boundary_bytes = 0;       // reads and writes must not cross multiples of it; 0: none
  uint32_t discard_granularity_bytes = 0;    // what a discard must cover, aligned, to free anything; 0: the block size
};

class IoTypes {
 public:
  constexpr IoTypes(std::initializer_list<IoType> types) {
    for (const IoType type : types) bits_ = static_cast<uint8_t>(bits_ | 1U << static_cast<unsigned>(type));
  }
  constexpr bool contains(IoType type) const { return (bits_ >> static_cast<unsigned>(type) & 1U) != 0; }

 private:
  uint8_t bits_ = 0;
};

class Bdev : public IoDevice {
 public:
  struct Options {
    std::string name;
    Uuid uuid;  // nil: a random one
    const char* product_name;
    uint64_t size_bytes;
    BdevLimits limits;
    IoTypes io_types;
    bool readonly = false;
    std::vector<std::string> aliases{};  // other names, of the same name space
  };

  const std::string& name() const { return name_; }
  const Uuid& uuid() const { return uuid_; }
  const char* product_name() const { return product_name_; }
  const BdevLimits& limits() const { return limits_; }
  bool supports(IoType type) const { return io_types_.contains(type); }
  bool readonly() const { return readonly_.load(std::memory_order_relaxed); }
  uint64_t size_bytes() const { return size_bytes_.load(std::memory_order_relaxed); }
  const std::vector<std::string>& aliases() const { return aliases_; }

  std::string_view device_name() const final { return name_; }
  Result<std::unique_ptr<Channel>> create_channel() final;

  // Memory that this device reads into and writes from without copying, if it has any to give; plain memory otherwise.
  // Any thread. Errors: ENOMEM.
  virtual Result<IoBuffer> allocate_buffer(size_t size_bytes) { return IoBuffer::allocate(size_bytes); }

  // The sum over channels that are closed, and how many these are; bdev_manager.h's iostat() adds the open ones.
  IoStats closed_channels_stats() const;
  uint64_t closed_channels() const;
  void reset_closed_channels_stats(IoStatsReset mode);

 protected:
  explicit Bdev(Options options);

 private:
  friend class BdevManager;
  friend class BdevChannel;

  // On the thread that opens the channel.
  virtual Result<std::unique_ptr<BdevChannel>> make_channel() = 0;
  void add_closed_channel(const IoStats& stats);

  const std::string name_;
  const Uuid uuid_;
  const char* const product_name_;
  const BdevLimits limits_;
  const IoTypes io_types_;
  std::atomic<bool> readonly_;
  std::vector<std::string> aliases_;
  std::atomic<uint64_t> size_bytes_;
  std::atomic<bool> removed_ = false;

  mutable std::mutex stats_mutex_;
  IoStats closed_stats_;
  uint64_t closed_channels_ = 0;
};

}  // namespace sluice
