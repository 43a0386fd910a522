#include "lib/bdev/bdev_channel.h"

#include <algorithm>

#include "lib/bdev/bdev.h"
#include "lib/bdev/split_io.h"

namespace sluice {

BdevChannel::BdevChannel(Bdev& bdev) : Channel(bdev), bdev_(bdev) {}

BdevChannel::~BdevChannel() {
  CHECK(in_flight_ == 0);
  bdev_.add_closed_channel(stats_);
}

void BdevChannel::submit(BlockIo& io) {
  io.channel = this;
  io.target = &thread();
  io.submit_ns = thread().now_ns();
  ++in_flight_;
  if (const IoStatus refused = check(io); refused != IoStatus::kOk) {
    complete(io, refused);
  } else if (!fits(io)) {
    SplitIo::start(*this, io);
  } else {
    do_submit(io);
  }
}

IoStatus BdevChannel::check(const BlockIo& io) const {
  if (bdev_.removed_.load(std::memory_order_relaxed)) return IoStatus::kRemoved;
  if (!bdev_.supports(io.type)) return IoStatus::kUnsupported;
  if (io.type == IoType::kFlush || io.type == IoType::kReset) return IoStatus::kOk;
  if (io.type != IoType::kRead && bdev_.readonly()) return IoStatus::kReadOnly;
  const uint64_t size = bdev_.size_bytes();
  const bool whole_blocks = ((io.offset_bytes | io.length_bytes) & (bdev_.limits().block_size_bytes - 1)) == 0;
  const bool within = io.length_bytes <= size && io.offset_bytes <= size - io.length_bytes;
  return whole_blocks && within && io.length_bytes > 0 ? IoStatus::kOk : IoStatus::kInvalid;
}

// Whether the device can take the request as it is.
bool BdevChannel::fits(const BlockIo& io) const {
  if (io.type != IoType::kRead && io.type != IoType::kWrite) return true;
  const BdevLimits& limits = bdev_.limits();
  if (io.length_bytes > limits.max_transfer_bytes || io.iov_count > limits.max_segments) return false;
  if (limits.optimal_boundary_bytes != 0 &&
      io.offset_bytes / limits.optimal_boundary_bytes !=
          (io.offset_bytes + io.length_bytes - 1) / limits.optimal_boundary_bytes) {
    return false;
  }
  if (limits.buffer_alignment_bytes > 1) {
    uintptr_t bits = 0;
    for (uint32_t i = 0; i < io.iov_count; ++i)
      bits |= reinterpret_cast<uintptr_t>(io.iov[i].iov_base) | io.iov[i].iov_len;
    if ((bits & (limits.buffer_alignment_bytes - 1)) != 0) return false;
  }
  return true;
}

void BdevChannel::complete(BlockIo& io, IoStatus status) {
  end(io, status);
  io.target->defer(io);
}

void BdevChannel::complete_now(BlockIo& io, IoStatus status) {
  end(io, status);
  io.run(io);
}

void BdevChannel::end(BlockIo& io, IoStatus status) {
  BdevChannel& channel = *io.channel;
  // What was in flight when the device was pulled out ends with an error, however far it got.
  if (channel.bdev_.removed_.load(std::memory_order_relaxed)) status = IoStatus::kRemoved;
  io.status = status;
  if (io.submit_ns == SplitIo::kPiece) return;
  --channel.in_flight_;
  if (status != IoStatus::kOk) {
    ++channel.stats_.by_status[static_cast<size_t>(status)];
    return;
  }
  IoTypeStats& stats = channel.stats_.of(io.type);
  const uint64_t ns = io.target->now_ns() - io.submit_ns;
  ++stats.ops;
  stats.bytes += io.length_bytes;
  stats.total_ns += ns;
  stats.max_ns = std::max(stats.max_ns, ns);
  stats.min_ns = std::min(stats.min_ns, ns);
}

}  // namespace sluice
