#include "test/sim/sim_user.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "lib/base/iov_cursor.h"
#include "lib/thread/gate.h"

namespace sluice::sim {
namespace {

// So many requests at full speed; a run has to end.
constexpr uint64_t kLively = 2000;

uint64_t sum_of(std::span<const std::byte> bytes) {
  uint64_t sum = 0;
  for (size_t at = 0; at + sizeof(uint64_t) <= bytes.size(); at += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, sizeof(word));
    sum = sum * 31 + word;
  }
  return sum;
}

// co_await Submitted{channel, request}
struct Submitted {
  BdevChannel& channel;
  SimRequest& request;
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> waiter) {
    request.done = [waiter] { waiter.resume(); };
    request.run = [](Work& work) {
      auto& self = static_cast<SimRequest&>(work);
      CHECK(self.in_flight);  // otherwise it has completed before
      self.in_flight = false;
      self.done();
    };
    request.in_flight = true;
    channel.submit(request);
    CHECK(request.in_flight);  // never inside submit
  }
  void await_resume() const noexcept {}
};

}  // namespace

SimUser::SimUser(Context& context, Export& through, uint64_t number)
    : context_(context), export_(through), number_(number) {
  constexpr std::array kPauses = {uint64_t{1}, 300 * kNsPerUs, 3 * kNsPerMs};
  longest_pause_ns_ = kPauses[context.below(kPauses.size())];
}

Task<> SimUser::run() {
  BdevWorld& world = context_.world;
  auto handle = world.manager.open(export_.front, BdevAccess::kWrite, *this, fmt::format("user {}", number_));
  if (!handle) {
    ended_ = true;
    co_return;
  }
  handle_ = std::move(*handle);
  CpuMask mask;
  do {
    for (uint32_t host = 0; host < kHosts; ++host) {
      if (context_.chance(50)) mask.set(host);
    }
  } while (mask.none());
  const Result<LwThread*> made = world.threads.create(fmt::format("user.{}", number_), mask);
  CHECK(made.has_value());
  thread_ = *made;
  const bool open = co_await call_on(*thread_, [this] { return open_channel(); });
  if (open) {
    co_await call_on(*thread_, [this] { return work(); });
    co_await call_on(*thread_, [this] { close_channel(); });
  }
  handle_.reset();
  co_await world.threads.destroy(*thread_);
  context_.trace.note("user {} has gone", number_);
  ended_ = true;
}

bool SimUser::open_channel() {
  auto opened = thread_->get_channel(bdev());
  if (!opened) {
    // EBUSY: there may be fewer queues than hosts.
    if (!removed_ && opened.error().code != EBUSY) context_.fail("no channel: {}", opened.error().what);
    return false;
  }
  channel_ = std::move(*opened);
  const size_t depth = scanning_ ? 1 : 1 + context_.below(5);
  for (size_t i = 0; i < depth; ++i) {
    auto slot = std::make_unique<Slot>();
    slot->shared = bdev().allocate_buffer(kBufferBytes + 64).value();
    slot->plain = IoBuffer::allocate(kBufferBytes + 64).value();
    slots_.push_back(std::move(slot));
  }
  context_.trace.note("user {} of {} on {}, {} at a time", number_, export_.front, ThreadHost::current()->home().name(),
                      depth);
  return true;
}

void SimUser::close_channel() {
  const IoStats& counted = channel().stats();
  for (size_t i = 0; i < kIoTypes; ++i) {
    if (counted.by_type[i].ops != expected_.by_type[i].ops || counted.by_type[i].bytes != expected_.by_type[i].bytes) {
      context_.fail("user {}: the channel has counted {} requests of type {}, not {}", number_, counted.by_type[i].ops,
                    i, expected_.by_type[i].ops);
    }
  }
  if (counted.by_status != expected_.by_status) context_.fail("user {}: errors are miscounted", number_);
  channel_.reset();
}

