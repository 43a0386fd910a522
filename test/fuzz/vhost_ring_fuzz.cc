// Rings in guest memory that a hostile driver writes, served by a BlkQueue on a malloc bdev.
//
// Nothing may be written but what the driver has given: bytes beside the guest's memory never change, and, as long as
// no other thread changes descriptors meanwhile, no byte that is not in the used ring or in a device-writable buffer.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "lib/base/check.h"
#include "lib/base/log.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/malloc/malloc_bdev.h"
#include "lib/vhost/blk_queue.h"
#include "test/fuzz/fuzz_bytes.h"
#include "test/fuzz/mutator.h"
#include "test/fuzz/vhost_ring_input.h"
#include "test/support/manual_host.h"

namespace sluice::vhost {
namespace {

// The guest's memory: two regions that adjoin in its addresses, and not in the file. Neither begins nor ends at a page.
constexpr uint64_t kGuest = 0x10000;
constexpr uint64_t kFirstBytes = 0x4f00;
constexpr uint64_t kSecondBytes = 0x1000;
constexpr uint64_t kMemoryBytes = kFirstBytes + kSecondBytes;
constexpr uint64_t kFirstInFile = 0x1800;
constexpr uint64_t kSecondInFile = 0x7800;
constexpr uint64_t kFileBytes = 0x9000;
constexpr uint64_t kUser = 0x7000'0000'0000;
// Within it. What the driver writes comes first.
constexpr uint64_t kDescs = 0;
constexpr uint64_t kAvail = 0x400;
constexpr uint64_t kUsed = 0x600;
constexpr uint64_t kTables = 0x900;
constexpr uint64_t kTableBytes = 0x100;
constexpr uint64_t kTableCount = 8;
constexpr uint64_t kHeaders = 0x1100;
constexpr uint64_t kReadable = 0x1200;
constexpr uint64_t kWritable = 0x2800;
constexpr uint64_t kDiskBytes = 64 << 10;
constexpr uint8_t kCanary = 0xc5;

struct IgnoreEvents : BdevEvents {
  void on_resize() override {}
  void on_remove() override {}
};

// What stays from input to input.
class World {
 public:
  World() {
    set_log_print_level(LogLevel::kError);
    fd_.reset(::memfd_create("guest", MFD_CLOEXEC));
    CHECK(::ftruncate(fd_.get(), kFileBytes) == 0);
    void* mapped = ::mmap(nullptr, kFileBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    CHECK(mapped != MAP_FAILED);
    file = static_cast<uint8_t*>(mapped);
    MemoryMap built;
    built = built.with({kGuest, kFirstBytes, kUser, kFirstInFile}, fd_, {}).value();
    built = built.with({kGuest + kFirstBytes, kSecondBytes, kUser + (1 << 20), kSecondInFile}, fd_, {}).value();
    map = std::make_shared<const MemoryMap>(std::move(built));
    bdev_ = bdevs_.add(create_malloc_bdev({.name = "disk", .num_blocks = kDiskBytes / 512}).value()).value();
    handle_ = bdevs_.open("disk", BdevAccess::kWrite, events_, "fuzz").value();
    device = std::make_unique<BlkDevice>("disk", *bdev_, BlkDevice::Options{.packed_ring = true});
    hosts.on(hosts.home(), [&] { channel = hosts.home().get_channel(*bdev_).value(); });
  }

  uint8_t* file = nullptr;
  std::shared_ptr<const MemoryMap> map;
  ManualHosts hosts{1, PollMode::kPoll};
  std::unique_ptr<BlkDevice> device;
  ChannelRef channel;
  LogLimiter log_limiter;
  Mutator mutator;

 private:
  UniqueFd fd_;
  ThreadDirectory threads_{hosts};
  BdevManager bdevs_{threads_};
  IgnoreEvents events_;
  Bdev* bdev_ = nullptr;
  std::unique_ptr<BdevHandle> handle_;
};

World& world() {
  static World* const one = new World;  // not destroyed: its threads end with the process
  return *one;
}

// One input.
class Run {
 public:
  Run(World& world, FuzzBytes& input) : world_(world), input_(input) {
    const uint8_t mode = input_.byte();
    packed_ = (mode & kModePacked) != 0;
    concurrent_ = (mode & kModeConcurrent) != 0;
    features_ = kFeatureVersion1;
    if (packed_) features_ |= kFeatureRingPacked;
    if ((mode & kModeEventIdx) != 0) features_ |= kFeatureEventIdx;
    if ((mode & kModeIndirect) != 0) features_ |= kFeatureIndirectDesc;
    size_ = static_cast<uint16_t>(1U << (input_.byte() % (kMaxLogRingSize + 1)));
    std::memset(world_.file, kCanary, kFileBytes);
    std::memset(at(0), 0, kFirstBytes);
    std::memset(world_.file + kSecondInFile, 0, kSecondBytes);
    LwThread& home = world_.hosts.home();
    world_.hosts.on(home, [&] {
      queue_ = std::make_unique<BlkQueue>(0, home, *world_.device, Coalescing{}, world_.log_limiter);
      queue_->set_size(size_);
      queue_->set_addresses({.desc = kUser + kDescs, .used = kUser + kUsed, .avail = kUser + kAvail});
    });
    start();
  }

