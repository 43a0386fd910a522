#include "app/copy/copy.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "app/common/app.h"
#include "lib/base/unique_fd.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/virtio/virtio_bdev.h"
#include "lib/thread/gate.h"

namespace sluice::copy {
namespace {

// Requests of so many bytes, and so many at a time: enough to keep a disk busy while the file is read.
constexpr uint64_t kPieceBytes = 1U << 20;
constexpr uint32_t kDepth = 8;
// What is all zeros within this unit is not sent as data.
constexpr uint64_t kZeroUnitBytes = 64U << 10;
// Of zeros; so that progress shows, and an interrupted run ends soon.
constexpr uint64_t kMaxHoleBytes = 256U << 20;
constexpr uint64_t kShowEveryNs = kNsPerSec / 5;

struct AwaitableIo : BlockIo {
  Event done;
  AwaitableIo() {
    run = [](Work& work) { static_cast<AwaitableIo&>(work).done.set(); };
  }
};

struct IgnoreEvents : BdevEvents {
  void on_resize() override {}
  void on_remove() override {}
};

int complain(std::string_view text) {
  fmt::print(stderr, "sluice-copy: {}\n", text);
  return 1;
}

bool is_zero(std::span<const std::byte> bytes) {
  return bytes.empty() || (bytes[0] == std::byte{0} && std::memcmp(&bytes[0], &bytes[1], bytes.size() - 1) == 0);
}

uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

std::string in_mib(uint64_t bytes) { return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1U << 20)); }

class Program {
 public:
  Program(const Options& options, App& app, int file, uint64_t file_bytes)
      : options_(options), app_(app), bdevs_(app.threads), file_(file), file_bytes_(file_bytes) {}

  // On the application's lightweight thread. The result is the process's.
  Task<int> run() {
    int result = 1;
    const auto attached = co_await app_.virtio.attach(
        bdevs_, {.name = "disk", .socket_path = options_.socket_path, .vq_count = 1, .vq_size = 256});
    if (attached) {
      result = co_await use(**attached);
    } else {
      complain(fmt::format("disk {}: {}: {}", options_.socket_path, attached.error().what,
                           ::strerrordesc_np(attached.error().code)));
    }
    co_await app_.virtio.detach_all(bdevs_);
    co_await bdevs_.remove_all();
    co_return result;
  }

 private:
  enum class Pass : uint8_t { kCopy, kVerify };

  struct Piece {
    uint64_t offset_bytes;
    uint64_t length_bytes;
    bool hole;
  };

  Task<int> use(Bdev& disk) {
    block_bytes_ = disk.limits().block_size_bytes;
    end_bytes_ = round_up(file_bytes_, block_bytes_);
    if (end_bytes_ > disk.size_bytes()) {
      co_return complain(
          fmt::format("{} has {} bytes, the disk only {}", options_.source, file_bytes_, disk.size_bytes()));
    }
    IgnoreEvents events;
    const auto handle = bdevs_.open(disk.name(), BdevAccess::kWrite, events, "sluice-copy");
    if (!handle) co_return complain("the disk is read-only");
    if (!options_.new_disk && !disk.supports(IoType::kWriteZeroes)) {
      co_return complain("the disk cannot write zeroes by itself; if it is all zeros, say so with --new");
    }
    auto channel = LwThread::current()->get_channel(disk);
    if (!channel) co_return sluice::complain("disk", channel.error());
    auto memory = disk.allocate_buffer(kDepth * kPieceBytes);
    if (!memory) co_return sluice::complain("memory", memory.error());
    disk_ = static_cast<BdevChannel*>(channel->get());

    co_await all_pieces(Pass::kCopy, memory->bytes());
    if (failure_.empty()) co_await flush();
    if (failure_.empty() && options_.verify) co_await all_pieces(Pass::kVerify, memory->bytes());
    if (!failure_.empty()) co_return complain(failure_);
    fmt::print("{} copied, {} of them data{}\n", in_mib(file_bytes_), in_mib(written_bytes_),
               options_.verify ? ", and verified" : "");
    co_return 0;
  }

  Task<> all_pieces(Pass pass, std::span<std::byte> memory) {
    next_bytes_ = done_bytes_ = 0;
    extent_ = {};
    Gate workers;
    for (uint32_t i = 0; i < kDepth; ++i) {
      workers.spawn(take_pieces(pass, memory.subspan(i * kPieceBytes, kPieceBytes)));
    }
    co_await workers.close();
    if (shown_ns_ != 0) fmt::print(stderr, "\r\033[K");
  }