Task<> SimUser::work() {
  if (scanning_) {
    co_await scan();
    co_return;
  }
  Gate gate;
  for (size_t i = 0; i < slots_.size(); ++i) std::ignore = gate.spawn(work(i));
  co_await gate.close();
}

Task<> SimUser::work(size_t index) {
  Slot& slot = *slots_[index];
  while (!leaving()) {
    const IoType type = pick_type();
    const SectorRange range = type == IoType::kFlush ? SectorRange{} : pick_range();
    const bool exclusive = type != IoType::kRead && type != IoType::kFlush;
    if (export_.disk.model.reserve(range, exclusive)) {
      co_await perform(slot, type, range);
      export_.disk.model.release(range, exclusive);
    }
    // A device that fails does so at once.
    const bool calm = context_.requests > kLively || slot.request.status != IoStatus::kOk;
    co_await sleep_for(1 + context_.below(calm ? 3 * kNsPerMs : longest_pause_ns_));
    check_untouched(slot);
  }
}

// Requires: nobody else does anything.
Task<> SimUser::scan() {
  const uint64_t sectors = bdev().size_bytes() / ContentModel::kSectorBytes;
  constexpr uint64_t kStep = kBufferBytes / ContentModel::kSectorBytes;
  for (const IoType type : {IoType::kRead, IoType::kWrite, IoType::kRead}) {
    for (uint64_t first = 0; first < sectors; first += kStep) {
      const SectorRange range{.first = first, .count = std::min(kStep, sectors - first)};
      CHECK(export_.disk.model.reserve(range, true));
      co_await perform(*slots_[0], type, range);
      export_.disk.model.release(range, true);
    }
  }
}

IoType SimUser::pick_type() {
  const uint64_t dice = context_.below(100);
  IoType type = IoType::kRead;
  if (dice >= 45) type = IoType::kWrite;
  if (dice >= 80) type = IoType::kFlush;
  if (dice >= 86) type = IoType::kDiscard;
  if (dice >= 92) type = IoType::kWriteZeroes;
  return bdev().supports(type) ? type : IoType::kRead;
}

SectorRange SimUser::pick_range() {
  const uint64_t block = bdev().limits().block_size_bytes / ContentModel::kSectorBytes;
  const uint64_t blocks = bdev().size_bytes() / bdev().limits().block_size_bytes;
  constexpr std::array kLargest = {4U, 4U, 16U, 16U, 64U, 256U};
  const uint64_t largest =
      std::min(kLargest[context_.below(kLargest.size())] / block + 1, kBufferBytes / bdev().limits().block_size_bytes);
  const uint64_t count = 1 + context_.below(std::min(largest, blocks));
  return {.first = context_.below(blocks - count + 1) * block, .count = count * block};
}

Task<> SimUser::perform(Slot& slot, IoType type, SectorRange range) {
  ContentModel& model = export_.disk.model;
  SimRequest& request = slot.request;
  prepare(slot, type, range);
  const uint32_t generation = type == IoType::kWrite ? model.new_generation() : ContentModel::kZeroes;
  if (type == IoType::kWrite) {
    ContentModel::fill(slot.bytes, range.first, generation);
  } else if (type == IoType::kRead) {
    std::memset(slot.bytes.data(), 0xa5, slot.bytes.size());
  }
  context_.active.push_back(request);
  context_.trace.note("{}: {} {}+{}", request.number, to_string(type), range.first, range.count);
  ++context_.requests;
  co_await Submitted{channel(), request};

  request.ListHook<ActiveTag>::unlink();
  context_.trace.note("{}: {}", request.number, to_string(request.status));
  slot.sum_after = sum_of(slot.bytes);
  check_outcome(request);
  const bool ok = request.status == IoStatus::kOk;
  if (type == IoType::kRead && ok) check_data(slot, range);
  if (type == IoType::kWrite || type == IoType::kWriteZeroes || type == IoType::kDiscard) {
    if (ok && type != IoType::kDiscard) {
      model.set(range, generation);
    } else {
      model.maybe_set(range, generation);
    }
  }
}