  ~Run() {
    turn(2);
    stop_mutating();
    LwThread& home = world_.hosts.home();
    world_.hosts.await(home, queue_->end());
    check_canaries();
    world_.hosts.on(home, [&] {
      queue_->reset();
      queue_.reset();
    });
  }

  void step() {
    switch (static_cast<RingStep>(input_.byte() % kRingSteps)) {
      case RingStep::kRequest:
        return add_request();
      case RingStep::kDescriptor:
        return write_descriptor(kDescs, size_);
      case RingStep::kEntry: {
        const uint64_t table = kTables + input_.byte() % kTableCount * kTableBytes;
        return write_descriptor(table, kTableBytes / sizeof(SplitDesc));
      }
      case RingStep::kHeader: {
        const unsigned index = input_.byte() % 16U;
        const uint8_t type = input_.byte();
        return write_header(index, type, input_.byte());
      }
      case RingStep::kAvailable:
        return packed_ ? offer(input_.byte() % (2U * size_)) : push(input_.byte());
      case RingStep::kIndex:
        return poke_index();
      case RingStep::kEvent:
        return write_event(input_.take<uint32_t>());
      case RingStep::kTurn:
        return turn(1 + input_.byte() % 4);
      case RingStep::kPoke: {
        const uint16_t offset = input_.take<uint16_t>();
        const uint8_t value = input_.byte();
        if (!concurrent_) return;
        stop_mutating();
        pokes_.push_back({at(offset % kReadable), value});
        return;
      }
      case RingStep::kRestart:
        return restart();
    }
  }

 private:
  static uint64_t file_offset(uint64_t offset) {
    return offset < kFirstBytes ? kFirstInFile + offset : kSecondInFile + offset - kFirstBytes;
  }
  uint8_t* at(uint64_t offset) const { return world_.file + file_offset(offset); }
  template <typename T>
  T* as(uint64_t offset) const {
    return reinterpret_cast<T*>(at(offset));
  }

  void start() {
    LwThread& home = world_.hosts.home();
    world_.hosts.await(home, queue_->start({}));
    world_.hosts.await(home, queue_->update({.map = world_.map,
                                             .features = features_,
                                             .channel = static_cast<BdevChannel*>(world_.channel.get()),
                                             .write_through = false,
                                             .enabled_by_default = true}));
  }

  void restart() {
    const bool from_zero = (input_.byte() & 1U) != 0;
    LwThread& home = world_.hosts.home();
    world_.hosts.await(home, queue_->end());
    if (from_zero) {
      world_.hosts.on(home, [&] { queue_->set_base(packed_ ? kPackedWrapBit : 0); });
      avail_index_ = position_ = 0;
    }
    start();
  }

  // --- The driver ---

  // A guest physical address, within one of some places, or in none.
  uint64_t address(unsigned place, uint64_t into, unsigned flags) const {
    // As long as nothing is written but used rings and these, what may be written can be told from the descriptors.
    if (!concurrent_ && (flags & kDescIndirect) != 0) return kGuest + kTables + into % (kTableCount * kTableBytes);
    if (!concurrent_ && (flags & kDescWrite) != 0)
      return kGuest + kWritable + (into + place * 0x1300) % (kMemoryBytes - kWritable);
    switch (place % 8) {
      case 0:
        return kGuest + kHeaders + into / 2 % 0x100;
      case 1:
        return kGuest + kReadable + into % (kWritable - kReadable);
      case 2:
        return kGuest + kWritable + into;
      case 3:
        return kGuest + kTables + into % (kTableCount * kTableBytes);
      case 4:
        return kGuest + kFirstBytes - into % 0x200;
      case 5:
        return kGuest + kMemoryBytes - into % 0x200;
      case 6:
        return kGuest - into;
      default:
        return 0 - into;
    }
  }

  void write_descriptor(uint64_t table, size_t entries) {
    const size_t index = input_.byte() % entries;
    const unsigned place = input_.byte();
    const uint64_t into = input_.byte() * uint64_t{32};
    auto length = input_.take<uint16_t>();
    const unsigned flags = input_.byte() & 7U;
    const uint8_t next = input_.byte();
    if (!concurrent_ && (flags & kDescIndirect) != 0) length %= kTables;
    write_entry(table, index, address(place, into, flags), length, flags, next);
  }