  Task<> take_pieces(Pass pass, std::span<std::byte> buffer) {
    // Under --verify what a new disk should have left at zero is read as well: no holes.
    const bool holes = pass == Pass::kCopy;
    while (const std::optional<Piece> piece = next_piece(holes)) {
      if (app_.stop.is_set()) fail_with("interrupted");
      if (!failure_.empty()) co_return;
      if (pass == Pass::kVerify) {
        co_await verify(*piece, buffer);
      } else if (piece->hole) {
        if (!options_.new_disk)
          co_await submit(IoType::kWriteZeroes, piece->offset_bytes, piece->length_bytes, nullptr);
      } else {
        co_await copy_data(*piece, buffer.first(piece->length_bytes));
      }
      done_bytes_ += piece->length_bytes;
      show(pass);
    }
  }

  // The next part of the file. Data begin and end at blocks of the disk.
  std::optional<Piece> next_piece(bool holes) {
    if (next_bytes_ >= end_bytes_) return std::nullopt;
    if (next_bytes_ >= extent_.offset_bytes + extent_.length_bytes) extent_ = holes ? find_extent() : rest(false);
    // Aligned as the clusters of volumes are.
    const uint64_t limit = extent_.hole ? kMaxHoleBytes : kPieceBytes - next_bytes_ % kPieceBytes;
    const uint64_t left = extent_.offset_bytes + extent_.length_bytes - next_bytes_;
    const Piece piece{.offset_bytes = next_bytes_, .length_bytes = std::min(limit, left), .hole = extent_.hole};
    next_bytes_ += piece.length_bytes;
    return piece;
  }

  Piece rest(bool hole) const {
    return {.offset_bytes = next_bytes_, .length_bytes = end_bytes_ - next_bytes_, .hole = hole};
  }

  // The hole, or the data, that the next byte is in. A file system that knows no holes has none.
  Piece find_extent() const {
    const off_t data = ::lseek(file_, static_cast<off_t>(next_bytes_), SEEK_DATA);
    if (data < 0) return rest(errno == ENXIO);
    const uint64_t data_bytes = static_cast<uint64_t>(data) / block_bytes_ * block_bytes_;
    if (data_bytes > next_bytes_) {
      return {.offset_bytes = next_bytes_, .length_bytes = data_bytes - next_bytes_, .hole = true};
    }
    const off_t end = ::lseek(file_, data, SEEK_HOLE);
    if (end < 0) return rest(false);
    const uint64_t end_bytes = std::min(round_up(static_cast<uint64_t>(end), block_bytes_), end_bytes_);
    return {.offset_bytes = next_bytes_, .length_bytes = end_bytes - next_bytes_, .hole = false};
  }

  // Runs of units that hold something as data, the others as zeros.
  Task<> copy_data(Piece piece, std::span<std::byte> bytes) {
    if (!read_file(piece.offset_bytes, bytes)) co_return;
    for (uint64_t at = 0; at < bytes.size() && failure_.empty();) {
      const bool zero = unit_is_zero(bytes, at);
      uint64_t end = at;
      while (end < bytes.size() && unit_is_zero(bytes, end) == zero)
        end += std::min(kZeroUnitBytes, bytes.size() - end);
      const uint64_t offset_bytes = piece.offset_bytes + at;
      if (!zero) {
        co_await submit(IoType::kWrite, offset_bytes, end - at, &bytes[at]);
        written_bytes_ += end - at;
      } else if (!options_.new_disk) {
        co_await submit(IoType::kWriteZeroes, offset_bytes, end - at, nullptr);
      }
      at = end;
    }
  }

  static bool unit_is_zero(std::span<const std::byte> bytes, uint64_t at) {
    return is_zero(bytes.subspan(at, std::min(kZeroUnitBytes, bytes.size() - at)));
  }

  Task<> verify(Piece piece, std::span<std::byte> buffer) {
    const std::span<std::byte> bytes = buffer.first(piece.length_bytes);
    co_await submit(IoType::kRead, piece.offset_bytes, bytes.size(), bytes.data());
    if (!failure_.empty()) co_return;
    std::vector<std::byte> expected(bytes.size());
    if (!read_file(piece.offset_bytes, expected)) co_return;
    const auto different = std::ranges::mismatch(bytes, expected).in1;
    if (different != bytes.end()) {
      const auto index = static_cast<uint64_t>(different - bytes.begin());
      fail_with(
          fmt::format("the disk holds something else than {} at byte {}", options_.source, piece.offset_bytes + index));
    }
  }

