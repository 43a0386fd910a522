// SimUser: somebody who does I/O through a front end: some requests at a time, each checked against the model.
//
// Thread:    made and run on the application's lightweight thread; its I/O is on one of its own.
// Ownership: borrows its export. Lives as long as the simulation: so nobody may touch its buffers after a request.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/io_buffer.h"
#include "test/sim/sim_context.h"

namespace sluice::sim {

class SimUser final : public BdevEvents {
 public:
  SimUser(Context& context, Export& through, uint64_t number);
  SimUser(const SimUser&) = delete;
  SimUser& operator=(const SimUser&) = delete;

  // Opens the device, works until it is stopped or the device goes, and gives everything back.
  Task<> run();
  void stop() { stopping_ = true; }
  bool ended() const { return ended_; }
  // Writes to all of the device once and reads it, instead of working at random. Before run().
  void only_scan() { scanning_ = true; }

  void on_resize() override {}
  void on_remove() override { removed_ = true; }

 private:
  static constexpr size_t kBufferBytes = 128U << 10;

  // One request at a time, and its memory.
  struct Slot {
    SimRequest request;
    IoBuffer shared;  // with the back end
    IoBuffer plain;
    std::span<std::byte> bytes;  // of the last request
    uint64_t sum_after = 0;      // of these bytes, when it had completed
  };

  bool leaving() const { return stopping_ || removed_ || !context_.failure.empty(); }
  Bdev& bdev() const { return handle_->bdev(); }
  BdevChannel& channel() const { return static_cast<BdevChannel&>(*channel_.get()); }

  bool open_channel();
  void close_channel();
  Task<> work();
  Task<> work(size_t slot);
  Task<> scan();
  IoType pick_type();
  SectorRange pick_range();
  Task<> perform(Slot& slot, IoType type, SectorRange range);
  void prepare(Slot& slot, IoType type, SectorRange range);
  void check_outcome(const SimRequest& request);
  void check_data(const Slot& slot, SectorRange range);
  void check_untouched(const Slot& slot);

  Context& context_;
  Export& export_;
  const uint64_t number_;
  uint64_t longest_pause_ns_;
  bool stopping_ = false;
  bool removed_ = false;
  bool ended_ = false;
  bool scanning_ = false;

  std::unique_ptr<BdevHandle> handle_;
  LwThread* thread_ = nullptr;
  ChannelRef channel_;
  std::vector<std::unique_ptr<Slot>> slots_;
  IoStats expected_;  // what the channel should have counted
};

}  // namespace sluice::sim
