// DeviceInfo: what a back end has said about its device, checked, in the terms of this library.
// Source: virtio 1.3, "Block Device / Feature bits", "Device configuration layout".
#pragma once

#include <cstdint>

#include "lib/base/result.h"
#include "lib/bdev/bdev.h"
#include "lib/virtio/virtio.h"

namespace sluice::virtio {

struct DeviceInfo {
  uint64_t features = 0;  // those that both sides know
  uint64_t size_bytes = 0;
  BdevLimits limits;
  uint32_t max_segment_bytes = 0;
  uint64_t max_discard_bytes = 0;       // of a request; 0: it cannot
  uint64_t max_write_zeroes_bytes = 0;  //
  bool write_zeroes_may_unmap = false;
  uint16_t num_queues = 1;

  bool has(uint64_t feature) const { return (features & feature) != 0; }
  bool readonly() const { return has(vhost::kBlkFeatureRo); }
  // How much of a buffer that is not shared is copied to or from one place.
  uint32_t bounce_bytes() const;

  // What this front end can make use of.
  static uint64_t wanted_features();
  // For queues of `queue_size` descriptors. Errors: EPROTO (the device is impossible), ENOTSUP (a legacy device).
  static Result<DeviceInfo> parse(const vhost::BlkConfig& config, uint64_t features, uint32_t queue_size);

  // Whether a bdev that was made for `before` can go on with this device: nothing that it has promised has changed.
  // Capacity may; so may what requests can be refused for one by one.
  bool can_replace(const DeviceInfo& before) const;
};

}  // namespace sluice::virtio
