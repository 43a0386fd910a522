#include "lib/vhost/blk_device.h"

#include <algorithm>
#include <bit>

#include "lib/vhost/limits.h"

namespace sluice::vhost {
namespace {

uint64_t offered_features(const Bdev& bdev, BlkDevice::Options options) {
  uint64_t features = kFeatureVersion1 | kFeatureIndirectDesc | kFeatureEventIdx | kFeatureProtocolFeatures |
                      kFeatureLogAll | kBlkFeatureSegMax | kBlkFeatureBlkSize | kBlkFeatureFlush | kBlkFeatureTopology |
                      kBlkFeatureConfigWce | kBlkFeatureMq;
  if (options.packed_ring) features |= kFeatureRingPacked;
  if (options.readonly) features |= kBlkFeatureRo;
  if (!options.readonly && bdev.supports(IoType::kDiscard)) features |= kBlkFeatureDiscard;
  if (!options.readonly && bdev.supports(IoType::kWriteZeroes)) features |= kBlkFeatureWriteZeroes;
  return features;
}

}  // namespace

BlkDevice::BlkDevice(std::string name, const Bdev& bdev, Options options)
    : name_(std::move(name)),
      options_(options),
      limits_(bdev.limits()),
      features_(offered_features(bdev, options)),
      size_bytes_(bdev.size_bytes()) {}

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
