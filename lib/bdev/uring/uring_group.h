// UringGroup: the queue of all uring bdevs on one host: one io_uring, one completion poller.
//
// Thread:     as FileQueue.
// Invariants: (1) the kernel notifies only while the poller is cold and something is in flight. (2) a file stays in the
//             ring's table while a request that names it is in the ring: the kernel may look it up as late as when it
//             carries the request out (a flush, say).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lib/bdev/file_queue.h"
#include "lib/bdev/uring/uring_ring.h"

namespace sluice {

class FileBackend;
class UringChannel;

class UringGroup final : public FileQueue {
 public:
  UringGroup(ThreadHost& host, const UringSystem& system, BlockingPool& pool);
  ~UringGroup() override;

  // A channel's file in the ring.
  struct Place {
    UringFile file;
    uint32_t in_ring = 0;  // requests that name it
  };
  // For channels, from their first request on this host until they leave it: then requests may still be in the ring.
  Place add_file(const UringChannel& channel, const FileBackend& file);
  void release_file(const UringChannel& channel, const Place& place);

 private:
  bool pure_poll() override { return ring_.has_completions(); }
  bool try_sleep() override;
  void wake_up() override { ring_.set_notifications(false); }

  bool is_open() const override { return ring_.is_open(); }
  Result<int> open() override;
  void start_pending() override;
  size_t take_completions() override;

  // Of a channel that has left.
  struct Leaving {
    const UringChannel* channel;
    Place place;
  };
  void leave_ring(const BlockIo& io);

  UringRing ring_;
  std::vector<Leaving> leaving_;
  uint32_t prepared_ = 0;  // in the ring, not yet taken by the kernel
};

}  // namespace sluice
