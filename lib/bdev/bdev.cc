#include "lib/bdev/bdev.h"

#include <bit>

namespace sluice {

Bdev::Bdev(Options options)
    : name_(std::move(options.name)),
      uuid_(options.uuid.is_nil() ? Uuid::random() : options.uuid),
      product_name_(options.product_name),
      limits_(options.limits),
      io_types_(options.io_types),
      readonly_(options.readonly),
      aliases_(std::move(options.aliases)),
      size_bytes_(options.size_bytes) {
  // Modules refuse wrong parameters before they get here.
  CHECK(std::has_single_bit(limits_.block_size_bytes) && limits_.block_size_bytes >= 512);
  CHECK(limits_.max_transfer_bytes >= limits_.block_size_bytes);
  CHECK(limits_.optimal_boundary_bytes % limits_.block_size_bytes == 0);
  CHECK(limits_.max_segments > 0);
  CHECK(std::has_single_bit(limits_.buffer_alignment_bytes));
  CHECK(options.size_bytes % limits_.block_size_bytes == 0);
}

Result<std::unique_ptr<Channel>> Bdev::create_channel() {
  if (removed_.load(std::memory_order_relaxed)) return fail(ENODEV, "the device is being removed");
  auto made = make_channel();
  if (!made) return std::unexpected(made.error());
  return std::unique_ptr<Channel>(std::move(*made));
}

IoStats Bdev::closed_channels_stats() const {
  const std::lock_guard lock(stats_mutex_);
  return closed_stats_;
}

uint64_t Bdev::closed_channels() const {
  const std::lock_guard lock(stats_mutex_);
  return closed_channels_;
}

void Bdev::reset_closed_channels_stats(IoStatsReset mode) {
  const std::lock_guard lock(stats_mutex_);
  closed_stats_.reset(mode);
}

void Bdev::add_closed_channel(const IoStats& stats) {
  const std::lock_guard lock(stats_mutex_);
  closed_stats_.add(stats);
  ++closed_channels_;
}

}  // namespace sluice
