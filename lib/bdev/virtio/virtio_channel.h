// VirtioChannel: a lightweight thread's access to a virtio bdev: passes everything on to its host's queue.
#pragma once

#include "lib/bdev/bdev_channel.h"
#include "lib/bdev/virtio/virtio_queue.h"

namespace sluice::virtio {

class VirtioChannel final : public BdevChannel {
 public:
  VirtioChannel(Bdev& bdev, VirtioQueue& queue) : BdevChannel(bdev), queue_(queue) {}
  ~VirtioChannel() override { queue_.close(); }

  // Its queue belongs to this host, and there may be none left for another one.
  bool can_move() const override { return false; }

  static void finish(BlockIo& io, IoStatus status) { complete(io, status); }

 private:
  void do_submit(BlockIo& io) override { queue_.submit(io); }

  VirtioQueue& queue_;
};

}  // namespace sluice::virtio
