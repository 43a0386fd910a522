// BlkDevice: what a front end sees of a block device: features and configuration space. They are those of the bdev that
// it was made from, and stay when it is given another one, but for the size.
// Thread:  constant after construction, but for the size, which any thread may read.
// Source:  virtio 1.3, "Block Device": "Feature bits", "Device configuration layout".
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "lib/base/result.h"
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
  // The feature bits to offer, vhost's own included. They depend on no bdev: a guest keeps what it has negotiated when
  // it gets another one, or is migrated to another host.
  uint64_t features() const { return features_; }
  BlkConfig config(bool writeback) const;

  uint64_t size_bytes() const { return size_bytes_.load(std::memory_order_relaxed); }
  // Rounded down to whole blocks, as they were offered.
  void set_size_bytes(uint64_t size_bytes);

  // Whether it can have this bdev from now on, with all that has been offered. Errors: EINVAL (larger blocks; smaller).
  Result<> may_have(const Bdev& bdev) const;

 private:
  const std::string name_;
  const Options options_;
  const BdevLimits limits_;
  const uint64_t features_;
  std::atomic<uint64_t> size_bytes_;
};

}  // namespace sluice::vhost
