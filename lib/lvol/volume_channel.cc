#include "lib/lvol/volume_channel.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "lib/bdev/bdev.h"
#include "lib/bdev/io_buffer.h"
#include "lib/lvol/io_task.h"
#include "lib/lvol/store.h"
#include "lib/lvol/volume.h"
#include "lib/thread/await.h"

namespace sluice::lvol {
namespace {

// What is written where zeros must be stored.
constexpr size_t kZeroBytes = 64U << 10;
alignas(4096) std::byte zero_bytes[kZeroBytes];  // never written to

// What one request copies of a cluster that nobody waits for: others have their turns in between.
constexpr uint64_t kCopyStepBytes = 32U << 10;

BdevChannel& channel_of(const ChannelRef& ref) { return static_cast<BdevChannel&>(*ref.get()); }

}  // namespace

// One request in several pieces.
struct VolumeChannel::Split {
  BlockIo* io = nullptr;
  uint32_t left = 0;  // pieces: none of them completes before all are submitted
  IoStatus status = IoStatus::kOk;
};

// A cluster that is made the volume's own, though nobody has submitted a request for that.
struct VolumeChannel::Owning {
  Event done;
  IoStatus status = IoStatus::kOk;
};

// By cache lines: what a read, or a write in place, needs of it lies in three of them.
struct alignas(64) VolumeChannel::Piece : MapRequest {
  VolumeChannel* owner = nullptr;
  BlockIo* io = nullptr;     // the request
  Split* split = nullptr;    // that this is a part of; nullptr: it is all of it
  Owning* owning = nullptr;  // instead of a request
  EpochUse use;
  uint64_t within_bytes = 0;  // write: where in the cluster it begins
  bool asks = false;          // write: others have come between when it did not
  IoStatus written = IoStatus::kOk;
  std::vector<iovec> slices;  // of a part: its buffers

