// ScriptedBdev: a device in memory whose test decides what becomes of each request.
#pragma once

#include <functional>
#include <vector>

#include "lib/bdev/bdev.h"

namespace sluice::bdevperf {

class ScriptedBdev final : public Bdev {
 public:
  static constexpr uint32_t kBlockBytes = 512;

  explicit ScriptedBdev(uint64_t size_bytes, std::string name = "disk");

  enum class Verdict : uint8_t { kDo, kPretend, kFail, kHold };
  // Asked for each request: carry it out, only say so, fail it, or keep it until release().
  std::function<Verdict(const BlockIo&)> judge = [](const BlockIo&) { return Verdict::kDo; };
  // Called after a read has been carried out, with its buffer.
  std::function<void(const BlockIo&, std::span<std::byte>)> spoil;

  std::span<std::byte> memory() { return memory_; }
  // Carries out what was held. On the channel's thread.
  void release();

 private:
  class ScriptedChannel;
  Result<std::unique_ptr<BdevChannel>> make_channel() override;
  void carry_out(const BlockIo& io);

  std::vector<std::byte> memory_;
  Fifo<Work> held_;
};

}  // namespace sluice::bdevperf
