#include "lib/bdev/malloc/malloc_bdev.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "lib/base/intrusive_list.h"
#include "lib/base/iov_cursor.h"
#include "lib/bdev/bdev.h"
#include "lib/thread/poller.h"

namespace sluice {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kHugePageBytes = 2U << 20;
constexpr uint64_t kMaxBlockBytes = 64U << 10;
// What is copied within submit; longer requests wait in the channel's queue.
constexpr uint64_t kInlineBytes = 128U << 10;
constexpr uint64_t kCacheLineBytes = 64;
constexpr uint64_t kPrefetchBytes = 8 * kCacheLineBytes;
// What one turn may copy or zero: some 100 us at most.
constexpr uint64_t kSliceBytes = 1U << 20;
// What a request costs at least of a turn's slice, so that many small ones are spread over turns as well.
constexpr uint64_t kMinChargeBytes = 32U << 10;

constexpr uint64_t round_down(uint64_t value, uint64_t unit) { return value / unit * unit; }
constexpr uint64_t round_up(uint64_t value, uint64_t unit) { return round_down(value + unit - 1, unit); }

// Private anonymous memory, aligned to huge pages.
class Memory {
 public:
  static Result<Memory> map(uint64_t size_bytes) {
    // One huge page more, to align within.
    const uint64_t mapped_bytes = round_up(size_bytes, kPageBytes) + kHugePageBytes;
    void* mapped = ::mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return fail(ENOMEM, "there is not enough memory for a malloc bdev of this size");
    // Fails where the kernel has no transparent huge pages, which costs speed only.
    ::madvise(mapped, mapped_bytes, MADV_HUGEPAGE);
    return Memory(mapped, mapped_bytes);
  }

  Memory(Memory&& other) noexcept
      : mapped_(std::exchange(other.mapped_, nullptr)), mapped_bytes_(other.mapped_bytes_), begin_(other.begin_) {}
  Memory& operator=(Memory&&) = delete;
  ~Memory() {
    if (mapped_ != nullptr) ::munmap(mapped_, mapped_bytes_);
  }

  std::span<std::byte> range(uint64_t offset_bytes, uint64_t length_bytes) const {
    return {begin_ + offset_bytes, length_bytes};
  }

  void zero(uint64_t begin_bytes, uint64_t end_bytes) const {
    if (begin_bytes < end_bytes) std::memset(begin_ + begin_bytes, 0, end_bytes - begin_bytes);
  }

  // Zeroes by giving whole pages back to the system: fresh ones, which read as zeroes, replace them when needed.
  void release(uint64_t begin_bytes, uint64_t end_bytes) const {
    const uint64_t first = round_up(begin_bytes, kPageBytes);
    const uint64_t last = round_down(end_bytes, kPageBytes);
    // Refused for locked memory.
    if (first >= last || ::madvise(begin_ + first, last - first, MADV_DONTNEED) != 0) {
      zero(begin_bytes, end_bytes);
      return;
    }
    zero(begin_bytes, first);
    zero(last, end_bytes);
  }

 private:
  Memory(void* mapped, uint64_t mapped_bytes) : mapped_(mapped), mapped_bytes_(mapped_bytes) {
    const auto address = reinterpret_cast<uintptr_t>(mapped);
    begin_ = static_cast<std::byte*>(mapped) + (round_up(address, kHugePageBytes) - address);
  }

  void* mapped_;
  uint64_t mapped_bytes_;
  std::byte* begin_;
};

class MallocBdev final : public Bdev {
 public:
  MallocBdev(Options options, Memory memory) : Bdev(std::move(options)), memory_(std::move(memory)) {}
  const Memory& memory() const { return memory_; }

 private:
  Result<std::unique_ptr<BdevChannel>> make_channel() override;

  const Memory memory_;
};

// Works off requests in slices: added to the thread only while there are any, so that an idle channel costs nothing.
class MallocChannel final : public BdevChannel, private Poller {
 public:
  explicit MallocChannel(MallocBdev& bdev) : BdevChannel(bdev), Poller("malloc_slices"), memory_(bdev.memory()) {
    copy_work_.channel = this;
    copy_work_.run = [](Work& work) { static_cast<CopyWork&>(work).channel->copy_small(); };
  }

 private:
  void do_submit(BlockIo& io) override {
    switch (io.type) {
      case IoType::kRead:
      case IoType::kWrite:
        if (io.length_bytes <= kInlineBytes) {
          // Copied at the end of the turn: what a batch of requests misses in the caches is fetched for all of them at
          // once, instead of one after the other.
          prefetch(io);
          small_.push_back(io);
          if (!std::exchange(copy_pending_, true)) BdevChannel::thread().defer(copy_work_);
          return;
        }
        break;
      case IoType::kDiscard:
      case IoType::kWriteZeroes:
        break;
      case IoType::kFlush:
      case IoType::kReset:
        complete(io, IoStatus::kOk);
        return;
    }
    const bool idle = queue_.empty();
    queue_.push_back(io);
    if (idle) {
      begin_front();
      BdevChannel::thread().add_poller(*this);
    }
  }

  void copy_small() {
    copy_pending_ = false;
    while (Work* work = small_.pop_front()) {
      auto& io = static_cast<BlockIo&>(*work);
      IovCursor cursor({io.iov, io.iov_count});
      copy(io, cursor, io.offset_bytes, io.length_bytes);
      complete(io, IoStatus::kOk);
    }
  }

