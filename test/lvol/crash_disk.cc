#include "test/lvol/crash_disk.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "lib/base/check.h"
#include "lib/base/iov_cursor.h"
#include "lib/bdev/bdev_channel.h"
#include "lib/thread/timer.h"

namespace sluice::lvol {
namespace {

constexpr uint64_t kUsualNs = 200 * kNsPerUs;
constexpr uint64_t kSlowNs = 2 * kNsPerMs;

bool changes_bytes(IoType type) {
  return type == IoType::kWrite || type == IoType::kWriteZeroes || type == IoType::kDiscard;
}

}  // namespace

// --- CrashStore ---

CrashStore::CrashStore(Options options)
    : size_bytes_(options.size_bytes),
      block_bytes_(options.block_bytes),
      random_(options.seed),
      now_(make_image(options.size_bytes)),
      durable_(make_image(options.size_bytes)) {
  CHECK(size_bytes_ % block_bytes_ == 0);
}

CrashStore::~CrashStore() { CHECK(in_flight_.empty()); }

// Pages that are never touched cost nothing.
CrashStore::Image CrashStore::make_image(uint64_t size_bytes) {
  Image image(static_cast<std::byte*>(std::calloc(size_bytes, 1)));
  CHECK(image != nullptr);
  return image;
}

void CrashStore::cut_at(uint64_t change, CutMode mode) {
  CHECK(change > changes_);
  cut_at_ = change;
  cut_mode_ = mode;
}

void CrashStore::fail_at(uint64_t request, IoStatus status) {
  CHECK(request > requests_);
  CHECK(status != IoStatus::kOk);
  fail_at_[request] = status;
}

void CrashStore::put(uint64_t offset_bytes, std::span<const std::byte> bytes) {
  CHECK(offset_bytes + bytes.size() <= size_bytes_);
  std::memcpy(now_.get() + offset_bytes, bytes.data(), bytes.size());
  std::memcpy(durable_.get() + offset_bytes, bytes.data(), bytes.size());
}

uint64_t CrashStore::begin(BlockIo& io) {
  const uint64_t number = ++requests_;
  in_flight_.emplace(number, InFlight{.io = &io, .completed = flushed_ + unflushed_.size()});
  return number;
}

IoStatus CrashStore::end(uint64_t number) {
  const auto found = in_flight_.find(number);
  const InFlight request = found->second;
  const BlockIo& io = *request.io;
  const bool is_change = changes_bytes(io.type) || io.type == IoType::kFlush;
  if (is_change && !cut_ && ++changes_ == cut_at_) power_cut(cut_mode_);
  in_flight_.erase(found);
  if (cut_) return IoStatus::kFailed;

  IoStatus status = IoStatus::kOk;
  uint64_t length_bytes = io.length_bytes;
  if (const auto failing = fail_at_.find(number); failing != fail_at_.end()) {
    status = failing->second;
    length_bytes = random_() % (length_bytes / block_bytes_ + 1) * block_bytes_;
  }
  if (changes_bytes(io.type)) {
    change(io, number, length_bytes);
  } else if (io.type == IoType::kRead) {
    IovCursor({io.iov, io.iov_count}).copy_in({now_.get() + io.offset_bytes, length_bytes});
  } else if (io.type == IoType::kFlush && status == IoStatus::kOk) {
    ++flushes_;
    flush(request.completed);
  }
  return status;
}

void CrashStore::change(const BlockIo& io, uint64_t number, uint64_t length_bytes) {
  // A discard need not do anything.
  if (length_bytes == 0 || (io.type == IoType::kDiscard && random_() % 2 == 0)) return;
  unflushed_.push_back(unflushed(io, number, length_bytes));
  apply(now_, unflushed_.back(), io.offset_bytes, length_bytes);
}

CrashStore::Unflushed CrashStore::unflushed(const BlockIo& io, uint64_t number, uint64_t length_bytes) {
  Unflushed change{.number = number, .offset_bytes = io.offset_bytes, .length_bytes = length_bytes, .bytes = {}};
  if (io.type == IoType::kWrite) {
    change.bytes.resize(length_bytes);
    IovCursor({io.iov, io.iov_count}).copy_out(change.bytes);
  }
  return change;
}

void CrashStore::apply(Image& image, const Unflushed& change, uint64_t offset_bytes, uint64_t length_bytes) const {
  if (length_bytes == 0) return;
  if (change.bytes.empty()) {
    std::memset(image.get() + offset_bytes, 0, length_bytes);
  } else {
    std::memcpy(image.get() + offset_bytes, change.bytes.data() + (offset_bytes - change.offset_bytes), length_bytes);
  }
}

void CrashStore::flush(uint64_t completed) {
  // Another flush may have been faster.
  for (; flushed_ < completed; ++flushed_) {
    const Unflushed& change = unflushed_.front();
    apply(durable_, change, change.offset_bytes, change.length_bytes);
    unflushed_.pop_front();
  }
}

// --- Power ---

void CrashStore::power_cut(CutMode mode) {
  CHECK(!cut_);
  cut_ = true;
  std::vector<Unflushed> changes(std::move_iterator(unflushed_.begin()), std::move_iterator(unflushed_.end()));
  flushed_ += changes.size();
  unflushed_.clear();
  // What is in flight may have taken effect too, after what has completed.
  const auto completed = static_cast<ptrdiff_t>(changes.size());
  for (const auto& [number, request] : in_flight_) {
    if (changes_bytes(request.io->type)) changes.push_back(unflushed(*request.io, number, request.io->length_bytes));
  }
  std::ranges::shuffle(changes.begin() + completed, changes.end(), random_);

  uint64_t kept_before = 0;
  if (!changes.empty()) {
    const Unflushed& any = changes[random_() % changes.size()];
    kept_before = any.number + random_() % 2;
  }
  for (const Unflushed& change : changes) apply_some(change, mode, kept_before);
  for (const Unflushed& change : changes) {
    std::memcpy(now_.get() + change.offset_bytes, durable_.get() + change.offset_bytes, change.length_bytes);
  }
}

void CrashStore::apply_some(const Unflushed& change, CutMode mode, uint64_t kept_before) {
  const uint64_t blocks = change.length_bytes / block_bytes_;
  uint64_t kept_blocks = 0;  // from its beginning
  switch (mode) {
    case CutMode::kNothing:
      break;
    case CutMode::kEverything:
      kept_blocks = blocks;
      break;
    case CutMode::kRandomBlocks:
      // Runs of blocks, as a disk with pages larger than blocks would lose them; often single ones.
      for (uint64_t block = 0; block < blocks;) {
        const uint64_t run = std::min(blocks - block, random_() % 2 == 0 ? 1 : random_() % 16 + 1);
        if (random_() % 2 == 0) {
          apply(durable_, change, change.offset_bytes + block * block_bytes_, run * block_bytes_);
        }
        block += run;
      }
      break;
    case CutMode::kRandomRequests:
      kept_blocks = random_() % 2 == 0 ? blocks : 0;
      break;
    case CutMode::kFirstRequests:
      if (change.number < kept_before) kept_blocks = blocks;
      if (change.number == kept_before && random_() % 2 == 0) kept_blocks = random_() % (blocks + 1);
      break;
  }
  apply(durable_, change, change.offset_bytes, kept_blocks * block_bytes_);
}

void CrashStore::power_on() {
  CHECK(in_flight_.empty());
  cut_ = false;
  cut_at_ = 0;
  fail_at_.clear();
}

// --- CrashDisk ---

class CrashDisk::CrashChannel final : public BdevChannel {
 public:
  explicit CrashChannel(CrashDisk& disk)
      : BdevChannel(disk), store_(disk.store_), timer_("crash_disk", [this] { complete_due(); }) {}
  ~CrashChannel() override { CHECK(pending_.empty()); }

