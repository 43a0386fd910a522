// VolumeChannel: one lightweight thread's access to a volume.
//
//   read:   look at the map -> one piece for each run that lies in one place -> base bdev (or zeros, or the origin)
//   write:  one piece for each cluster: mapped and private -> base bdev, in place
//                                       private, whole sub-clusters without content -> base bdev -> owner: visible
//                                       else -> owner: where? -> fill, copy -> base bdev -> owner: visible
//
// Thread:     its own.
//             A piece that is done completes its request at once; in submit() that waits for the end of the turn.
// Ownership:  pieces come from the host's ElasticPool, and hold no memory while nothing is in flight.
// Invariants: a piece is inside an epoch from before it looks at the map until its last use of what it found, but not
//             while it waits for the owner's leave to write: the owner may be waiting for the epoch to end.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "lib/base/iov_cursor.h"
#include "lib/bdev/bdev_channel.h"
#include "lib/lvol/epochs.h"
#include "lib/lvol/map_request.h"
#include "lib/lvol/maps.h"
#include "lib/thread/elastic_pool.h"
#include "lib/thread/task.h"

namespace sluice::lvol {

class Store;

class VolumeChannel final : public BdevChannel {
 public:
  // `origin` is without a channel where the volume has no external one.
  VolumeChannel(Bdev& bdev, Store& store, Volume& volume, ChannelRef base, ChannelRef origin);
  ~VolumeChannel() override;

  // Makes all of the volume's cluster `index` its own: copies what it shares with others. `allocate`: also what nobody
  // has written.
  Task<IoStatus> own(uint32_t index, bool allocate);

 private:
  struct Split;
  struct Piece;
  struct Owning;

  enum class Source : uint8_t { kBase, kOrigin, kZeros, kDamaged };
  // A run of bytes of the volume that lie in one place.
  struct Extent {
    Source source = Source::kZeros;
    uint64_t offset_bytes = 0;  // kBase, kOrigin: there
    uint64_t length_bytes = 0;
  };

  void do_submit(BlockIo& io) override;
  void on_arrive() override;
  void use_pools(ThreadHost& host);

  void read(BlockIo& io);
  void write(BlockIo& io);
  void write_zeroes(BlockIo& io);
  void discard(BlockIo& io);
  void flush(BlockIo& io);

  Extent next_extent(uint64_t offset_bytes, uint64_t max_bytes) const;
  Extent cluster_extent(uint64_t offset_bytes, uint64_t max_bytes) const;
  Extent extent_of(const Entry& entry, uint64_t index, uint64_t within_bytes, uint64_t max_bytes) const;
  void read_extent(Piece& piece, const Extent& extent);

  void write_piece(Piece& piece);
  void write_unasked(Piece& piece);
  void granted(Piece& piece);
  uint64_t copy_step_bytes(const Piece& piece) const;
  Task<IoStatus> fill_and_write(Piece& piece);
  Task<IoStatus> write_filled(Piece& piece, uint64_t begin_bytes, std::span<std::byte> bytes);
  Task<IoStatus> read_subclusters(const Piece& piece, uint64_t wanted, uint32_t first, std::span<std::byte> buffer);
  void publish(Piece& piece, IoStatus written);
  void ask(Piece& piece, MapRequest::Kind kind);
  void on_answer(Piece& piece);

  Piece& take_piece(BlockIo* io, Split* split);
  Split& split_up(BlockIo& io);
  void slice(Piece& piece, IovCursor& cursor, uint64_t length_bytes);
  void to_base(Piece& piece, uint64_t offset_bytes);
  static void finish_piece(Work& work);
  void finish(Piece& piece, IoStatus status);
  void finish_later(Piece& piece, IoStatus status);
  void end_part(Split& split, IoStatus status);

  Store& store_;
  Volume& volume_;
  // Powers of two. Each request asks several times in which cluster and sub-cluster it is: divisions are slow.
  const uint64_t cluster_bytes_;
  const uint64_t subcluster_bytes_;
  const int cluster_bits_;
  const int subcluster_bits_;
  ChannelRef base_;
  ChannelRef origin_;
  ElasticPool<Piece>* pieces_ = nullptr;
  ElasticPool<Split>* splits_ = nullptr;
  EpochReader reader_;
  std::vector<Extent> extents_;  // of the request that is being submitted
};

}  // namespace sluice::lvol
