// Disks behind vhost-user-blk sockets of a daemon that may be killed at any time, and the load that they are under.
//
// Thread: the application's lightweight thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "app/common/app.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/thread/gate.h"
#include "test/lvol/kill_model.h"

namespace sluice::lvol {

// A disk, and a channel to it.
class SocketDisk final : public BdevEvents {
 public:
  SocketDisk(App& app, BdevManager& bdevs, std::string name) : app_(app), bdevs_(bdevs), name_(std::move(name)) {}

  // close() follows, whether it succeeded or not. Errors: those of VirtioModule::attach(), BdevManager::open().
  Task<Result<>> open(std::string socket, BdevAccess access);
  Task<> close();

  Bdev& bdev() const { return handle_->bdev(); }
  Task<IoStatus> submit(IoType type, uint64_t offset_bytes, uint64_t length_bytes, std::byte* bytes);
  // Reads the first `bytes`, and calls `look` with parts of them and the sector they begin at, until it returns a
  // complaint. What is wrong, if anything; `failed` tells whether it is that a read has failed.
  struct Finding {
    std::string text;
    bool failed = false;
  };
  Task<Finding> read_through(uint64_t bytes, std::function<std::string(std::span<const std::byte>, uint64_t)> look);

  void on_resize() override {}
  void on_remove() override {}

 private:
  struct Sweep;
  Task<> sweep(Sweep& sweep, std::span<std::byte> buffer);

  App& app_;
  BdevManager& bdevs_;
  const std::string name_;
  std::unique_ptr<BdevHandle> handle_;
  ChannelRef channel_;
};

// Random requests to one disk, many at a time, and what they leave there.
class KillLoad {
 public:
  static constexpr uint32_t kDepth = 32;
  static constexpr uint64_t kMaxRequestBytes = 256U << 10;

  // The first `bytes` of the disk are used.
  KillLoad(SocketDisk& disk, uint32_t number, uint64_t bytes, uint64_t seed);

  SocketDisk& disk() { return disk_; }
  KillModel& model() { return model_; }

  // Until stop(), or until a request fails.
  void start();
  void stop() { running_ = false; }
  // Until nothing is in flight any more.
  Task<> ended();
  // Reads everything, after a kill, as soon as that works. What is wrong, if anything.
  Task<std::string> settle();

  // Since start(). When the first request failed, by the system's monotonic clock; 0: none has.
  uint64_t failed_ns() const { return failed_ns_; }
  const std::string& failure() const { return failure_; }
  // What was read and should not have been there.
  const std::string& mismatch() const { return mismatch_; }
  uint64_t changes() const { return changes_; }
  uint64_t flushes() const { return flushes_; }

 private:
  struct Slot {
    std::span<std::byte> buffer;
    SectorRange range;  // that its request has to itself; of nothing: none
  };

  Task<> work(Slot& slot);
  Task<> read(Slot& slot);
  Task<> change(Slot& slot, bool zeroes);
  Task<> flush();
  void choose(Slot& slot);
  bool succeeded(IoType type, const Slot* slot, IoStatus status);

  SocketDisk& disk_;
  const uint64_t sectors_;
  std::mt19937_64 random_;
  KillModel model_;
  IoBuffer memory_;
  std::vector<Slot> slots_;
  bool running_ = false;
  std::optional<Gate> workers_;
  uint64_t failed_ns_ = 0;
  std::string failure_;
  std::string mismatch_;
  uint64_t changes_ = 0;
  uint64_t flushes_ = 0;
};

}  // namespace sluice::lvol
