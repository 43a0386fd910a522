#include "lib/bdev/split_io.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "lib/bdev/bdev.h"
#include "lib/bdev/bdev_channel.h"
#include "lib/thread/await.h"
#include "lib/thread/elastic_pool.h"

namespace sluice {
namespace {

// Large enough that the copy, not the number of requests, is what a bounced transfer costs.
constexpr uint64_t kBounceBytes = 256 * 1024;
constexpr size_t kBounceAlignment = 4096;
// A piece's iovecs, whatever the device would take.
constexpr uint32_t kMaxSlices = 256;

}  // namespace

struct SplitIo::BounceBuffer {
  std::byte* const bytes = static_cast<std::byte*>(std::aligned_alloc(kBounceAlignment, kBounceBytes));  // or nullptr

  BounceBuffer() = default;
  BounceBuffer(const BounceBuffer&) = delete;
  BounceBuffer& operator=(const BounceBuffer&) = delete;
  ~BounceBuffer() { std::free(bytes); }
};

// Who of a host may use a bounce buffer now, and who waits.
// Invariant: nobody waits while there is a free one.
class SplitIo::BounceTurns final : public HostLocal {
 public:
  static BounceTurns& of(ThreadHost& host) {
    static constexpr char key = 0;
    return host.local<BounceTurns>(&key, [&host] { return std::make_unique<BounceTurns>(host); });
  }

  explicit BounceTurns(ThreadHost& host) : host_(host) {}

  // False: it waits, and is run when it is its turn.
  bool take(SplitIo& io) {
    if (free_ == 0) {
      waiting_.push_back(io);
      return false;
    }
    --free_;
    return true;
  }

  // Also on another host.
  void give_back() {
    if (!host_.is_current()) {
      post_to(host_.home(), [this] { give_back(); });
      return;
    }
    if (Work* next = waiting_.pop_front()) {
      auto& io = *static_cast<SplitIo*>(next);
      io.target->send(io);  // its thread may be on another host by now
    } else {
      ++free_;
    }
  }

 private:
  ThreadHost& host_;
  uint32_t free_ = kMaxBounceBuffers;
  Fifo<Work> waiting_;
};

SplitIo::SplitIo() = default;
SplitIo::~SplitIo() = default;

void SplitIo::start(BdevChannel& channel, BlockIo& parent) {
  SplitIo* io = ElasticPool<SplitIo>::of(channel.thread().host()).take().release();  // until finish()
  io->parent_ = &parent;
  io->done_bytes_ = 0;
  io->cursor_ = IovCursor({parent.iov, parent.iov_count});
  io->type = parent.type;
  io->channel = &channel;
  io->target = parent.target;
  io->submit_ns = kPiece;
  io->next_piece();
}

void SplitIo::next_piece() {
  const BdevLimits& limits = channel->bdev().limits();
  offset_bytes = parent_->offset_bytes + done_bytes_;
  uint64_t max_bytes = std::min(parent_->length_bytes - done_bytes_, limits.max_transfer_bytes);
  if (limits.optimal_boundary_bytes != 0) {
    max_bytes = std::min(max_bytes, limits.optimal_boundary_bytes - offset_bytes % limits.optimal_boundary_bytes);
  }
  max_bytes -= max_bytes % limits.block_size_bytes;  // max_transfer_bytes may be any number
  if (slice(max_bytes)) {
    submit_piece();
    return;
  }
  length_bytes = std::min(max_bytes, kBounceBytes);
  run = [](Work& work) { static_cast<SplitIo&>(work).on_bounce_turn(); };
  turns_ = &BounceTurns::of(target->host());
  if (turns_->take(*this)) bounce();
}

void SplitIo::submit_piece() {
  run = [](Work& work) { static_cast<SplitIo&>(work).on_piece_done(); };
  channel->do_submit(*this);
}

// Points the piece at the parent's own buffers, as far as the device takes them. False if it cannot even take a block.
bool SplitIo::slice(uint64_t max_bytes) {
  const BdevLimits& limits = channel->bdev().limits();
  const uint64_t misaligned = limits.buffer_alignment_bytes - 1;
  const size_t max_slices = std::min(limits.max_segments, kMaxSlices);
  IovCursor ahead = cursor_;
  slices_.clear();
  uint64_t taken = 0;
  while (taken < max_bytes && slices_.size() < max_slices) {
    const std::span<std::byte> bytes = ahead.next(max_bytes - taken);
    CHECK(!bytes.empty());  // the submitter's buffers add up to length_bytes
    if (((reinterpret_cast<uintptr_t>(bytes.data()) | bytes.size()) & misaligned) != 0) break;
    slices_.push_back({.iov_base = bytes.data(), .iov_len = bytes.size()});
    taken += bytes.size();
  }
  // Down to whole blocks.
  uint64_t excess = taken % limits.block_size_bytes;
  taken -= excess;
  while (excess > 0) {
    iovec& last = slices_.back();
    const uint64_t cut = std::min<uint64_t>(excess, last.iov_len);
    last.iov_len -= cut;
    excess -= cut;
    if (last.iov_len == 0) slices_.pop_back();
  }
  if (taken == 0) return false;
  length_bytes = taken;
  iov = slices_.data();
  iov_count = static_cast<uint32_t>(slices_.size());
  return true;
}

// The device may have been removed, or resized, since the request was checked.
void SplitIo::on_bounce_turn() {
  if (const IoStatus refused = channel->check(*parent_); refused != IoStatus::kOk) {
    end_bounce();
    finish(refused);
  } else {
    bounce();
  }
}

// Submits the piece in a buffer of our own. It is our turn to have one.
void SplitIo::bounce() {
  bounce_buffer_ = ElasticPool<BounceBuffer>::of(target->host()).take();
  if (bounce_buffer_->bytes == nullptr) {
    end_bounce();
    finish(IoStatus::kNoMemory);
    return;
  }
  bounce_iov_ = {.iov_base = bounce_buffer_->bytes, .iov_len = length_bytes};
  iov = &bounce_iov_;
  iov_count = 1;
  if (type == IoType::kWrite) {
    IovCursor from = cursor_;
    from.copy_out({bounce_buffer_->bytes, length_bytes});
  }
  submit_piece();
}

void SplitIo::end_bounce() {
  if (bounce_buffer_ != nullptr && bounce_buffer_->bytes != nullptr) {
    ElasticPool<BounceBuffer>::of(target->host()).give_back(std::move(bounce_buffer_));
  }
  bounce_buffer_.reset();
  turns_->give_back();
}

void SplitIo::on_piece_done() {
  if (status == IoStatus::kOk && type == IoType::kRead && bounce_buffer_ != nullptr) {
    IovCursor to = cursor_;
    to.copy_in({bounce_buffer_->bytes, length_bytes});
  }
  if (bounce_buffer_ != nullptr) end_bounce();
  if (status != IoStatus::kOk) {
    finish(status);
    return;
  }
  cursor_.skip(length_bytes);
  done_bytes_ += length_bytes;
  if (done_bytes_ == parent_->length_bytes) {
    finish(IoStatus::kOk);
  } else {
    next_piece();
  }
}

void SplitIo::finish(IoStatus result) {
  BlockIo& parent = *parent_;
  ElasticPool<SplitIo>::of(channel->thread().host()).give_back(std::unique_ptr<SplitIo>(this));
  BdevChannel::complete(parent, result);
}

}  // namespace sluice
