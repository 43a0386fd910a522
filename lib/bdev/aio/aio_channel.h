// AioChannel: a lightweight thread's access to an aio bdev: passes everything on to the host's AioGroup.
#pragma once

#include "lib/bdev/aio/aio_group.h"
#include "lib/bdev/file_bdev.h"

namespace sluice {

class AioChannel final : public FileChannel {
 public:
  AioChannel(FileBdev& bdev, AioGroup& group) : FileChannel(bdev), group_(group) {}

 private:
  void do_submit(BlockIo& io) override {
    if (io.type == IoType::kReset) {
      complete(io, IoStatus::kOk);
    } else {
      group_.submit(io);
    }
  }

  AioGroup& group_;
};

}  // namespace sluice
