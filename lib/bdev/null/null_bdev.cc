#include "lib/bdev/null/null_bdev.h"

#include <bit>
#include <cerrno>

#include "lib/bdev/bdev.h"
#include "lib/bdev/bdev_manager.h"

namespace sluice {
namespace {

constexpr uint64_t kMiB = 1U << 20;

class NullChannel final : public BdevChannel {
 public:
  explicit NullChannel(Bdev& bdev) : BdevChannel(bdev) {}

 private:
  void do_submit(BlockIo& io) override { complete(io, IoStatus::kOk); }
};

class NullBdev final : public Bdev {
 public:
  explicit NullBdev(Options options) : Bdev(std::move(options)) {}

 private:
  Result<std::unique_ptr<BdevChannel>> make_channel() override { return std::make_unique<NullChannel>(*this); }
};

}  // namespace

Result<std::unique_ptr<Bdev>> create_null_bdev(const NullBdevOptions& options) {
  if (!std::has_single_bit(options.block_size_bytes) || options.block_size_bytes < 512) {
    return fail(EINVAL, "the block size of a null bdev is a power of two, 512 at least");
  }
  const uint32_t physical_bytes =
      options.physical_block_size_bytes == 0 ? options.block_size_bytes : options.physical_block_size_bytes;
  if (!std::has_single_bit(physical_bytes) || physical_bytes < options.block_size_bytes) {
    return fail(EINVAL, "the physical block size of a null bdev is a power of two, its block size at least");
  }
  if (options.num_blocks == 0) return fail(EINVAL, "a null bdev needs at least one block");
  if (options.num_blocks > INT64_MAX / options.block_size_bytes) {
    return fail(EINVAL, "the size of a null bdev is less than 2^63 bytes");
  }
  return std::make_unique<NullBdev>(Bdev::Options{
      .name = options.name,
      .uuid = options.uuid,
      .product_name = kNullProductName,
      .size_bytes = options.num_blocks * options.block_size_bytes,
      .limits = {.block_size_bytes = options.block_size_bytes, .physical_block_size_bytes = physical_bytes},
      .io_types = {IoType::kRead, IoType::kWrite, IoType::kFlush, IoType::kDiscard, IoType::kWriteZeroes,
                   IoType::kReset},
  });
}

Result<> resize_null_bdev(BdevManager& bdevs, Bdev& bdev, uint64_t new_size_mib) {
  if (dynamic_cast<NullBdev*>(&bdev) == nullptr) return fail(ENODEV, "this is not a null bdev");
  if (new_size_mib > INT64_MAX / kMiB) return fail(EINVAL, "the size of a null bdev is less than 2^63 bytes");
  if (new_size_mib < bdev.size_bytes() / kMiB) return fail(EINVAL, "a null bdev cannot shrink");
  const uint64_t size_bytes = new_size_mib * kMiB;
  if (size_bytes % bdev.limits().block_size_bytes != 0) {
    return fail(EINVAL, "the new size is not a multiple of the block size");
  }
  // A size that is not whole MiB counts rounded down: growing to that is not a change.
  if (size_bytes > bdev.size_bytes()) bdevs.set_size(bdev, size_bytes);
  return {};
}

}  // namespace sluice
