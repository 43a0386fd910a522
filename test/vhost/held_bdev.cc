#include "test/vhost/held_bdev.h"

#include <climits>
#include <cstring>

#include "lib/base/iov_cursor.h"

namespace sluice::test {

class HeldBdev::HeldChannel final : public BdevChannel {
 public:
  explicit HeldChannel(HeldBdev& bdev) : BdevChannel(bdev), bdev_(bdev) {}

  void release(int count) {
    while (count-- > 0 && !held_.empty()) {
      Work* const work = held_.pop_front();
      --bdev_.held_;
      carry_out(static_cast<BlockIo&>(*work));
    }
  }

 private:
  void do_submit(BlockIo& io) override {
    if (bdev_.holding_) {
      held_.push_back(io);
      ++bdev_.held_;
    } else {
      carry_out(io);
    }
  }

  void carry_out(BlockIo& io) {
    // A device that has grown since is read as zeroes and keeps nothing beyond its memory.
    const uint64_t size = bdev_.memory_.size();
    const uint64_t offset = std::min(io.offset_bytes, size);
    std::span<std::byte> bytes(bdev_.memory_.data() + offset, std::min(io.length_bytes, size - offset));
    IovCursor buffers({io.iov, io.iov_count});
    switch (io.type) {
      case IoType::kRead:
        buffers.copy_in(bytes);
        break;
      case IoType::kWrite:
        buffers.copy_out(bytes);
        break;
      case IoType::kDiscard:
      case IoType::kWriteZeroes:
        std::memset(bytes.data(), 0, bytes.size());
        break;
      case IoType::kFlush:
        ++bdev_.flushes_;
        break;
      case IoType::kReset:
        break;
    }
    complete(io, IoStatus::kOk);
  }

  HeldBdev& bdev_;
  Fifo<Work> held_;
};

namespace {

constexpr IoTypes kAllTypes = {IoType::kRead,    IoType::kWrite,       IoType::kFlush,
                               IoType::kDiscard, IoType::kWriteZeroes, IoType::kReset};
constexpr IoTypes kWithoutDiscards = {IoType::kRead, IoType::kWrite, IoType::kFlush, IoType::kReset};

}  // namespace

HeldBdev::HeldBdev(std::string name, uint64_t size_bytes, uint32_t block_size, bool discards)
    : Bdev({.name = std::move(name),
            .uuid = {},
            .product_name = "Held disk",
            .size_bytes = size_bytes,
            .limits = {.block_size_bytes = block_size, .physical_block_size_bytes = block_size},
            .io_types = discards ? kAllTypes : kWithoutDiscards}),
      memory_(size_bytes) {}

Result<std::unique_ptr<BdevChannel>> HeldBdev::make_channel() {
  if (refusing_) return fail(EMFILE, "no more channels");
  return std::make_unique<HeldChannel>(*this);
}

Task<> HeldBdev::release(ThreadDirectory& threads) {
  holding_ = false;
  co_await threads.for_each_channel(
      *this, [](sluice::Channel& channel) { static_cast<HeldChannel&>(channel).release(INT_MAX); });
}

Task<> HeldBdev::release_oldest(ThreadDirectory& threads, int count) {
  co_await threads.for_each_channel(
      *this, [count](sluice::Channel& channel) { static_cast<HeldChannel&>(channel).release(count); });
}

}  // namespace sluice::test
