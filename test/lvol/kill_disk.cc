#include "test/lvol/kill_disk.h"

#include <fmt/format.h>

#include <algorithm>

#include "lib/base/clock.h"
#include "lib/bdev/virtio/virtio_bdev.h"

namespace sluice::lvol {
namespace {

constexpr uint64_t kPieceBytes = 256U << 10;
constexpr uint32_t kSweepDepth = 8;
// How long a daemon that has been started again may take until a read works.
constexpr uint64_t kBackNs = 10 * kNsPerSec;

struct AwaitableIo : BlockIo {
  Event done;
  AwaitableIo() {
    run = [](Work& work) { static_cast<AwaitableIo&>(work).done.set(); };
  }
};

}  // namespace

// --- SocketDisk ---

struct SocketDisk::Sweep {
  uint64_t end_bytes = 0;
  uint64_t next_bytes = 0;
  std::function<std::string(std::span<const std::byte>, uint64_t)> look;
  Finding finding;
};

Task<Result<>> SocketDisk::open(std::string socket, BdevAccess access) {
  const auto attached =
      co_await app_.virtio.attach(bdevs_, {.name = name_, .socket_path = std::move(socket), .vq_count = 1});
  if (!attached) co_return std::unexpected(attached.error());
  auto handle = bdevs_.open(name_, access, *this, "load");
  if (!handle) co_return std::unexpected(handle.error());
  handle_ = std::move(*handle);
  auto channel = LwThread::current()->get_channel(bdev());
  if (!channel) co_return std::unexpected(channel.error());
  channel_ = std::move(*channel);
  co_return Result<>{};
}

Task<> SocketDisk::close() {
  channel_.reset();
  handle_.reset();
  // ENODEV: it could not be attached.
  co_await app_.virtio.detach(bdevs_, name_);
}

Task<IoStatus> SocketDisk::submit(IoType type, uint64_t offset_bytes, uint64_t length_bytes, std::byte* bytes) {
  iovec iov{.iov_base = bytes, .iov_len = length_bytes};
  AwaitableIo io;
  io.type = type;
  io.may_unmap = true;
  io.iov = &iov;
  io.iov_count = 1;
  io.offset_bytes = offset_bytes;
  io.length_bytes = length_bytes;
  static_cast<BdevChannel*>(channel_.get())->submit(io);
  co_await io.done.wait();
  co_return io.status;
}

Task<SocketDisk::Finding> SocketDisk::read_through(
    uint64_t bytes, std::function<std::string(std::span<const std::byte>, uint64_t)> look) {
  const auto memory = bdev().allocate_buffer(kSweepDepth * kPieceBytes);
  if (!memory) co_return Finding{.text = memory.error().what, .failed = true};
  Sweep all{.end_bytes = bytes, .look = std::move(look), .finding = {}};
  Gate workers;
  for (uint32_t i = 0; i < kSweepDepth; ++i) {
    CHECK(workers.spawn(sweep(all, memory->bytes().subspan(i * kPieceBytes, kPieceBytes))));
  }
  co_await workers.close();
  co_return all.finding;
}

Task<> SocketDisk::sweep(Sweep& sweep, std::span<std::byte> buffer) {
  while (sweep.next_bytes < sweep.end_bytes && sweep.finding.text.empty()) {
    const uint64_t at = sweep.next_bytes;
    const uint64_t length = std::min<uint64_t>(kPieceBytes, sweep.end_bytes - at);
    sweep.next_bytes += length;
    const IoStatus status = co_await submit(IoType::kRead, at, length, buffer.data());
    if (!sweep.finding.text.empty()) co_return;
    if (status != IoStatus::kOk) {
      sweep.finding = {.text = fmt::format("{}: read at byte {}: {}", name_, at, to_string(status)), .failed = true};
    } else {
      sweep.finding.text = sweep.look(buffer.first(length), at / kSectorBytes);
    }
  }
}

// --- KillLoad ---

KillLoad::KillLoad(SocketDisk& disk, uint32_t number, uint64_t bytes, uint64_t seed)
    : disk_(disk),
      sectors_(bytes / kSectorBytes),
      random_(seed),
      model_(number, sectors_),
      memory_(disk.bdev().allocate_buffer(kDepth * kMaxRequestBytes).value()) {
  for (uint32_t i = 0; i < kDepth; ++i) {
    slots_.push_back({.buffer = memory_.bytes().subspan(i * kMaxRequestBytes, kMaxRequestBytes), .range = {}});
  }
}

void KillLoad::start() {
  failed_ns_ = changes_ = flushes_ = 0;
  failure_.clear();
  running_ = true;
  workers_.emplace();
  for (Slot& slot : slots_) CHECK(workers_->spawn(work(slot)));
}

Task<> KillLoad::ended() {
  co_await workers_->close();
  workers_.reset();
}

Task<> KillLoad::work(Slot& slot) {
  while (running_) {
    const uint64_t kind = random_() % 100;
    if (kind < 2) {
      co_await flush();
    } else if (kind < 25) {
      co_await read(slot);
    } else {
      co_await change(slot, kind >= 85);
    }
  }
}

Task<> KillLoad::read(Slot& slot) {
  choose(slot);
  const auto bytes = slot.buffer.first(slot.range.count * kSectorBytes);
  const uint64_t first = slot.range.first;
  const IoStatus status = co_await disk_.submit(IoType::kRead, first * kSectorBytes, bytes.size(), bytes.data());
  if (succeeded(IoType::kRead, &slot, status) && mismatch_.empty()) mismatch_ = model_.check(bytes, first);
  slot.range = {};
}

Task<> KillLoad::change(Slot& slot, bool zeroes) {
  choose(slot);
  const uint32_t version = model_.begin(slot.range, zeroes);
  const auto bytes = slot.buffer.first(slot.range.count * kSectorBytes);
  if (!zeroes) model_.fill(bytes, slot.range.first, version);
  const IoType type = zeroes ? IoType::kWriteZeroes : IoType::kWrite;
  const IoStatus status = co_await disk_.submit(type, slot.range.first * kSectorBytes, bytes.size(), bytes.data());
  if (succeeded(type, &slot, status)) {
    model_.done(slot.range, version);
    ++changes_;
  }
  slot.range = {};
}

Task<> KillLoad::flush() {
  const std::vector<uint32_t> completed = model_.completed();
  const IoStatus status = co_await disk_.submit(IoType::kFlush, 0, 0, nullptr);
  if (!succeeded(IoType::kFlush, nullptr, status)) co_return;
  model_.flushed(completed);
  ++flushes_;
}

// Small ones are as many as large ones. Half of them begin at a page.
void KillLoad::choose(Slot& slot) {
  SectorRange range;
  const auto is_taken = [&] {
    return std::ranges::any_of(slots_, [&](const Slot& other) { return other.range.meets(range); });
  };
  do {
    range.count = 1 + random_() % (uint64_t{1} << random_() % 10);
    range.first = random_() % (sectors_ - range.count + 1);
    if (random_() % 2 == 0) range.first &= ~uint64_t{7};
  } while (is_taken());
  slot.range = range;
}

bool KillLoad::succeeded(IoType type, const Slot* slot, IoStatus status) {
  if (status == IoStatus::kOk) return true;
  running_ = false;
  if (failed_ns_ == 0) {
    failed_ns_ = system_monotonic_ns();
    failure_ = fmt::format("{} of {} sectors at sector {}: {}", to_string(type), slot ? slot->range.count : 0,
                           slot ? slot->range.first : 0, to_string(status));
  }
  return false;
}

Task<std::string> KillLoad::settle() {
  const uint64_t deadline_ns = system_monotonic_ns() + kBackNs;
  while (co_await disk_.submit(IoType::kRead, 0, kSectorBytes, memory_.bytes().data()) != IoStatus::kOk) {
    if (system_monotonic_ns() > deadline_ns) co_return "the disk does not come back";
    co_await sleep_for(2 * kNsPerMs);
  }
  const auto finding = co_await disk_.read_through(
      sectors_ * kSectorBytes,
      [this](std::span<const std::byte> bytes, uint64_t first) { return model_.settle(bytes, first); });
  if (finding.text.empty()) model_.settled();
  co_return finding.text;
}

}  // namespace sluice::lvol