  // Blocks this reactor, which has nothing else to do. Beyond the file's end there are zeros.
  bool read_file(uint64_t offset_bytes, std::span<std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t got = ::pread(file_, bytes.data(), bytes.size(), static_cast<off_t>(offset_bytes));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) {
        fail_with(fmt::format("cannot read {}: {}", options_.source, ::strerrordesc_np(errno)));
        return false;
      }
      if (got == 0) {
        if (offset_bytes < file_bytes_) {
          fail_with(fmt::format("{} has become shorter", options_.source));
          return false;
        }
        std::ranges::fill(bytes, std::byte{0});
        return true;
      }
      bytes = bytes.subspan(static_cast<size_t>(got));
      offset_bytes += static_cast<uint64_t>(got);
    }
    return true;
  }

  Task<> flush() { return submit(IoType::kFlush, 0, 0, nullptr); }

  Task<> submit(IoType type, uint64_t offset_bytes, uint64_t length_bytes, std::byte* bytes) {
    iovec iov{.iov_base = bytes, .iov_len = length_bytes};
    AwaitableIo io;
    io.type = type;
    io.may_unmap = true;
    io.iov = &iov;
    io.iov_count = 1;
    io.offset_bytes = offset_bytes;
    io.length_bytes = length_bytes;
    disk_->submit(io);
    co_await io.done.wait();
    if (io.status != IoStatus::kOk) {
      fail_with(fmt::format("{} of {} bytes at byte {} of the disk failed: {}", to_string(type), length_bytes,
                            offset_bytes, to_string(io.status)));
    }
  }

  // The first one counts; the others follow from it.
  void fail_with(std::string text) {
    if (failure_.empty()) failure_ = std::move(text);
  }

  void show(Pass pass) {
    const uint64_t now = LwThread::current()->now_ns();
    if (!terminal_ || now < shown_ns_ + kShowEveryNs) return;
    shown_ns_ = now;
    fmt::print(stderr, "\r{}: {:3} % of {}", pass == Pass::kCopy ? "copying" : "verifying",
               done_bytes_ * 100 / end_bytes_, in_mib(end_bytes_));
  }

  const Options& options_;
  App& app_;
  BdevManager bdevs_;
  const int file_;
  const uint64_t file_bytes_;
  const bool terminal_ = ::isatty(STDERR_FILENO) == 1;

  BdevChannel* disk_ = nullptr;
  uint64_t block_bytes_ = 0;
  uint64_t end_bytes_ = 0;  // of the file, rounded up to blocks
  uint64_t next_bytes_ = 0;
  Piece extent_{};  // what next_bytes_ is in, if it has not left it
  uint64_t done_bytes_ = 0;
  uint64_t written_bytes_ = 0;
  uint64_t shown_ns_ = 0;
  std::string failure_;
};

Task<int> run_program(const Options& options, App& app, int file, uint64_t file_bytes) {
  Program program(options, app, file, file_bytes);
  co_return co_await program.run();
}

// The last core that we may use: a daemon that was told nothing else is on the first.
CpuMask one_core() {
  const CpuMask cores = CpuMask::available();
  CpuMask last;
  for (uint32_t cpu = CpuMask::kMaxCpus; cpu-- > 0 && last.none();) {
    if (cores.test(cpu)) last.set(cpu);
  }
  return last;
}

}  // namespace

int run(const Options& options) {
  const UniqueFd file(::open(options.source.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return complain(fmt::format("cannot open {}: {}", options.source, ::strerrordesc_np(errno)));
  struct stat status{};
  if (::fstat(file.get(), &status) != 0 || (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))) {
    return complain(fmt::format("{} is neither a file nor a block device", options.source));
  }
  // A block device has its size here only.
  const off_t bytes = ::lseek(file.get(), 0, SEEK_END);
  if (bytes <= 0) return complain(fmt::format("{} is empty", options.source));
  return run_app({.cpumask = one_core()},
                 [&](App& app) { return run_program(options, app, file.get(), static_cast<uint64_t>(bytes)); });
}

}  // namespace sluice::copy
