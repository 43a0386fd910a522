// BlkDevice: what a front end sees of a block device: features and configuration space.
// Thread:  constant after construction, but for the size, which any thread may read.
// Source:  virtio 1.3, "Block Device": "Feature bits", "Device configuration layout".
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "lib/bdev/bdev.h"
#include "lib/virtio/virtio.h"

namespace sluice::vhost {

class BlkDevice {
 public:
  // What is up to whoever offers it.
  struct Options {
    bool readonly = false;
    bool packed_ring = false;      // offered: which kind of rings there are, is the driver's choice
    bool any_memory_file = false;  // what a guest's memory may be in: see MemoryMap::with()
  };
  // `name` is what GET_ID answers (its first 20 bytes).
  BlkDevice(std::string name, const Bdev& bdev, Options options);

  const std::string& name() const { return name_; }
  bool readonly() const { return options_.readonly; }
  bool packed_ring() const { return options_.packed_ring; }
  bool any_memory_file() const { return options_.any_memory_file; }
  // The feature bits to offer, vhost's own included.
  uint64_t features() const { return features_; }
  BlkConfig config(bool writeback) const;

  uint64_t size_bytes() const { return size_bytes_.load(std::memory_order_relaxed); }
  void set_size_bytes(uint64_t size_bytes) { size_bytes_.store(size_bytes, std::memory_order_relaxed); }

 private:
  const std::string name_;
  const Options options_;
  const BdevLimits limits_;
  const uint64_t features_;
  std::atomic<uint64_t> size_bytes_;
};

}  // namespace sluice::vhost