  // The beginning; from there on the processor sees the pattern by itself.
  void prefetch(const BlockIo& io) const {
    const std::span<std::byte> range =
        memory_.range(io.offset_bytes, std::min<uint64_t>(io.length_bytes, kPrefetchBytes));
    for (size_t at = 0; at < range.size(); at += kCacheLineBytes) __builtin_prefetch(range.data() + at);
  }

  bool poll() override {
    for (uint64_t budget = kSliceBytes; budget > 0;) {
      budget -= std::min(budget, std::max(step(budget), kMinChargeBytes));
      if (queue_.empty()) {
        BdevChannel::thread().remove_poller(*this);
        break;
      }
    }
    return true;
  }
  bool pure_poll() override { return true; }
  bool try_sleep() override { return false; }
  void wake_up() override {}

  void begin_front() {
    if (queue_.empty()) return;
    BlockIo& io = front();
    done_bytes_ = 0;
    cursor_ = IovCursor({io.iov, io.iov_count});
  }

  // Does a slice of the first request; completes it with its last one. Returns what that cost, in bytes zeroed or
  // copied.
  uint64_t step(uint64_t budget_bytes) {
    BlockIo& io = front();
    const uint64_t begin = io.offset_bytes + done_bytes_;
    uint64_t end = io.offset_bytes + io.length_bytes;
    uint64_t cost_bytes = 0;
    if (io.type == IoType::kDiscard || (io.type == IoType::kWriteZeroes && io.may_unmap)) {
      // A whole huge page at a time: part of one would only be split, and freed later or never.
      end = std::min(end, round_down(begin, kHugePageBytes) + kHugePageBytes);
      memory_.release(begin, end);
      cost_bytes = kSliceBytes / 4;
    } else {
      end = std::min(end, begin + budget_bytes);
      cost_bytes = end - begin;
      if (io.type == IoType::kWriteZeroes) {
        memory_.zero(begin, end);
      } else {
        copy(io, cursor_, begin, end - begin);
      }
    }
    done_bytes_ += end - begin;
    if (done_bytes_ == io.length_bytes) {
      queue_.pop_front();
      complete(io, IoStatus::kOk);
      begin_front();
    }
    return cost_bytes;
  }

  void copy(const BlockIo& io, IovCursor& cursor, uint64_t offset_bytes, uint64_t length_bytes) const {
    const std::span<std::byte> range = memory_.range(offset_bytes, length_bytes);
    if (io.type == IoType::kRead) {
      cursor.copy_in(range);
    } else {
      cursor.copy_out(range);
    }
  }

  BlockIo& front() const { return static_cast<BlockIo&>(*queue_.front()); }

  const Memory& memory_;
  Fifo<Work> small_;  // reads and writes to be copied at the end of the turn
  bool copy_pending_ = false;
  struct CopyWork : Work {
    MallocChannel* channel = nullptr;
  } copy_work_;
  Fifo<Work> queue_;  // to be worked off in slices
  // Of the first request in the queue.
  uint64_t done_bytes_ = 0;
  IovCursor cursor_;
};

Result<std::unique_ptr<BdevChannel>> MallocBdev::make_channel() { return std::make_unique<MallocChannel>(*this); }

}  // namespace

Result<std::unique_ptr<Bdev>> create_malloc_bdev(const MallocBdevOptions& options) {
  const uint64_t block_bytes = options.block_size_bytes;
  if (!std::has_single_bit(block_bytes) || block_bytes < 512 || block_bytes > kMaxBlockBytes) {
    return fail(EINVAL, "the block size of a malloc bdev is a power of two from 512 to 65536");
  }
  const uint32_t physical_bytes =
      options.physical_block_size_bytes == 0 ? options.block_size_bytes : options.physical_block_size_bytes;
  if (!std::has_single_bit(physical_bytes) || physical_bytes < block_bytes) {
    return fail(EINVAL, "the physical block size of a malloc bdev is a power of two, its block size at least");
  }
  if (options.num_blocks == 0) return fail(EINVAL, "a malloc bdev needs at least one block");
  if (options.num_blocks > (INT64_MAX - kHugePageBytes) / block_bytes) {
    return fail(EINVAL, "the size of a malloc bdev is less than 2^63 bytes");
  }
  const uint64_t size_bytes = options.num_blocks * block_bytes;
  auto memory = Memory::map(size_bytes);
  if (!memory) return std::unexpected(memory.error());
  return std::make_unique<MallocBdev>(
      Bdev::Options{
          .name = options.name,
          .uuid = options.uuid,
          .product_name = kMallocProductName,
          .size_bytes = size_bytes,
          .limits = {.block_size_bytes = options.block_size_bytes,
                     .physical_block_size_bytes = physical_bytes,
                     .optimal_boundary_bytes = options.optimal_io_boundary_blocks * block_bytes,
                     .discard_granularity_bytes = static_cast<uint32_t>(std::max(block_bytes, kPageBytes))},
          .io_types = {IoType::kRead, IoType::kWrite, IoType::kFlush, IoType::kDiscard, IoType::kWriteZeroes,
                       IoType::kReset},
      },
      std::move(*memory));
}

}  // namespace sluice
