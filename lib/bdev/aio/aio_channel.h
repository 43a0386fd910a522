// AioChannel: a lightweight thread's access to an aio bdev: passes everything on to the host's AioGroup.
#pragma once

#include "lib/bdev/aio/aio_file.h"
#include "lib/bdev/aio/aio_group.h"
#include "lib/bdev/bdev_channel.h"

namespace sluice {

class AioChannel final : public BdevChannel {
 public:
  AioChannel(Bdev& bdev, AioFile& file, AioGroup& group) : BdevChannel(bdev), file_(file), group_(group) {}

  static AioFile& file_of(const BlockIo& io) { return static_cast<AioChannel*>(io.channel)->file_; }
  static void finish(BlockIo& io, IoStatus status) { complete(io, status); }

 private:
  void do_submit(BlockIo& io) override {
    if (io.type == IoType::kReset) {
      complete(io, IoStatus::kOk);
    } else {
      group_.submit(io);
    }
  }

  AioFile& file_;
  AioGroup& group_;
};

}  // namespace sluice
