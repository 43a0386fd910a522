// vhost_inflight_seeds DIRECTORY: writes there what vhost_inflight_fuzz begins with: back ends that are killed with
// requests in flight, and front ends that meddle with their notes, of each kind.
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <string>
#include <vector>

#include "lib/vhost/inflight_region.h"
#include "lib/virtio/wire.h"
#include "test/fuzz/vhost_inflight_input.h"

namespace sluice::vhost {
namespace {

constexpr uint8_t kLogSize = 4;

class Input {
 public:
  explicit Input(unsigned mode, unsigned log_size = kLogSize, unsigned more_entries = 0)
      : packed_((mode & kInflightPacked) != 0) {
    for (const unsigned byte : {mode, log_size, 1U, more_entries, 0U}) bytes_.push_back(static_cast<uint8_t>(byte));
  }

  Input(unsigned mode, const InflightDescription& description)
      : packed_((mode & kInflightPacked) != 0), bytes_{static_cast<uint8_t>(mode | kInflightRawDescription), kLogSize} {
    const auto* const bytes = reinterpret_cast<const uint8_t*>(&description);
    bytes_.insert(bytes_.end(), bytes, bytes + sizeof(description));
  }

  Input& add(InflightStep step, std::initializer_list<unsigned> arguments = {}) {
    bytes_.push_back(static_cast<uint8_t>(step));
    for (const unsigned argument : arguments) bytes_.push_back(static_cast<uint8_t>(argument));
    return *this;
  }
  Input& header(size_t offset, unsigned value) {
    return add(InflightStep::kHeader, {static_cast<unsigned>(offset / 2), value & 255U, value >> 8});
  }
  Input& entry(unsigned index, size_t offset, unsigned value) {
    return add(InflightStep::kEntry, {index, static_cast<unsigned>(offset / 2), value & 255U, value >> 8});
  }
  // Some requests; of those that the block device has, it ends some.
  Input& work(unsigned requests) {
    for (unsigned i = 0; i < requests; ++i) add(InflightStep::kOffer, {i});
    add(InflightStep::kTurn, {0});
    for (unsigned i = 0; i < requests / 2; ++i) add(InflightStep::kComplete, {i * 5});
    return add(InflightStep::kTurn, {1});
  }

  // A chain that nobody has taken, of which the notes say that it is in flight.
  Input& invent(unsigned at) {
    if (!packed_) {
      return entry(at, offsetof(SplitInflightEntry, inflight), 1).entry(at, offsetof(SplitInflightEntry, counter), 9);
    }
    for (unsigned i = 0; i < 3; ++i) {
      add(InflightStep::kForge, {at + i, 7, i});
      entry(at + i, offsetof(PackedInflightEntry, next), at + i + 1);
    }
    return entry(at, offsetof(PackedInflightEntry, inflight), 1)
        .entry(at, offsetof(PackedInflightEntry, num), 3)
        .entry(at, offsetof(PackedInflightEntry, last), at + 2)
        .entry(at, offsetof(PackedInflightEntry, counter), 9);
  }

  void write(const std::string& path) const {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes_.data()), static_cast<std::streamsize>(bytes_.size()));
  }

 private:
  bool packed_;
  std::vector<uint8_t> bytes_;
};

// Nobody has been here before, but for the front end: a chain of three entries is in flight, the others are free.
void write_forged(const std::string& path, unsigned mode, unsigned log_size, unsigned more_entries) {
  const unsigned entries = (1U << log_size) + more_entries;
  Input input(mode, log_size, more_entries);
  input.header(offsetof(SplitInflightHeader, version), kInflightVersion)
      .header(offsetof(SplitInflightHeader, desc_num), entries);
  if ((mode & kInflightPacked) != 0) {
    input.header(offsetof(PackedInflightHeader, free_head), 3).header(offsetof(PackedInflightHeader, old_free_head), 3);
    input.header(offsetof(PackedInflightHeader, places) + offsetof(PackedInflightPlaces, used_wrap_counter), 0x101);
    for (unsigned i = 3; i < entries; ++i) input.entry(i, offsetof(PackedInflightEntry, next), i + 1);
  }
  input.work(2).invent(0).add(InflightStep::kStart).work(3).work(3).add(InflightStep::kStart).write(path);
}

