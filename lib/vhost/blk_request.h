// BlkRequest: one request of a virtio block device, from its descriptor chain to its status byte.
// Thread:    the queue's.
// Ownership: from the host's ElasticPool, while it is in flight.
// Source:    virtio 1.3, "Block Device / Device Operation".
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "lib/bdev/block_io.h"
#include "lib/vhost/blk_device.h"
#include "lib/vhost/chain.h"
#include "lib/vhost/dirty_log.h"
#include "lib/vhost/limits.h"
#include "lib/virtio/virtio.h"

namespace sluice::vhost {

class BlkQueue;
struct MapUse;

class BlkRequest : public BlockIo {
 public:
  // What is to be done with a parsed request.
  enum class Next : uint8_t {
    kSubmit,  // to the block device
    kFinish,  // it has its status already
    kBroken,  // the chain is no request: the ring cannot go on (see fault())
  };

  // Fills in the request from chain().
  Next parse(const BlkDevice& device);
  // Makes of it what this bdev can do: where it knows no write zeroes, zeroes are written. False if nothing is to be
  // done: a discard is a hint, which a bdev without discard does not take.
  bool adapt_to(const Bdev& bdev);
  // After a completion with success: true if there is more to submit, a further segment or the flush that
  // `write_through` demands.
  bool next_step(bool write_through);
  // Writes the status byte; returns how many bytes of the chain were written.
  uint32_t finish(BlkStatus status);
  // Marks all that may have been written of the guest's memory. After finish(). `map` is what the chain came from.
  void mark_written(DirtyLog& log, const MemoryMap& map) const;

  Chain& chain() { return chain_; }
  RingFault fault() const { return fault_; }
  BlkStatus blk_status() const { return blk_status_; }

  // Set by the queue.
  BlkQueue* queue = nullptr;
  MapUse* map_use = nullptr;

  BlkRequest() { chain_.segments = &segments_; }

 private:
  Next broken(RingFault fault) {
    fault_ = fault;
    return Next::kBroken;
  }
  Next finished(BlkStatus status) {
    blk_status_ = status;
    return Next::kFinish;
  }
  void strip_header();
  void strip_status();
  Next parse_data(uint64_t sector, bool in);
  Next parse_id(const BlkDevice& device);
  Next parse_ranges(const BlkDevice& device, bool discard);
  void load_range();
  bool write_zeroes_from(uint64_t offset);

  Chain chain_;
  std::vector<iovec> segments_;
  uint32_t first_data_ = 0;  // in segments_, once the header is gone
  std::byte* status_byte_ = nullptr;
  uint32_t written_ = 0;   // device-writable bytes filled, without the status
  uint64_t writable_ = 0;  // those that may have been, also of a request that failed
  RingFault fault_ = RingFault::kNone;
  BlkStatus blk_status_ = BlkStatus::kOk;
  IoType range_type_ = IoType::kDiscard;
  uint64_t zeroes_end_ = 0;  // of the range of zeroes that are being written; 0: none are
  iovec zeroes_{};
  uint32_t range_ = 0;
  uint32_t range_count_ = 0;
  std::array<BlkDiscardSegment, kMaxDiscardSegments> ranges_;
};

BlkStatus to_blk_status(IoStatus status);

}  // namespace sluice::vhost