void SimUser::prepare(Slot& slot, IoType type, SectorRange range) {
  SimRequest& request = slot.request;
  request.type = type;
  request.may_unmap = context_.chance(50);
  request.offset_bytes = range.first * ContentModel::kSectorBytes;
  request.length_bytes = range.count * ContentModel::kSectorBytes;
  request.pieces.clear();
  slot.bytes = {};
  if (type == IoType::kRead || type == IoType::kWrite) {
    const IoBuffer& buffer = context_.chance(60) ? slot.shared : slot.plain;
    const size_t misaligned = context_.chance(70) ? 0 : context_.below(64);
    slot.bytes = buffer.bytes().subspan(misaligned, request.length_bytes);
    const size_t most = context_.chance(70) ? 1 : 1 + context_.below(6);
    for (size_t done = 0; done < slot.bytes.size();) {
      const size_t left = slot.bytes.size() - done;
      const size_t size = request.pieces.size() + 1 == most ? left : std::min(left, 1 + context_.below(3000));
      request.pieces.push_back({.iov_base = slot.bytes.data() + done, .iov_len = size});
      done += size;
    }
  }
  request.iov = request.pieces.data();
  request.iov_count = static_cast<uint32_t>(request.pieces.size());
  request.through = &export_;
  request.number = context_.requests;
  request.begin_ns = context_.now_ns();
  request.disturbances = export_.disturbances;
  request.least_size = export_.disk.size_bytes;
  request.disk_has_failed = false;
}

// Whether it has completed where it should, and with an error only for a reason.
void SimUser::check_outcome(const SimRequest& request) {
  if (LwThread::current() != thread_ || ThreadHost::current() != &thread_->host()) {
    context_.fail("request {} has completed on another thread", request.number);
  }
  bool& disturbed = export_.disturbed[static_cast<ManualHost&>(thread_->host()).index()];
  const bool changes = request.type != IoType::kRead && request.type != IoType::kFlush;
  if (request.status == IoStatus::kOk) {
    ++expected_.of(request.type).ops;
    expected_.of(request.type).bytes += request.length_bytes;
    // What changes something has its sectors, and so the disk's error, to itself.
    if (request.disk_has_failed && changes) context_.fail("request {}: an error of the disk is lost", request.number);
    if (request.disturbances == export_.disturbances && request.begin_ns >= export_.restored_ns) disturbed = false;
    return;
  }
  ++expected_.by_status[static_cast<size_t>(request.status)];
  ++context_.errors;
  const bool back_is_up =
      request.begin_ns >= export_.restored_ns && request.begin_ns - export_.restored_ns > kReconnectNs;
  const bool was_disturbed = request.disturbances != export_.disturbances || (disturbed && !back_is_up);
  const bool beyond_the_end = request.offset_bytes + request.length_bytes > request.least_size;
  if (removed_ || was_disturbed || beyond_the_end || request.disk_has_failed) return;
  context_.fail("request {} ({} at {} of {}) has failed without a reason: {}", request.number, to_string(request.type),
                request.offset_bytes / ContentModel::kSectorBytes, export_.front, to_string(request.status));
}

void SimUser::check_data(const Slot& slot, SectorRange range) {
  const std::string wrong = export_.disk.model.check(slot.bytes, range.first);
  if (!wrong.empty()) context_.fail("request {} of {}: {}", slot.request.number, export_.front, wrong);
}

// From its completion to the next one a request's buffer is ours.
void SimUser::check_untouched(const Slot& slot) {
  if (sum_of(slot.bytes) == slot.sum_after) return;
  context_.fail("the buffer of request {} ({} through {}, {}) has changed after it had completed", slot.request.number,
                to_string(slot.request.type), export_.front, to_string(slot.request.status));
}

}  // namespace sluice::sim