void write_all(const std::string& prefix, unsigned mode) {
  const bool packed = (mode & kInflightPacked) != 0;
  constexpr auto kStart = InflightStep::kStart;
  Input(mode).work(4).add(kStart).work(4).add(kStart).work(3).add(kStart).write(prefix + "killed");
  Input(mode)
      .add(kStart)
      .work(4)
      .add(InflightStep::kRestart, {0})
      .work(4)
      .add(InflightStep::kRestart, {1})
      .work(4)
      .add(InflightStep::kFresh)
      .work(4)
      .add(kStart)
      .write(prefix + "restarted");
  Input(mode)
      .add(kStart)
      .work(5)
      .add(InflightStep::kCut)
      .work(2)
      .add(kStart)
      .add(InflightStep::kFresh)
      .work(2)
      .write(prefix + "cut");
  Input changed(mode);
  changed.add(kStart).work(4);
  for (const unsigned offset : {8U, 12U, 14U, 16U, 20U, 32U, 34U, 40U, 64U, 66U, 68U, 70U, 80U})
    changed.add(InflightStep::kPoke, {offset, 0, 1});
  changed.work(3).work(3).add(kStart).work(2).write(prefix + "changing");

  write_forged(prefix + "forged", mode, kLogSize, 0);
  write_forged(prefix + "forged_short_ring", mode, 0, 15);

  // All but the last two are refused.
  const InflightDescription descriptions[] = {
      {.mmap_size = 4096, .num_queues = 0, .queue_size = 16},
      {.mmap_size = 4096, .num_queues = 65, .queue_size = 16},
      {.mmap_size = 4096, .num_queues = 2, .queue_size = 0},
      {.mmap_size = 4096, .num_queues = 2, .queue_size = 1025},
      {.mmap_size = 512, .num_queues = 2, .queue_size = 16},
      {.mmap_size = 4096, .mmap_offset = 32, .num_queues = 2, .queue_size = 16},
      {.mmap_size = 4096, .mmap_offset = 1 << 20, .num_queues = 2, .queue_size = 16},
      {.mmap_size = UINT64_MAX, .mmap_offset = 64, .num_queues = 2, .queue_size = 16},
      {.mmap_size = 60 << 10, .mmap_offset = 64, .num_queues = 2, .queue_size = 16},
      {.mmap_size = 4096, .num_queues = 1, .queue_size = 8},
  };
  for (size_t i = 0; i < std::size(descriptions); ++i) {
    Input(mode, descriptions[i])
        .add(kStart)
        .work(3)
        .add(kStart)
        .work(1)
        .write(prefix + "described" + std::to_string(i));
  }
  for (const unsigned value : {0U, 1U, 15U, 16U, 17U, 0xffffU}) {
    const std::string name = std::to_string(value);
    for (unsigned word = 4; word < (packed ? 11 : 8); ++word) {
      Input(mode)
          .add(kStart)
          .work(4)
          .header(2 * size_t{word}, value)
          .add(kStart)
          .work(2)
          .write(prefix + "header" + std::to_string(word) + "_" + name);
    }
    for (const unsigned word : packed ? std::initializer_list<unsigned>{0, 1, 2, 3, 4, 8, 9, 10, 12}
                                      : std::initializer_list<unsigned>{0, 3, 4}) {
      Input(mode)
          .add(kStart)
          .work(4)
          .entry(1, 2 * size_t{word}, value)
          .add(kStart)
          .work(2)
          .write(prefix + "entry" + std::to_string(word) + "_" + name);
    }
  }
}

}  // namespace
}  // namespace sluice::vhost

int main(int argc, char** argv) {
  using namespace sluice::vhost;
  if (argc != 2) return 2;
  for (const unsigned mode : {0U, 1U, 8U, 9U, 4U, 5U}) {
    write_all(std::string(argv[1]) + "/" + std::to_string(mode) + "_", mode);
  }
  return 0;
}