  void write_entry(uint64_t table, size_t index, uint64_t guest_address, uint32_t length, unsigned flags,
                   uint16_t next_or_id) {
    const uint64_t offset = table + index * sizeof(SplitDesc);
    if (packed_) {
      *as<PackedDesc>(offset) = {guest_address, length, next_or_id, static_cast<uint16_t>(flags)};
    } else {
      *as<SplitDesc>(offset) = {guest_address, length, static_cast<uint16_t>(flags), next_or_id};
    }
  }

  void write_header(unsigned index, uint8_t type, uint64_t sector) {
    *as<BlkRequestHeader>(kHeaders + index * sizeof(BlkRequestHeader)) = {
        .type = type & 15U, .reserved = 0, .sector = sector > 200 ? UINT64_MAX - sector : sector};
  }

  struct Buffer {
    uint64_t guest_address;
    uint32_t length;
    bool writable;
  };

  // A request as a driver would make it, more or less; its descriptors may be those of one that is in flight.
  void add_request() {
    const uint8_t type = input_.byte() & 15U;
    const uint8_t sector = input_.byte();
    const uint32_t length = input_.byte() * 256U;
    const uint8_t layout = input_.byte();
    const unsigned slot = slot_++ % 8;
    write_header(slot, type, sector);
    const bool in = type == static_cast<uint8_t>(BlkRequestType::kIn);
    const uint64_t data = (layout & kLayoutAcrossRegions) != 0 ? kFirstBytes - 128 : in ? kWritable : kReadable;
    const uint64_t header = kGuest + kHeaders + slot * sizeof(BlkRequestHeader);
    std::vector<Buffer> buffers;
    if ((layout & kLayoutHeaderSplit) != 0) {
      buffers = {{header, 1, false}, {header + 1, 15, false}};
    } else {
      buffers = {{header, 16, false}};
    }
    const bool shared = in && (layout & kLayoutStatusWithData) != 0;
    if (length > 0 || shared) buffers.push_back({kGuest + data, length + (shared ? 1 : 0), in});
    if (!shared) buffers.push_back({kGuest + kWritable + slot, 1, true});
    const bool indirect = (layout & kLayoutIndirect) != 0;
    if (!indirect && buffers.size() > size_) return;
    if (indirect) {
      write_chain(kTables + slot * kTableBytes, 0, buffers, kTableBytes / sizeof(SplitDesc));
      buffers = {
          {kGuest + kTables + slot * kTableBytes, static_cast<uint32_t>(buffers.size() * sizeof(SplitDesc)), false}};
    }
    const uint16_t first =
        packed_ ? static_cast<uint16_t>(position_ % size_) : static_cast<uint16_t>(slot * 4U % size_);
    write_chain(kDescs, first, buffers, size_, indirect ? kDescIndirect : 0);
    if (packed_) {
      offer(static_cast<unsigned>(buffers.size()));
    } else {
      push(first);
    }
    if ((layout & kLayoutTurnAtOnce) != 0) turn(1);
  }

  void write_chain(uint64_t table, uint16_t first, const std::vector<Buffer>& buffers, size_t entries,
                   unsigned more_flags = 0) {
    for (size_t i = 0; i < buffers.size(); ++i) {
      const size_t index = (first + i) % entries;
      const bool last = i + 1 == buffers.size();
      const unsigned flags =
          more_flags | (buffers[i].writable ? kDescWrite : 0U) | (last ? 0U : static_cast<unsigned>(kDescNext));
      const auto next = static_cast<uint16_t>(packed_ ? slot_ % size_ : (index + 1) % entries);
      write_entry(table, index, buffers[i].guest_address, buffers[i].length, flags, next);
    }
  }

