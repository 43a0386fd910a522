#include "lib/vhost/blk_device.h"

#include <algorithm>
#include <bit>

#include "lib/vhost/limits.h"

namespace sluice::vhost {
namespace {

uint64_t offered_features(BlkDevice::Options options) {
  uint64_t features = kFeatureVersion1 | kFeatureIndirectDesc | kFeatureEventIdx | kFeatureProtocolFeatures |
                      kFeatureLogAll | kBlkFeatureSegMax | kBlkFeatureBlkSize | kBlkFeatureFlush | kBlkFeatureTopology |
                      kBlkFeatureConfigWce | kBlkFeatureMq;
  if (options.packed_ring) features |= kFeatureRingPacked;
  features |= options.readonly ? kBlkFeatureRo : kBlkFeatureDiscard | kBlkFeatureWriteZeroes;
  return features;
}

}  // namespace

BlkDevice::BlkDevice(std::string name, const Bdev& bdev, Options options)
    : name_(std::move(name)),
      options_(options),
      limits_(bdev.limits()),
      features_(offered_features(options)),
      size_bytes_(bdev.size_bytes()) {}

void BlkDevice::set_size_bytes(uint64_t size_bytes) {
  size_bytes_.store(size_bytes & ~uint64_t{limits_.block_size_bytes - 1}, std::memory_order_relaxed);
}

Result<> BlkDevice::may_have(const Bdev& bdev) const {
  if (bdev.limits().block_size_bytes > limits_.block_size_bytes)
    return fail(EINVAL, "the bdev's blocks are larger than those that the controller has offered");
  if (bdev.size_bytes() < size_bytes()) return fail(EINVAL, "the bdev is smaller than the disk is now");
  return {};
}

BlkConfig BlkDevice::config(bool writeback) const {
  const uint32_t block = limits_.block_size_bytes;
  const uint32_t physical = std::max(block, limits_.physical_block_size_bytes);
  const uint32_t granularity = std::max(block, limits_.discard_granularity_bytes);
  BlkConfig config;
  config.capacity = size_bytes() / kSectorSize;
  config.seg_max = kSegMax;
  config.blk_size = block;
  config.physical_block_exp = static_cast<uint8_t>(std::countr_zero(physical) - std::countr_zero(block));
  config.min_io_size = static_cast<uint16_t>(std::min<uint32_t>(physical / block, UINT16_MAX));
  config.opt_io_size = static_cast<uint32_t>(std::min<uint64_t>(limits_.optimal_boundary_bytes / block, UINT32_MAX));
  config.writeback = writeback ? 1 : 0;
  config.num_queues = kMaxQueues;
  if ((features_ & kBlkFeatureDiscard) != 0) {
    config.max_discard_sectors = kMaxDiscardSectors;
    config.max_discard_seg = kMaxDiscardSegments;
    config.discard_sector_alignment = granularity / kSectorSize;
  }
  if ((features_ & kBlkFeatureWriteZeroes) != 0) {
    config.max_write_zeroes_sectors = kMaxDiscardSectors;
    config.max_write_zeroes_seg = kMaxDiscardSegments;
    config.write_zeroes_may_unmap = 1;
  }
  return config;
}

}  // namespace sluice::vhost
