// SplitIo: carries out a read or write that a device cannot take as it is: in pieces within the device's limits, and
// through an aligned buffer where the submitter's buffers are not aligned. One piece at a time.
//
// Thread:    the channel's.
// Ownership: objects and their buffers come from the host's ElasticPool.
#pragma once

#include <memory>
#include <vector>

#include "lib/base/iov_cursor.h"
#include "lib/bdev/block_io.h"

namespace sluice {

class SplitIo : public BlockIo {
 public:
  // Takes the request over from submit(); completes it.
  static void start(BdevChannel& channel, BlockIo& parent);

  // Marks, as submit_ns, a piece: a request that is not counted, as its parent is.
  static constexpr uint64_t kPiece = UINT64_MAX;

 private:
  struct FreeBuffer {
    void operator()(std::byte* buffer) const;
  };

  void next_piece();
  bool slice(uint64_t max_bytes);
  bool use_bounce_buffer(uint64_t max_bytes);
  void on_piece_done();
  void finish(IoStatus status);

  BlockIo* parent_ = nullptr;
  uint64_t done_bytes_ = 0;
  IovCursor cursor_;  // at done_bytes_ of the parent's buffers
  std::vector<iovec> slices_;
  bool bounced_ = false;
  iovec bounce_iov_{};
  std::unique_ptr<std::byte, FreeBuffer> bounce_buffer_;
};

}  // namespace sluice