 private:
  struct Pending {
    uint64_t due_ns;
    uint64_t number;
    BlockIo* io;
    bool operator>(const Pending& other) const {
      return due_ns != other.due_ns ? due_ns > other.due_ns : number > other.number;
    }
  };

  void do_submit(BlockIo& io) override {
    const uint64_t number = store_.begin(io);
    const uint64_t chance = store_.random_() % 32;
    if (chance < 4) {
      complete(io, store_.end(number));
      return;
    }
    const uint64_t longest_ns = chance == 4 ? kSlowNs : kUsualNs;
    pending_.push_back({thread().now_ns() + store_.random_() % longest_ns, number, &io});
    std::ranges::push_heap(pending_, std::greater{});
    timer_.arm_at(thread(), pending_.front().due_ns);
  }

  void complete_due() {
    while (!pending_.empty() && pending_.front().due_ns <= thread().now_ns()) {
      std::ranges::pop_heap(pending_, std::greater{});
      const Pending due = pending_.back();
      pending_.pop_back();
      complete(*due.io, store_.end(due.number));
    }
    if (!pending_.empty()) timer_.arm_at(thread(), pending_.front().due_ns);
  }

  CrashStore& store_;
  Timer timer_;
  std::vector<Pending> pending_;  // a heap
};

CrashDisk::CrashDisk(std::string name, CrashStore& store, uint64_t size_bytes)
    : Bdev({.name = std::move(name),
            .uuid = {},
            .product_name = "Crash disk",
            .size_bytes = size_bytes == 0 ? store.size_bytes() : size_bytes,
            .limits = {.block_size_bytes = store.block_bytes(), .physical_block_size_bytes = store.block_bytes()},
            .io_types = {IoType::kRead, IoType::kWrite, IoType::kFlush, IoType::kDiscard, IoType::kWriteZeroes,
                         IoType::kReset}}),
      store_(store) {}

Result<std::unique_ptr<BdevChannel>> CrashDisk::make_channel() { return std::make_unique<CrashChannel>(*this); }

}  // namespace sluice::lvol
