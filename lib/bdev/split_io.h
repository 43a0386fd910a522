// SplitIo: carries out a read or write that a device cannot take as it is: in pieces within the device's limits, and
// through an aligned buffer where the submitter's buffers are not aligned. One piece at a time.
//
// Thread:    the channel's.
// Ownership: objects come from the host's ElasticPool, and so do the aligned buffers, one for each piece that needs
// one.
//            These are few: whoever finds none waits in a queue of the host. A request of many such pieces takes its
//            turn again with each of them, so that large ones do not keep others waiting.
#pragma once

#include <memory>
#include <vector>

#include "lib/base/iov_cursor.h"
#include "lib/bdev/block_io.h"

namespace sluice {

class SplitIo : public BlockIo {
 public:
  // Of one host: 16 MiB, whatever is submitted.
  static constexpr uint32_t kMaxBounceBuffers = 64;

  SplitIo();
  ~SplitIo();

  // Takes the request over from submit(); completes it.
  static void start(BdevChannel& channel, BlockIo& parent);

  // Marks, as submit_ns, a piece: a request that is not counted, as its parent is.
  static constexpr uint64_t kPiece = UINT64_MAX;

 private:
  struct BounceBuffer;
  class BounceTurns;

  void next_piece();
  bool slice(uint64_t max_bytes);
  void bounce();
  void on_bounce_turn();
  void submit_piece();
  void on_piece_done();
  void end_bounce();
  void finish(IoStatus status);

  BlockIo* parent_ = nullptr;
  uint64_t done_bytes_ = 0;
  IovCursor cursor_;  // at done_bytes_ of the parent's buffers
  std::vector<iovec> slices_;
  BounceTurns* turns_ = nullptr;                 // of the host where it asked for its turn
  std::unique_ptr<BounceBuffer> bounce_buffer_;  // while a piece is in it
  iovec bounce_iov_{};
};

}  // namespace sluice
