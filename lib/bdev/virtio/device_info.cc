#include "lib/bdev/virtio/device_info.h"

#include <algorithm>
#include <bit>
#include <cerrno>

#include "lib/bdev/virtio/limits.h"

namespace sluice::virtio {
namespace {

constexpr uint32_t kMaxBlockBytes = 1U << 20;

uint64_t sectors_to_bytes(uint64_t sectors) { return sectors << vhost::kSectorShift; }
uint64_t round_down(uint64_t value, uint64_t to) { return value / to * to; }

Result<uint32_t> block_size_of(const vhost::BlkConfig& config, uint64_t features) {
  const uint32_t bytes = (features & vhost::kBlkFeatureBlkSize) != 0 ? config.blk_size : 512U;
  if (!std::has_single_bit(bytes) || bytes < 512 || bytes > kMaxBlockBytes) {
    return fail(EPROTO, "the back end's block size is not a power of two from 512 to 1048576");
  }
  return bytes;
}

}  // namespace

uint64_t DeviceInfo::wanted_features() {
  return vhost::kFeatureVersion1 | vhost::kFeatureProtocolFeatures | vhost::kFeatureIndirectDesc |
         vhost::kFeatureEventIdx | vhost::kFeatureRingPacked | vhost::kBlkFeatureSizeMax | vhost::kBlkFeatureSegMax |
         vhost::kBlkFeatureRo | vhost::kBlkFeatureBlkSize | vhost::kBlkFeatureFlush | vhost::kBlkFeatureTopology |
         vhost::kBlkFeatureMq | vhost::kBlkFeatureDiscard | vhost::kBlkFeatureWriteZeroes;
}

uint32_t DeviceInfo::bounce_bytes() const { return std::min(max_segment_bytes, kBounceChunkBytes); }

Result<DeviceInfo> DeviceInfo::parse(const vhost::BlkConfig& config, uint64_t features, uint32_t queue_size) {
  DeviceInfo info{.features = features & wanted_features()};
  if (!info.has(vhost::kFeatureVersion1)) return fail(ENOTSUP, "the back end's device is a legacy one");
  const Result<uint32_t> block_bytes = block_size_of(config, info.features);
  if (!block_bytes) return std::unexpected(block_bytes.error());
  if (config.capacity > INT64_MAX >> vhost::kSectorShift) return fail(EPROTO, "the back end's capacity is impossible");
  info.size_bytes = round_down(sectors_to_bytes(config.capacity), *block_bytes);
  info.limits.block_size_bytes = info.limits.physical_block_size_bytes = *block_bytes;
  if (info.has(vhost::kBlkFeatureTopology) && config.physical_block_exp <= 16) {
    info.limits.physical_block_size_bytes = *block_bytes << config.physical_block_exp;
  }

  info.max_segment_bytes = info.has(vhost::kBlkFeatureSizeMax) ? config.size_max : UINT32_MAX;
  if (info.max_segment_bytes == 0) info.max_segment_bytes = UINT32_MAX;
  // Drivers take a device that does not say how many segments it takes for one that takes a single one.
  const uint32_t seg_max = info.has(vhost::kBlkFeatureSegMax) ? std::max(config.seg_max, 1U) : 1U;
  info.limits.max_segments = std::min({seg_max, kMaxSegments, queue_size - 2});
  // Whatever the buffers, a request must fit when it is bounced: with one chunk a segment, and as many chunks as
  // descriptors.
  info.limits.max_transfer_bytes =
      round_down(std::min(uint64_t{info.limits.max_segments} * info.bounce_bytes(), kMaxTransferBytes), *block_bytes);
  if (info.limits.max_transfer_bytes == 0) return fail(EPROTO, "the back end's largest request is less than a block");

  if (info.has(vhost::kBlkFeatureDiscard)) {
    info.max_discard_bytes = round_down(sectors_to_bytes(config.max_discard_sectors), *block_bytes);
    const uint64_t granularity = sectors_to_bytes(config.discard_sector_alignment);
    if (granularity <= kMaxBlockBytes) info.limits.discard_granularity_bytes = static_cast<uint32_t>(granularity);
  }
  if (info.has(vhost::kBlkFeatureWriteZeroes)) {
    info.max_write_zeroes_bytes = round_down(sectors_to_bytes(config.max_write_zeroes_sectors), *block_bytes);
    info.write_zeroes_may_unmap = config.write_zeroes_may_unmap != 0;
  }
  if (info.has(vhost::kBlkFeatureMq)) info.num_queues = std::max<uint16_t>(config.num_queues, 1);
  return info;
}

bool DeviceInfo::can_replace(const DeviceInfo& before) const {
  return limits.block_size_bytes == before.limits.block_size_bytes &&
         limits.max_segments >= before.limits.max_segments &&
         limits.max_transfer_bytes >= before.limits.max_transfer_bytes && (!readonly() || before.readonly());
}

}  // namespace sluice::virtio
