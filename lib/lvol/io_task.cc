#include "lib/lvol/io_task.h"

#include "lib/thread/await.h"

namespace sluice::lvol {
namespace {

struct AwaitedIo : BlockIo {
  Event done;
};

}  // namespace

Task<IoStatus> transfer(BdevChannel& channel, IoType type, uint64_t offset_bytes, std::span<std::byte> bytes) {
  AwaitedIo io;
  const iovec iov{.iov_base = bytes.data(), .iov_len = bytes.size()};
  io.type = type;
  io.iov = &iov;
  io.iov_count = 1;
  io.offset_bytes = offset_bytes;
  io.length_bytes = bytes.size();
  io.run = [](Work& work) { static_cast<AwaitedIo&>(work).done.set(); };
  channel.submit(io);
  co_await io.done.wait();
  co_return io.status;
}

}  // namespace sluice::lvol
