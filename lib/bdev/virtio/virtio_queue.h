// VirtioQueue: one virtqueue of a device, and one host's access to it: carries out the requests of all channels that
// the host's lightweight threads have to the device.
//
// Requests whose buffers lie in the shared memory go to the back end as they are; others are copied through chunks of
// it. What finds no room in the ring waits, in order. A poller: in poll mode the back end is asked for no calls; when
// it goes cold, for one at the next completion.
//
// Thread:     open(), close(), submit() and the poller: the owner host's. go_up(), go_down(): the owner host's, or the
//             controller's while nobody owns it (Controller::for_each_queue sees to that). The rest is constant.
// Ownership:  the controller's. Borrows requests; shares the memory.
// Invariants: (1) the back end is not believed: indexes, ids and lengths are checked, and a wrong one stops the queue.
//             (2) each request completes exactly once, also when the queue goes down. (3) at most one kick a turn.
// Source:     virtio 1.3, "Block Device / Device Operation".
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

#include "lib/base/intrusive_list.h"
#include "lib/base/unique_fd.h"
#include "lib/bdev/block_io.h"
#include "lib/bdev/virtio/device_info.h"
#include "lib/bdev/virtio/driver_ring.h"
#include "lib/bdev/virtio/shared_memory.h"
#include "lib/thread/poller.h"
#include "lib/thread/thread_host.h"
#include "lib/virtio/wire.h"

namespace sluice::virtio {

// Why a queue cannot go on with this back end.
enum class QueueFault : uint8_t {
  kNone,
  kUsedJump,   // the used index is further ahead than requests are in flight
  kBadId,      // a used element names no request in flight
  kBadLength,  // a used element is longer than what could be written
};
const char* to_string(QueueFault fault);

// Counted by the owner host, read by anybody.
struct VirtioQueueStats {
  std::atomic<uint64_t> requests = 0;
  std::atomic<uint64_t> bounced = 0;  // of these, copied
  std::atomic<uint64_t> kicks = 0;    // sent
  std::atomic<uint64_t> calls = 0;    // times the poller was woken
};

class VirtioQueue final : public Poller {
 public:
  // Who is told, on the host's OS thread, that the queue has gone down by itself.
  class Events {
   public:
    virtual ~Events() = default;
    virtual void on_queue_fault(VirtioQueue& queue, QueueFault fault) = 0;
    // The last channel has gone, and so has the host's poller.
    virtual void on_queue_closed(VirtioQueue& queue) = 0;
  };

  // Errors: those of eventfd(2); ENOMEM (the shared memory is used up).
  static Result<std::unique_ptr<VirtioQueue>> create(uint32_t index, uint16_t size,
                                                     std::shared_ptr<SharedMemory> memory, Events& events);
  // How much shared memory a queue takes.
  static uint64_t memory_bytes(uint16_t size);
  // Requires: closed (checked).
  ~VirtioQueue() override;

  uint32_t index() const { return index_; }
  uint16_t size() const { return size_; }
  int kick_fd() const { return kick_.get(); }
  int call_fd() const { return call_.get(); }
  vhost::VringAddr addresses() const;

  // Empties the ring, and makes it of the kind that was negotiated. While it is down, before the back end is given it.
  void reset_ring(const DeviceInfo& device);
  // Where the back end begins with it.
  uint32_t base() const { return ring_.base(); }
  // The back end serves the ring from now on.
  void go_up(const DeviceInfo& device);
  // What is in flight fails, and so does all that is submitted until it goes up again.
  void go_down();
  bool up() const { return up_; }

  // One channel more of this host, which becomes the owner with the first.
  void open(ThreadHost& host);
  void close();
  void submit(BlockIo& io);

  const VirtioQueueStats& stats() const { return stats_; }

 private:
  struct RequestArea;
  struct Slot;
  class ChainBuilder;
  struct PublishWork : Work {
    VirtioQueue* queue = nullptr;
  };

  VirtioQueue(uint32_t index, uint16_t size, std::shared_ptr<SharedMemory> memory, Events& events, UniqueFd kick,
              UniqueFd call, std::span<std::byte> ring_memory, std::span<std::byte> bounce_memory);

  bool poll() override;
  bool pure_poll() override { return up_ && ring_.has_used(); }
  bool try_sleep() override;
  void wake_up() override;

  bool start(BlockIo& io);
  bool start_transfer(BlockIo& io);
  bool start_bounced(BlockIo& io);
  bool start_range(BlockIo& io);
  bool start_flush(BlockIo& io);
  bool has_room(uint32_t descriptors) const;
  uint32_t shared_segments(const BlockIo& io) const;
  Slot& launch(ChainBuilder& chain, BlockIo& io, uint32_t writable_bytes);
  void fill_range(uint16_t head, Slot& slot) const;
  void offer(uint16_t head);
  void start_waiting();
  void on_publish();
  bool take_back(vhost::SplitUsedElem element);
  bool next_piece(uint16_t head, Slot& slot);
  void free_slot(uint16_t head, Slot& slot);
  void break_down(QueueFault fault);
  void let_go();

  uint16_t take_chunk();
  std::span<std::byte> chunk(uint16_t index) const;
  RequestArea& area(uint16_t head) const;
  vhost::SplitDesc* table(uint16_t head) const;

  const uint32_t index_;
  const uint16_t size_;
  const std::shared_ptr<SharedMemory> memory_;
  Events& events_;
  const UniqueFd kick_;
  const UniqueFd call_;
  const std::span<std::byte> ring_memory_;  // the ring, then:
  RequestArea* const areas_;                // by head, as all of these
  uint8_t* const statuses_;                 //
  vhost::BlkDiscardSegment* const ranges_;  //
  vhost::SplitDesc* const tables_;          // indirect tables of more than three descriptors
  const std::span<std::byte> bounce_memory_;

  // The owner host's.
  ThreadHost* host_ = nullptr;
  uint32_t channels_ = 0;
  bool up_ = false;
  DeviceInfo device_;
  bool indirect_ = false;
  DriverRing ring_;
  uint32_t in_flight_ = 0;
  std::unique_ptr<Slot[]> slots_;  // by the chain's head
  std::unique_ptr<uint16_t[]> chunk_links_;
  uint16_t free_chunk_ = 0;
  uint32_t free_chunks_ = 0;
  Fifo<Work> waiting_;
  PublishWork publish_work_;
  bool publish_queued_ = false;
  VirtioQueueStats stats_;
};

}  // namespace sluice::virtio
