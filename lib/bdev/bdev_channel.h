// BdevChannel: one lightweight thread's access to one Bdev. Modules derive from it and override do_submit() only.
//
// Thread:     its own lightweight thread, but for complete(), which the whole of that thread's host may call.
// Invariants: (1) each submitted request completes exactly once, later than submit(). (2) do_submit() sees only
// requests
//             that are within the device's limits: types, range, alignment, segments.
#pragma once

#include <cstdint>

#include "lib/bdev/block_io.h"
#include "lib/bdev/io_stats.h"
#include "lib/thread/channel.h"
#include "lib/thread/lw_thread.h"

namespace sluice {

class Bdev;

class BdevChannel : public Channel {
 public:
  ~BdevChannel() override;

  Bdev& bdev() const { return bdev_; }

  // Takes the request; it completes with its status. Never fails, never completes inside.
  void submit(BlockIo& io);

  // Requests that have been submitted and have not completed.
  uint32_t in_flight() const { return in_flight_; }
  const IoStats& stats() const { return stats_; }
  void reset_stats(IoStatsReset mode) { stats_.reset(mode); }

 protected:
  explicit BdevChannel(Bdev& bdev);

  // For modules: ends a request that do_submit() was given. On the channel's host; also inside do_submit().
  static void complete(BlockIo& io, IoStatus status);
  // The same at once, instead of as deferred work: `run` has been called when this returns. As the last thing that work
  // of the channel's own lightweight thread does, which submit() did not call: what `run` does may end the channel.
  static void complete_now(BlockIo& io, IoStatus status);

 private:
  friend class SplitIo;

  // Starts the request. Must not refer to it after complete().
  virtual void do_submit(BlockIo& io) = 0;

  IoStatus check(const BlockIo& io) const;
  bool fits(const BlockIo& io) const;
  static void end(BlockIo& io, IoStatus status);

  Bdev& bdev_;
  uint32_t in_flight_ = 0;
  IoStats stats_;
};

}  // namespace sluice