  std::span<const iovec> buffers() const { return {iov, iov_count}; }
};

VolumeChannel::VolumeChannel(Bdev& bdev, Store& store, Volume& volume, ChannelRef base, ChannelRef origin)
    : BdevChannel(bdev),
      store_(store),
      volume_(volume),
      cluster_bytes_(store.geometry().cluster_bytes),
      subcluster_bytes_(store.geometry().subcluster_bytes()),
      cluster_bits_(std::countr_zero(cluster_bytes_)),
      subcluster_bits_(std::countr_zero(subcluster_bytes_)),
      base_(std::move(base)),
      origin_(std::move(origin)),
      reader_(store.epochs(), &volume) {
  use_pools(*ThreadHost::current());
}

VolumeChannel::~VolumeChannel() = default;

void VolumeChannel::on_arrive() { use_pools(thread().host()); }

void VolumeChannel::use_pools(ThreadHost& host) {
  pieces_ = &ElasticPool<Piece>::of(host);
  splits_ = &ElasticPool<Split>::of(host);
}

void VolumeChannel::do_submit(BlockIo& io) {
  switch (io.type) {
    case IoType::kRead:
      read(io);
      return;
    case IoType::kWrite:
      write(io);
      return;
    case IoType::kDiscard:
      discard(io);
      return;
    case IoType::kWriteZeroes:
      write_zeroes(io);
      return;
    case IoType::kFlush:
      flush(io);
      return;
    case IoType::kReset:
      complete(io, IoStatus::kOk);
      return;
  }
}

// --- Pieces ---

VolumeChannel::Piece& VolumeChannel::take_piece(BlockIo* io, Split* split) {
  Piece& piece = *pieces_->take().release();  // until finish()
  piece.owner = this;
  piece.io = io;
  piece.split = split;
  piece.owning = nullptr;
  piece.asks = false;
  piece.volume = &volume_;
  piece.count = 1;
  if (io != nullptr) {
    piece.type = io->type;
    piece.iov = io->iov;
    piece.iov_count = io->iov_count;
    piece.length_bytes = io->length_bytes;
  }
  if (split != nullptr) ++split->left;
  return piece;
}

// It ends with the last of its pieces.
VolumeChannel::Split& VolumeChannel::split_up(BlockIo& io) {
  CHECK(io.length_bytes > 0);                 // or it would have none
  Split& split = *splits_->take().release();  // until end_part()
  split.io = &io;
  split.left = 0;
  split.status = IoStatus::kOk;
  return split;
}

// The next bytes of the request's buffers are the piece's.
void VolumeChannel::slice(Piece& piece, IovCursor& cursor, uint64_t length_bytes) {
  piece.slices.clear();
  for (uint64_t left = length_bytes; left > 0;) {
    const std::span<std::byte> bytes = cursor.next(left);
    CHECK(!bytes.empty());
    piece.slices.push_back({bytes.data(), bytes.size()});
    left -= bytes.size();
  }
  piece.iov = piece.slices.data();
  piece.iov_count = static_cast<uint32_t>(piece.slices.size());
  piece.length_bytes = length_bytes;
}

void VolumeChannel::to_base(Piece& piece, uint64_t offset_bytes) {
  piece.offset_bytes = offset_bytes;
  channel_of(base_).submit(piece);
}

// What is submitted for it has completed, and nothing is left to do.
void VolumeChannel::finish_piece(Work& work) {
  auto& piece = static_cast<Piece&>(work);
  piece.owner->finish(piece, piece.status);
}

// The last thing that a piece of work does, later than submit(): the channel may be gone afterwards.
void VolumeChannel::finish(Piece& piece, IoStatus status) {
  if (piece.use.entered()) reader_.leave(piece.use);
  BlockIo* io = piece.io;
  Split* split = piece.split;
  Owning* owning = piece.owning;
  pieces_->give_back(std::unique_ptr<Piece>(&piece));
  if (split != nullptr) {
    end_part(*split, status);
  } else if (owning != nullptr) {
    owning->status = status;
    owning->done.set();
  } else {
    complete_now(*io, status);
  }
}

// Within submit().
void VolumeChannel::finish_later(Piece& piece, IoStatus status) {
  piece.status = status;
  piece.run = finish_piece;
  thread().defer(piece);
}

void VolumeChannel::end_part(Split& split, IoStatus status) {
  if (split.status == IoStatus::kOk) split.status = status;
  if (--split.left > 0) return;
  BlockIo& io = *split.io;
  const IoStatus result = split.status;
  splits_->give_back(std::unique_ptr<Split>(&split));
  complete_now(io, result);
}

// --- Reading ---

void VolumeChannel::read(BlockIo& io) {
  Piece& first = take_piece(&io, nullptr);
  reader_.enter(first.use);
  const Extent extent = next_extent(io.offset_bytes, io.length_bytes);
  if (extent.length_bytes == io.length_bytes) {
    read_extent(first, extent);
    return;
  }
  // All that is looked up here is looked up in the epoch of the first piece, which each of the others enters before
  // that one can end.
  extents_.clear();
  for (uint64_t done = 0; done < io.length_bytes;) {
    extents_.push_back(next_extent(io.offset_bytes + done, io.length_bytes - done));
    done += extents_.back().length_bytes;
  }
  Split& split = split_up(io);
  first.split = &split;
  ++split.left;
  IovCursor cursor({io.iov, io.iov_count});
  for (size_t i = 0; i < extents_.size(); ++i) {
    Piece& piece = i == 0 ? first : take_piece(&io, &split);
    if (i > 0) reader_.enter(piece.use);
    slice(piece, cursor, extents_[i].length_bytes);
    read_extent(piece, extents_[i]);
  }
}

// From `offset_bytes` on, at most `max_bytes`: over the ends of clusters where the next one goes on in the same place.
VolumeChannel::Extent VolumeChannel::next_extent(uint64_t offset_bytes, uint64_t max_bytes) const {
  Extent extent = cluster_extent(offset_bytes, max_bytes);
  while (extent.length_bytes < max_bytes) {
    const uint64_t at = offset_bytes + extent.length_bytes;
    if ((at & (cluster_bytes_ - 1)) != 0) break;  // it ends within a cluster
    const Extent next = cluster_extent(at, max_bytes - extent.length_bytes);
    const bool placed = next.source == Source::kBase || next.source == Source::kOrigin;
    if (next.source != extent.source) break;
    if (placed && next.offset_bytes != extent.offset_bytes + extent.length_bytes) break;
    extent.length_bytes += next.length_bytes;
  }
  return extent;
}

// Within the cluster of `offset_bytes`.
VolumeChannel::Extent VolumeChannel::cluster_extent(uint64_t offset_bytes, uint64_t max_bytes) const {
  const uint64_t index = offset_bytes >> cluster_bits_;
  const uint64_t within = offset_bytes & (cluster_bytes_ - 1);
  const uint64_t max = std::min(max_bytes, cluster_bytes_ - within);
  const Found found = store_.maps().find(volume_.map, index);
  if (found.damaged) return {.source = Source::kDamaged, .length_bytes = max};
  return extent_of(found.entry, index, within, max);
}

// Of one cluster.
VolumeChannel::Extent VolumeChannel::extent_of(const Entry& entry, uint64_t index, uint64_t within_bytes,
                                               uint64_t max_bytes) const {
  const Geometry& geometry = store_.geometry();
  const auto first = static_cast<uint32_t>(within_bytes >> subcluster_bits_);
  const uint64_t bits = entry.valid >> first;
  const bool own = (bits & 1) != 0;
  const uint32_t run = static_cast<uint32_t>(own ? std::countr_one(bits) : std::countr_zero(bits));
  const uint64_t run_end_bytes = std::min(static_cast<uint64_t>(first + run) << subcluster_bits_, cluster_bytes_);
  const uint64_t length = std::min(max_bytes, run_end_bytes - within_bytes);
  if (own) {
    return {.source = Source::kBase,
            .offset_bytes = geometry.offset_bytes(entry.own) + within_bytes,
            .length_bytes = length};
  }
  if (entry.base >= kFirstDataCluster) {
    return {.source = Source::kBase,
            .offset_bytes = geometry.offset_bytes(entry.base) + within_bytes,
            .length_bytes = length};
  }
  const uint64_t offset = index * cluster_bytes_ + within_bytes;
  if (entry.base == kBaseZeros || !origin_) return {.length_bytes = length};
  const uint64_t origin_bytes = channel_of(origin_).bdev().size_bytes();
  // A volume may be larger than its origin.
  if (offset >= origin_bytes) return {.length_bytes = length};
  return {.source = Source::kOrigin, .offset_bytes = offset, .length_bytes = std::min(length, origin_bytes - offset)};
}

void VolumeChannel::read_extent(Piece& piece, const Extent& extent) {
  switch (extent.source) {
    case Source::kBase:
    case Source::kOrigin:
      piece.type = IoType::kRead;
      piece.offset_bytes = extent.offset_bytes;
      piece.run = finish_piece;
      channel_of(extent.source == Source::kBase ? base_ : origin_).submit(piece);
      return;
    case Source::kZeros: {
      IovCursor cursor(piece.buffers());
      cursor.fill(std::byte{0}, extent.length_bytes);
      finish_later(piece, IoStatus::kOk);
      return;
    }
    case Source::kDamaged:
      finish_later(piece, IoStatus::kFailed);
      return;
  }
}

// --- Writing ---

void VolumeChannel::write(BlockIo& io) {
  const uint64_t within = io.offset_bytes & (cluster_bytes_ - 1);
  if (within + io.length_bytes <= cluster_bytes_) {
    Piece& piece = take_piece(&io, nullptr);
    piece.index = static_cast<uint32_t>(io.offset_bytes >> cluster_bits_);
    piece.within_bytes = within;
    write_piece(piece);
    return;
  }
  Split& split = split_up(io);
  IovCursor cursor({io.iov, io.iov_count});
  for (uint64_t done = 0; done < io.length_bytes;) {
    const uint64_t at = io.offset_bytes + done;
    const uint64_t begin = at & (cluster_bytes_ - 1);
    const uint64_t length = std::min(io.length_bytes - done, cluster_bytes_ - begin);
    Piece& piece = take_piece(&io, &split);
    piece.index = static_cast<uint32_t>(at / cluster_bytes_);
    piece.within_bytes = begin;
    slice(piece, cursor, length);
    write_piece(piece);
    done += length;
  }
}

void VolumeChannel::write_piece(Piece& piece) {
  const uint64_t end = piece.within_bytes + piece.length_bytes;
  const auto first = static_cast<uint32_t>(piece.within_bytes >> subcluster_bits_);
  const auto last = static_cast<uint32_t>((end - 1) >> subcluster_bits_);
  piece.touched = store_.geometry().bits(first, last);

  piece.partial = 0;
  if ((piece.within_bytes & (subcluster_bytes_ - 1)) != 0) piece.partial |= 1ULL << first;
  if ((end & (subcluster_bytes_ - 1)) != 0) piece.partial |= 1ULL << last;

  reader_.enter(piece.use);
  // The owner holds writes before it ends the epoch: who is in a later one sees that here.
  if (!volume_.held.load(std::memory_order_acquire)) [[likely]] {
    const Found found = store_.maps().find(volume_.map, piece.index);
    if (found.in_place) [[likely]] {
      const uint64_t missing = piece.touched & ~found.entry.valid;
      if (missing == 0) [[likely]] {
        piece.type = IoType::kWrite;
        piece.run = finish_piece;
        to_base(piece, store_.geometry().offset_bytes(found.entry.own) + piece.within_bytes);
        return;
      }
      // Where nobody can see anything yet, there is nothing to ask for.
      if (missing == piece.touched && piece.partial == 0 && !piece.asks) {
        piece.cluster = found.entry.own;
        write_unasked(piece);
        return;
      }
    }
  }
  reader_.leave(piece.use);
  ask(piece, MapRequest::Kind::kWrite);
}

// It stays in its epoch until the owner has answered: the cluster does not become another's meanwhile.
void VolumeChannel::write_unasked(Piece& piece) {
  piece.type = IoType::kWrite;
  piece.run = [](Work& work) {
    auto& done = static_cast<Piece&>(work);
    if (done.status == IoStatus::kOk) {
      done.owner->ask(done, MapRequest::Kind::kWritten);
    } else {
      done.owner->finish(done, done.status);
    }
  };
  to_base(piece, store_.geometry().offset_bytes(piece.cluster) + piece.within_bytes);
}

void VolumeChannel::ask(Piece& piece, MapRequest::Kind kind) {
  piece.kind = kind;
  piece.channel_thread = &thread();
  piece.on_answer = [](Work& work) {
    auto& answered = static_cast<Piece&>(work);
    answered.owner->on_answer(answered);
  };
  store_.ask(piece);
}

void VolumeChannel::on_answer(Piece& piece) {
  switch (piece.answer) {
    case MapRequest::Answer::kFailed:
      finish(piece, piece.written != IoStatus::kOk ? std::exchange(piece.written, IoStatus::kOk) : piece.result);
      return;
    case MapRequest::Answer::kRetry:
      piece.asks = piece.kind == MapRequest::Kind::kWritten;
      if (piece.use.entered()) reader_.leave(piece.use);
      write_piece(piece);
      return;
    case MapRequest::Answer::kGranted:
      granted(piece);
      return;
    case MapRequest::Answer::kDone:
      finish(piece, IoStatus::kOk);
      return;
  }
}

// What the owner has granted stays as it is until it is published: no epoch is needed.
void VolumeChannel::granted(Piece& piece) {
  if (piece.fill != 0 || piece.copy != 0) {
    start(fill_and_write(piece), [this, &piece](IoStatus status) { publish(piece, status); });
    return;
  }
  piece.type = IoType::kWrite;
  piece.run = [](Work& work) {
    auto& done = static_cast<Piece&>(work);
    done.owner->publish(done, done.status);
  };
  to_base(piece, store_.geometry().offset_bytes(piece.cluster) + piece.within_bytes);
}

void VolumeChannel::publish(Piece& piece, IoStatus written) {
  piece.written = written;
  piece.failed = written != IoStatus::kOk;
  ask(piece, MapRequest::Kind::kPublish);
}

uint64_t VolumeChannel::copy_step_bytes(const Piece& piece) const {
  return piece.owning != nullptr ? kCopyStepBytes : cluster_bytes_;
}

// Completes the sub-clusters that the write covers in part, and copies what must move to the new cluster along.
Task<IoStatus> VolumeChannel::fill_and_write(Piece& piece) {
  const Geometry& geometry = store_.geometry();
  const uint64_t all = piece.touched | piece.copy;
  const auto first = static_cast<uint32_t>(std::countr_zero(all));
  const auto last = static_cast<uint32_t>(63 - std::countl_zero(all));
  const uint64_t begin_bytes = first * subcluster_bytes_;
  auto buffer = IoBuffer::allocate((last - first + 1) * subcluster_bytes_);
  if (!buffer) co_return IoStatus::kNoMemory;
  const std::span<std::byte> bytes = buffer->bytes();
  if (const IoStatus status = co_await read_subclusters(piece, piece.fill | piece.copy, first, bytes);
      status != IoStatus::kOk) {
    co_return status;
  }
  const uint64_t target = geometry.offset_bytes(piece.cluster);
  IoStatus status = IoStatus::kOk;
  if (piece.touched != 0) status = co_await write_filled(piece, begin_bytes, bytes);
  for (uint64_t left = piece.copy; left != 0 && status == IoStatus::kOk;) {
    const auto run_first = static_cast<uint32_t>(std::countr_zero(left));
    const auto run = static_cast<uint32_t>(std::countr_one(left >> run_first));
    const uint64_t run_begin = run_first * subcluster_bytes_;
    for (uint64_t done = 0; done < run * subcluster_bytes_ && status == IoStatus::kOk;) {
      const uint64_t length = std::min(run * subcluster_bytes_ - done, copy_step_bytes(piece));
      status = co_await transfer(channel_of(base_), IoType::kWrite, target + run_begin + done,
                                 bytes.subspan(run_begin - begin_bytes + done, length));
      done += length;
    }
    left &= ~geometry.bits(run_first, run_first + run - 1);
  }
  co_return status;
}

// The write itself, extended to the sub-clusters that were filled. The buffer begins at `begin_bytes` of the cluster.
Task<IoStatus> VolumeChannel::write_filled(Piece& piece, uint64_t begin_bytes, std::span<std::byte> bytes) {
  IovCursor cursor(piece.buffers());
  cursor.copy_out(bytes.subspan(piece.within_bytes - begin_bytes, piece.length_bytes));
  uint64_t from = piece.within_bytes;
  uint64_t to = piece.within_bytes + piece.length_bytes;
  const uint64_t first_touched = from / subcluster_bytes_;
  const uint64_t last_touched = (to - 1) / subcluster_bytes_;
  if ((piece.fill >> first_touched & 1) != 0) from = first_touched * subcluster_bytes_;
  if ((piece.fill >> last_touched & 1) != 0) to = (last_touched + 1) * subcluster_bytes_;
  co_return co_await transfer(channel_of(base_), IoType::kWrite, store_.geometry().offset_bytes(piece.cluster) + from,
                              bytes.subspan(from - begin_bytes, to - from));
}

// Of the entry before, into a buffer that begins with sub-cluster `first`.
Task<IoStatus> VolumeChannel::read_subclusters(const Piece& piece, uint64_t wanted, uint32_t first,
                                               std::span<std::byte> buffer) {
  while (wanted != 0) {
    const auto run_first = static_cast<uint32_t>(std::countr_zero(wanted));
    const auto run = static_cast<uint32_t>(std::countr_one(wanted >> run_first));
    const uint64_t end = (run_first + run) * subcluster_bytes_;
    for (uint64_t at = run_first * subcluster_bytes_; at < end;) {
      const Extent extent = extent_of(piece.source, piece.index, at, std::min(end - at, copy_step_bytes(piece)));
      const std::span<std::byte> bytes = buffer.subspan(at - first * subcluster_bytes_, extent.length_bytes);
      if (extent.source == Source::kZeros) {
        std::memset(bytes.data(), 0, bytes.size());
      } else {
        BdevChannel& channel = channel_of(extent.source == Source::kBase ? base_ : origin_);
        const IoStatus status = co_await transfer(channel, IoType::kRead, extent.offset_bytes, bytes);
        if (status != IoStatus::kOk) co_return status;
      }
      at += extent.length_bytes;
    }
    wanted &= ~store_.geometry().bits(run_first, run_first + run - 1);
  }
  co_return IoStatus::kOk;
}

// --- The rest ---

Task<IoStatus> VolumeChannel::own(uint32_t index, bool allocate) {
  Owning owning;
  Piece& piece = take_piece(nullptr, nullptr);
  piece.owning = &owning;
  piece.index = index;
  piece.touched = piece.partial = 0;
  piece.allocate = allocate;
  ask(piece, MapRequest::Kind::kOwn);
  co_await owning.done.wait();
  co_return owning.status;
}

// Whole clusters lose what they hold; of others nothing could be freed.
void VolumeChannel::discard(BlockIo& io) {
  const uint64_t first = (io.offset_bytes + cluster_bytes_ - 1) / cluster_bytes_;
  const uint64_t end = (io.offset_bytes + io.length_bytes) / cluster_bytes_;
  if (first >= end) {
    complete(io, IoStatus::kOk);
    return;
  }
  Piece& piece = take_piece(&io, nullptr);
  piece.index = static_cast<uint32_t>(first);
  piece.count = static_cast<uint32_t>(end - first);
  ask(piece, MapRequest::Kind::kDrop);
}

// Whole clusters lose what they hold; in the others zeros are written.
void VolumeChannel::write_zeroes(BlockIo& io) {
  Split& split = split_up(io);
  for (uint64_t done = 0; done < io.length_bytes;) {
    const uint64_t at = io.offset_bytes + done;
    const uint64_t rest = io.length_bytes - done;
    Piece& piece = take_piece(&io, &split);
    piece.index = static_cast<uint32_t>(at >> cluster_bits_);
    piece.within_bytes = at & (cluster_bytes_ - 1);
    if (piece.within_bytes == 0 && rest >= cluster_bytes_) {
      piece.count = static_cast<uint32_t>(rest >> cluster_bits_);
      done += piece.count * cluster_bytes_;
      ask(piece, MapRequest::Kind::kDrop);
      continue;
    }
    const uint64_t length = std::min(rest, cluster_bytes_ - piece.within_bytes);
    piece.slices.clear();
    for (uint64_t left = length; left > 0; left -= piece.slices.back().iov_len) {
      piece.slices.push_back({zero_bytes, std::min<uint64_t>(left, kZeroBytes)});
    }
    piece.iov = piece.slices.data();
    piece.iov_count = static_cast<uint32_t>(piece.slices.size());
    piece.length_bytes = length;
    done += length;
    write_piece(piece);
  }
}

void VolumeChannel::flush(BlockIo& io) {
  Piece& piece = take_piece(&io, nullptr);
  if (store_.dirty()) {
    ask(piece, MapRequest::Kind::kFlush);
  } else if (channel_of(base_).bdev().supports(IoType::kFlush)) {
    piece.run = finish_piece;
    to_base(piece, 0);
  } else {
    finish_later(piece, IoStatus::kOk);
  }
}

}  // namespace sluice::lvol
