#include "lib/lvol/volume_bdev.h"

#include "lib/bdev/bdev.h"
#include "lib/lvol/store.h"
#include "lib/lvol/volume.h"
#include "lib/lvol/volume_channel.h"

namespace sluice::lvol {
namespace {

class VolumeBdev final : public Bdev {
 public:
  VolumeBdev(Options options, Store& store, Volume& volume, Bdev& base, Bdev* origin)
      : Bdev(std::move(options)), store_(store), volume_(volume), base_(base), origin_(origin) {}

  Store& store() const { return store_; }
  Volume& volume() const { return volume_; }

 private:
  Result<std::unique_ptr<BdevChannel>> make_channel() override {
    LwThread& thread = *LwThread::current();
    auto base = thread.get_channel(base_);
    if (!base) return std::unexpected(base.error());
    ChannelRef origin;
    if (origin_ != nullptr) {
      auto opened = thread.get_channel(*origin_);
      if (!opened) return std::unexpected(opened.error());
      origin = std::move(*opened);
    }
    return std::make_unique<VolumeChannel>(*this, store_, volume_, std::move(*base), std::move(origin));
  }

  Store& store_;
  Volume& volume_;
  Bdev& base_;
  Bdev* const origin_;
};

}  // namespace

std::unique_ptr<Bdev> make_volume_bdev(Store& store, Volume& volume, const VolumeRecord& record, std::string store_name,
                                       Bdev& base, Bdev* origin) {
  const BdevLimits& limits = base.limits();
  return std::make_unique<VolumeBdev>(
      Bdev::Options{
          .name = record.uuid.to_string(),
          .uuid = record.uuid,
          .product_name = kVolumeProductName,
          .size_bytes = record.size_bytes,
          .limits = {.block_size_bytes = limits.block_size_bytes,
                     .physical_block_size_bytes = limits.physical_block_size_bytes,
                     .discard_granularity_bytes = static_cast<uint32_t>(store.geometry().cluster_bytes)},
          .io_types = {IoType::kRead, IoType::kWrite, IoType::kFlush, IoType::kDiscard, IoType::kWriteZeroes,
                       IoType::kReset},
          .readonly = record.snapshot || record.readonly || !store.damage().empty(),
          .aliases = {std::move(store_name) + "/" + record.name},
      },
      store, volume, base, origin);
}

Store* store_of(const Bdev& bdev) {
  const auto* volume_bdev = dynamic_cast<const VolumeBdev*>(&bdev);
  return volume_bdev == nullptr ? nullptr : &volume_bdev->store();
}

Volume* volume_of(const Bdev& bdev) {
  const auto* volume_bdev = dynamic_cast<const VolumeBdev*>(&bdev);
  return volume_bdev == nullptr ? nullptr : &volume_bdev->volume();
}

}  // namespace sluice::lvol