  void push(uint16_t head) {
    *as<uint16_t>(kAvail + sizeof(SplitAvail) + 2 * (avail_index_ % size_)) = head;
    set_avail_index(static_cast<uint16_t>(avail_index_ + 1));
  }
  void set_avail_index(uint16_t index) {
    avail_index_ = index;
    __atomic_store_n(as<uint16_t>(kAvail + 2), index, __ATOMIC_RELEASE);
  }
  // Packed: the next descriptors become available, the first one last.
  void offer(unsigned count) {
    const unsigned first = position_;
    for (unsigned i = count; i-- > 0;) {
      const unsigned position = first + i;
      uint16_t& flags = as<PackedDesc>(kDescs + position % size_ * sizeof(PackedDesc))->flags;
      const bool wrap = (position / size_) % 2 == 0;
      flags = static_cast<uint16_t>((flags & 7U) | (wrap ? kPackedDescAvail : kPackedDescUsed));
    }
    position_ = (first + count) % (2U * size_);
  }
  void poke_index() {
    const auto value = input_.take<uint16_t>();
    if (packed_) {
      as<PackedDesc>(kDescs + value % size_ * sizeof(PackedDesc))->flags = static_cast<uint16_t>(
          (value & 0x8000U) | (value >> 7 & kPackedDescAvail) | (value >> 8 & (concurrent_ ? 7U : kDescNext)));
    } else {
      // Far away it breaks the ring, which needs no luck: mostly near.
      set_avail_index((value & 0x8000U) != 0 ? value : static_cast<uint16_t>(avail_index_ + value % (size_ + 2U)));
    }
  }
  void write_event(uint32_t value) {
    *as<uint32_t>(kAvail) = packed_ ? value : (*as<uint32_t>(kAvail) & 0xffff'0000) | (value & 1U);
    if (!packed_) *as<uint16_t>(kAvail + split_used_event_offset(size_)) = static_cast<uint16_t>(value >> 16);
  }

  // --- The target's turns ---

  void turn(int count) {
    if (concurrent_) {
      if (!std::exchange(mutating_, true)) world_.mutator.begin(pokes_);
      for (int i = 0; i < count; ++i) world_.hosts.turn();
      check_canaries();
      return;
    }
    for (int i = 0; i < count; ++i) {
      note_what_may_be_written();
      const uint16_t used_before = used_index();
      world_.hosts.turn();
      check_what_was_written();
      if (!packed_) CHECK(static_cast<uint16_t>(used_index() - used_before) <= size_);
    }
  }
  void stop_mutating() {
    if (std::exchange(mutating_, false)) world_.mutator.end();
  }
  uint16_t used_index() const { return *as<uint16_t>(kUsed + 2); }

  void check_canaries() const {
    // All bytes are as the one before them.
    const auto untouched = [this](uint64_t begin, uint64_t end) {
      const uint8_t* const first = world_.file + begin;
      return *first == kCanary && std::memcmp(first, first + 1, end - begin - 1) == 0;
    };
    CHECK(untouched(0, kFirstInFile));
    CHECK(untouched(kFirstInFile + kFirstBytes, kSecondInFile));
    CHECK(untouched(kSecondInFile + kSecondBytes, kFileBytes));
  }

  void allow(uint64_t offset, uint64_t bytes) {
    if (offset >= kMemoryBytes) return;
    std::memset(allowed_.data() + offset, 1, std::min(bytes, kMemoryBytes - offset));
  }
  void note_what_may_be_written() {
    std::memcpy(before_.data(), world_.file, kFileBytes);
    allowed_.fill(0);
    if (packed_) {
      allow(kDescs, size_ * sizeof(PackedDesc));
      allow(kUsed, sizeof(PackedEvent));
    } else {
      allow(kUsed, split_used_bytes(size_));
    }
    // A table may begin at any 16 bytes of what the driver writes.
    for (uint64_t offset = 0; offset < kWritable; offset += sizeof(SplitDesc)) {
      const auto& desc = *as<SplitDesc>(offset);
      const uint16_t flags = packed_ ? as<PackedDesc>(offset)->flags : desc.flags;
      if ((flags & kDescWrite) != 0) allow(desc.addr - kGuest, desc.len);
    }
  }
  void check_what_was_written() const {
    check_canaries();
    constexpr uint64_t kPiece = 64;
    for (uint64_t i = 0; i < kMemoryBytes; i += kPiece) {
      if (std::memcmp(at(i), before_.data() + file_offset(i), kPiece) == 0) continue;
      for (uint64_t j = i; j < i + kPiece; ++j) CHECK(allowed_[j] != 0 || *at(j) == before_[file_offset(j)]);
    }
  }
  World& world_;
  FuzzBytes& input_;
  bool packed_ = false;
  bool concurrent_ = false;
  uint64_t features_ = 0;
  uint16_t size_ = 0;
  std::unique_ptr<BlkQueue> queue_;
  uint16_t avail_index_ = 0;
  unsigned position_ = 0;  // packed: in two rounds
  unsigned slot_ = 0;
  bool mutating_ = false;
  std::vector<Mutator::Poke> pokes_;
  std::array<uint8_t, kMemoryBytes> allowed_{};
  std::array<uint8_t, kFileBytes> before_{};
};

}  // namespace
}  // namespace sluice::vhost

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice;
  FuzzBytes input({data, size});
  vhost::Run run(vhost::world(), input);
  while (!input.empty()) run.step();
  return 0;
}
