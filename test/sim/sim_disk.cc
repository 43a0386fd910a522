#include "test/sim/sim_disk.h"

#include <algorithm>
#include <cstring>

#include "lib/base/iov_cursor.h"
#include "lib/bdev/bdev_channel.h"
#include "lib/thread/timer.h"

namespace sluice::sim {
namespace {

constexpr uint64_t kUsualNs = 200 * kNsPerUs;
constexpr uint64_t kSlowNs = 5 * kNsPerMs;

}  // namespace

// The timer goes along when the thread moves, and with it the requests.
class SimDisk::SimChannel final : public BdevChannel {
 public:
  explicit SimChannel(SimDisk& disk)
      : BdevChannel(disk), store_(disk.store_), timer_("sim_disk", [this] { complete_due(); }) {}
  ~SimChannel() override { CHECK(pending_.empty()); }

 private:
  struct Pending {
    uint64_t due_ns;
    uint64_t number;  // the first come first, of those that are due at the same time
    BlockIo* io;
    bool operator>(const Pending& other) const {
      return due_ns != other.due_ns ? due_ns > other.due_ns : number > other.number;
    }
  };

  void do_submit(BlockIo& io) override {
    check_limits(io);
    const uint64_t chance = store_.random() % 64;
    if (chance < 8) {
      carry_out(io);
      return;
    }
    const uint64_t longest_ns = chance == 8 ? kSlowNs : kUsualNs;
    pending_.push_back({thread().now_ns() + store_.random() % longest_ns, next_number_++, &io});
    std::ranges::push_heap(pending_, std::greater{});
    timer_.arm_at(thread(), pending_.front().due_ns);
  }

  void complete_due() {
    while (!pending_.empty() && pending_.front().due_ns <= thread().now_ns()) {
      std::ranges::pop_heap(pending_, std::greater{});
      BlockIo& io = *pending_.back().io;
      pending_.pop_back();
      carry_out(io);
    }
    if (!pending_.empty()) timer_.arm_at(thread(), pending_.front().due_ns);
  }

  void carry_out(BlockIo& io) {
    IoStatus status = IoStatus::kOk;
    uint64_t length = io.length_bytes;
    if (store_.random() % 100 < store_.failing_percent) {
      const bool changes = io.type != IoType::kRead && io.type != IoType::kFlush;
      status = changes && store_.random() % 2 == 0 ? IoStatus::kNoSpace : IoStatus::kFailed;
      // It may have come some of the way.
      length = store_.random() % (io.length_bytes / 512 + 1) * 512;
      store_.on_failure(io);
    }
    if (io.type != IoType::kFlush && io.type != IoType::kReset) transfer(io, length);
    complete(io, status);
  }

  void transfer(BlockIo& io, uint64_t length) {
    CHECK(io.offset_bytes + io.length_bytes <= store_.bytes.size());
    const std::span<std::byte> place(store_.bytes.data() + io.offset_bytes, length);
    if (io.type == IoType::kRead) {
      IovCursor({io.iov, io.iov_count}).copy_in(place);
    } else if (io.type == IoType::kWrite) {
      IovCursor({io.iov, io.iov_count}).copy_out(place);
    } else if (io.type == IoType::kWriteZeroes || store_.random() % 2 == 0) {  // a discard need not do anything
      if (!place.empty()) std::memset(place.data(), 0, place.size());
    }
  }

  void check_limits(const BlockIo& io) const {
    CHECK(LwThread::current() == &thread() && thread().runs_here());
    if (io.type != IoType::kRead && io.type != IoType::kWrite) return;
    const BdevLimits& limits = bdev().limits();
    CHECK(io.length_bytes <= limits.max_transfer_bytes);
    CHECK(io.iov_count <= limits.max_segments);
    for (uint32_t i = 0; i < io.iov_count; ++i) {
      CHECK(reinterpret_cast<uintptr_t>(io.iov[i].iov_base) % limits.buffer_alignment_bytes == 0);
      CHECK(io.iov[i].iov_len % limits.buffer_alignment_bytes == 0);
    }
  }

  SimStore& store_;
  Timer timer_;
  std::vector<Pending> pending_;  // a heap
  uint64_t next_number_ = 0;
};

SimDisk::SimDisk(std::string name, uint64_t size_bytes, const BdevLimits& limits, SimStore& store)
    : Bdev({.name = std::move(name),
            .uuid = {},
            .product_name = "Simulated disk",
            .size_bytes = size_bytes,
            .limits = limits,
            .io_types = {IoType::kRead, IoType::kWrite, IoType::kFlush, IoType::kDiscard, IoType::kWriteZeroes,
                         IoType::kReset}}),
      store_(store) {}

Result<std::unique_ptr<BdevChannel>> SimDisk::make_channel() { return std::make_unique<SimChannel>(*this); }

}  // namespace sluice::sim
