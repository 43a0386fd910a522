// CrashDisk: a block device for simulations of power failures: completes late and out of order by virtual time, and
// forgets, when the power fails, what was not flushed: all of it, some blocks of it, or some requests.
//
//   CrashStore store({.size_bytes = 16U << 20, .seed = seed});
//   store.cut_at(n, CutMode::kRandomBlocks);
//   world.add(std::make_unique<CrashDisk>("base", store));   // use it until store.cut(); all I/O fails from then on
//   store.power_on();                                        // when that disk is gone
//   another_world.add(std::make_unique<CrashDisk>("base", store));
//
// Thread:    as any Bdev, all of one OS thread. The store: that OS thread.
// Ownership: a CrashDisk borrows its store, which outlives it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "lib/bdev/bdev.h"

namespace sluice::lvol {

// What is left, when the power fails, of writes (also of zeroes, and discards) that completed and were not flushed, or
// were in flight. A block is old or new, never a mixture.
enum class CutMode : uint8_t {
  kNothing,
  kEverything,
  kRandomBlocks,
  kRandomRequests,  // whole
  kFirstRequests,   // in the order of their submission; the last of them in part
};
inline constexpr uint32_t kCutModes = 5;

// What the disk holds, and what goes wrong. It remembers the content as it is and as it was last flushed; a write costs
// its own length, whatever the size.
class CrashStore {
 public:
  struct Options {
    uint64_t size_bytes;  // as large as the disk may ever be
    uint32_t block_bytes = 512;
    uint64_t seed = 1;
  };
  explicit CrashStore(Options options);
  // Requires: no I/O is in flight (checked).
  ~CrashStore();

  // Changes are writes, writes of zeroes, discards and flushes; they are counted when they take effect, from 1.
  uint64_t changes() const { return changes_; }
  uint64_t flushes() const { return flushes_; }
  // All requests, reads too, counted from 1 when they are submitted.
  uint64_t requests() const { return requests_; }

  // The power fails in the moment in which this change would have taken effect: it is in flight then.
  void cut_at(uint64_t change, CutMode mode);
  // This request ends with an error. A write may have come some of the way; a flush has flushed nothing.
  void fail_at(uint64_t request, IoStatus status = IoStatus::kFailed);

  // The power fails now. What the disk holds is decided. All I/O fails, also what is in flight.
  void power_cut(CutMode mode);
  bool cut() const { return cut_; }
  // Everything works again; cut_at() and fail_at() are forgotten. Requires: no I/O is in flight (checked).
  void power_on();

  // What a read finds now.
  std::span<const std::byte> bytes() const { return {now_.get(), size_bytes_}; }
  // For a test that prepares or damages it: durable at once. Requires: nothing there is unflushed.
  void put(uint64_t offset_bytes, std::span<const std::byte> bytes);

  uint64_t size_bytes() const { return size_bytes_; }
  uint32_t block_bytes() const { return block_bytes_; }

 private:
  friend class CrashDisk;

  // A change of bytes that has completed and may be lost yet.
  struct Unflushed {
    uint64_t number;  // of its submission
    uint64_t offset_bytes;
    uint64_t length_bytes;
    std::vector<std::byte> bytes;  // empty: zeroes
  };
  struct InFlight {
    BlockIo* io;
    uint64_t completed;  // how many changes of bytes had completed when it was submitted: a flush covers these
  };
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  using Image = std::unique_ptr<std::byte[], Free>;

  static Image make_image(uint64_t size_bytes);
  uint64_t begin(BlockIo& io);
  // Ends the request: its effect, and the status that it completes with.
  IoStatus end(uint64_t number);
  void change(const BlockIo& io, uint64_t number, uint64_t length_bytes);
  void flush(uint64_t completed);
  static Unflushed unflushed(const BlockIo& io, uint64_t number, uint64_t length_bytes);
  void apply(Image& image, const Unflushed& change, uint64_t offset_bytes, uint64_t length_bytes) const;
  void apply_some(const Unflushed& change, CutMode mode, uint64_t kept_before);

  const uint64_t size_bytes_;
  const uint32_t block_bytes_;
  std::mt19937_64 random_;
  Image now_;
  Image durable_;
  std::deque<Unflushed> unflushed_;  // in the order in which they took effect
  uint64_t flushed_ = 0;             // how many have left unflushed_
  std::map<uint64_t, InFlight> in_flight_;

  uint64_t changes_ = 0;
  uint64_t flushes_ = 0;
  uint64_t requests_ = 0;
  uint64_t cut_at_ = 0;
  CutMode cut_mode_ = CutMode::kNothing;
  std::map<uint64_t, IoStatus> fail_at_;
  bool cut_ = false;
};

class CrashDisk final : public Bdev {
 public:
  // `size_bytes`: 0: all of the store.
  CrashDisk(std::string name, CrashStore& store, uint64_t size_bytes = 0);

 private:
  class CrashChannel;
  Result<std::unique_ptr<BdevChannel>> make_channel() override;

  CrashStore& store_;
};

}  // namespace sluice::lvol
