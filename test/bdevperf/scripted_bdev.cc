#include "test/bdevperf/scripted_bdev.h"

#include <cstring>

namespace sluice::bdevperf {

class ScriptedBdev::ScriptedChannel final : public BdevChannel {
 public:
  explicit ScriptedChannel(ScriptedBdev& bdev) : BdevChannel(bdev), bdev_(bdev) {}
  static void finish(BlockIo& io, IoStatus status) { complete(io, status); }

 private:
  void do_submit(BlockIo& io) override {
    switch (bdev_.judge(io)) {
      case Verdict::kDo:
        bdev_.carry_out(io);
        complete(io, IoStatus::kOk);
        break;
      case Verdict::kPretend:
        complete(io, IoStatus::kOk);
        break;
      case Verdict::kFail:
        complete(io, IoStatus::kFailed);
        break;
      case Verdict::kHold:
        bdev_.held_.push_back(io);
        break;
    }
  }

  ScriptedBdev& bdev_;
};

ScriptedBdev::ScriptedBdev(uint64_t size_bytes, std::string name)
    : Bdev({.name = std::move(name),
            .uuid = {},
            .product_name = "Scripted disk",
            .size_bytes = size_bytes,
            .limits = {.block_size_bytes = kBlockBytes, .physical_block_size_bytes = kBlockBytes},
            .io_types = {IoType::kRead, IoType::kWrite, IoType::kFlush, IoType::kDiscard, IoType::kWriteZeroes,
                         IoType::kReset}}),
      memory_(size_bytes) {}

Result<std::unique_ptr<BdevChannel>> ScriptedBdev::make_channel() { return std::make_unique<ScriptedChannel>(*this); }

void ScriptedBdev::carry_out(const BlockIo& io) {
  if (io.type != IoType::kRead && io.type != IoType::kWrite) return;
  CHECK(io.iov_count == 1);
  std::byte* place = memory_.data() + io.offset_bytes;
  if (io.type == IoType::kWrite) {
    std::memcpy(place, io.iov->iov_base, io.length_bytes);
  } else {
    std::memcpy(io.iov->iov_base, place, io.length_bytes);
    if (spoil) spoil(io, {static_cast<std::byte*>(io.iov->iov_base), io.length_bytes});
  }
}

void ScriptedBdev::release() {
  Fifo<Work> held(std::move(held_));
  while (Work* work = held.pop_front()) {
    auto& io = static_cast<BlockIo&>(*work);
    carry_out(io);
    ScriptedChannel::finish(io, IoStatus::kOk);
  }
}

}  // namespace sluice::bdevperf
