#include "test/bdev/virtio_load.h"

#include <cstring>
#include <random>

#include "test/support/disk_user.h"

namespace sluice::test {
namespace {

// Memory of a task: some of it shared with the back end, some not.
struct Scratch {
  explicit Scratch(Bdev& bdev, size_t bytes) : shared(bdev.allocate_buffer(bytes).value()), plain(bytes) {}
  std::byte* place(bool from_shared, size_t offset) {
    return (from_shared ? shared.bytes() : plain.bytes()).data() + offset;
  }
  IoBuffer shared;
  PageBuffer plain;
};

// `length` bytes from `offset` of the scratch memory, in up to `max_pieces` pieces.
std::vector<iovec> cut(std::mt19937& random, Scratch& scratch, int where, size_t length, size_t max_pieces) {
  std::vector<iovec> pieces;
  for (size_t done = 0; done < length;) {
    const bool last = pieces.size() + 1 == max_pieces;
    const size_t size = last ? length - done : std::min<size_t>(length - done, 1 + random() % 3000);
    const bool shared = where == 2 ? random() % 2 == 0 : where == 1;
    pieces.push_back({.iov_base = scratch.place(shared, done), .iov_len = size});
    done += size;
  }
  return pieces;
}

void fill(const std::vector<iovec>& pieces, std::mt19937& random) {
  for (const iovec& piece : pieces) {
    auto* bytes = static_cast<uint8_t*>(piece.iov_base);
    for (size_t i = 0; i < piece.iov_len; ++i) bytes[i] = static_cast<uint8_t>(random());
  }
}

std::vector<std::byte> gather(const std::vector<iovec>& pieces) {
  std::vector<std::byte> all;
  for (const iovec& piece : pieces) {
    const auto* bytes = static_cast<const std::byte*>(piece.iov_base);
    all.insert(all.end(), bytes, bytes + piece.iov_len);
  }
  return all;
}

Task<IoStatus> transfer(BdevChannel& channel, IoType type, uint64_t offset, const std::vector<iovec>& pieces) {
  AwaitedIo io;
  io.type = type;
  io.iov = pieces.data();
  io.iov_count = static_cast<uint32_t>(pieces.size());
  io.offset_bytes = offset;
  for (const iovec& piece : pieces) io.length_bytes += piece.iov_len;
  co_return co_await io.on(channel);
}

// Rounds on the device's bytes from `begin`, which are this task's alone. The number of the first wrong round; -1:
// none.
Task<int> exercise(BdevChannel& channel, uint64_t begin, uint64_t bytes, uint32_t seed, int rounds) {
  std::mt19937 random(seed);
  Scratch scratch(channel.bdev(), bytes);
  for (int round = 0; round < rounds; ++round) {
    const uint64_t length = round % 8 == 0 ? bytes : (1 + random() % (bytes / 512)) * 512;
    const uint64_t offset = begin + random() % ((bytes - length) / 512 + 1) * 512;
    const auto out = cut(random, scratch, static_cast<int>(random() % 3), length, 1 + random() % 40);
    fill(out, random);
    const std::vector<std::byte> written = gather(out);
    if (co_await transfer(channel, IoType::kWrite, offset, out) != IoStatus::kOk) co_return round;
    for (const iovec& piece : out) std::memset(piece.iov_base, 0xee, piece.iov_len);
    const auto in = cut(random, scratch, static_cast<int>(random() % 3), length, 1 + random() % 40);
    if (co_await transfer(channel, IoType::kRead, offset, in) != IoStatus::kOk) co_return round;
    if (gather(in) != written) co_return round;
    if (round % 5 == 0) {
      AwaitedIo zero;
      zero.type = round % 2 == 0 ? IoType::kWriteZeroes : IoType::kDiscard;
      zero.offset_bytes = offset;
      zero.length_bytes = length;
      if (co_await zero.on(channel) != IoStatus::kOk) co_return round;
      if (co_await transfer(channel, IoType::kRead, offset, in) != IoStatus::kOk) co_return round;
      if (zero.type == IoType::kWriteZeroes && !all_zero(gather(in))) co_return round;
    }
    if (round % 7 == 0) {
      AwaitedIo flush;
      flush.type = IoType::kFlush;
      if (co_await flush.on(channel) != IoStatus::kOk) co_return round;
    }
  }
  co_return -1;
}

}  // namespace

std::vector<int> exercise_all(VirtioUser& user, size_t tasks, uint64_t bytes_each, int rounds, uint32_t seed,
                              uint64_t begin) {
  std::vector<std::promise<int>> done(tasks);
  post_to(user.thread(), [&] {
    for (size_t i = 0; i < tasks; ++i) {
      start(exercise(user.channel(), begin + i * bytes_each, bytes_each, seed + static_cast<uint32_t>(i), rounds),
            [&done, i](int result) { done[i].set_value(result); });
    }
  });
  std::vector<int> results;
  for (auto& result : done) results.push_back(result.get_future().get());
  return results;
}

TestDirectory::TestDirectory() {
  std::string name = (std::filesystem::temp_directory_path() / "sluice-virtio-XXXXXX").string();
  CHECK(::mkdtemp(name.data()) != nullptr);
  path = name;
}

}  // namespace sluice::test
