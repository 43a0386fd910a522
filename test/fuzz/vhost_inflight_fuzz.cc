// Buffers for requests in flight with anything in them, as a front end may hand them to a back end, or change them
// while it uses them; back ends that are killed meanwhile.
//
// A BlkQueue, with what SET_INFLIGHT_FD makes of a description and a file. What it notes must be enough for the next
// one, which does what is unfinished, in order, each once; what others write there may make it refuse the ring, or have
// it do other requests than those unfinished, but not more of them than the ring has. Once it runs, the notes change
// nothing. Of the buffer it touches the queue's own part only: AddressSanitizer is told so.
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "app/conformance/ring_driver.h"
#include "lib/base/check.h"
#include "lib/base/log.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/vhost/blk_queue.h"
#include "test/fuzz/fuzz_bytes.h"
#include "test/fuzz/mutator.h"
#include "test/fuzz/vhost_inflight_input.h"
#include "test/support/manual_host.h"

namespace sluice::vhost {
namespace {

using test::GuestMemory;
using test::RingDriver;
using test::Segment;

constexpr uint64_t kFileBytes = 64 << 10;
constexpr uint64_t kScratchBytes = 16 << 10;  // more than rings and tables take
constexpr uint64_t kDiskBytes = uint64_t{1} << 40;

struct IgnoreEvents : BdevEvents {
  void on_resize() override {}
  void on_remove() override {}
};

// A bdev without content, which keeps its requests until they are to end.
class KeepingBdev final : public Bdev {
 public:
  class KeepingChannel final : public BdevChannel {
   public:
    explicit KeepingChannel(KeepingBdev& bdev) : BdevChannel(bdev) {}

    bool keeps_any() const { return !kept_.empty(); }
    void end(size_t which) {
      BlockIo* const io = kept_[which % kept_.size()];
      kept_.erase(kept_.begin() + static_cast<ptrdiff_t>(which % kept_.size()));
      complete(*io, IoStatus::kOk);
    }
    void end_all() {
      while (keeps_any()) end(0);
    }

    std::vector<uint64_t> sectors;  // of all requests, in their order

   private:
    void do_submit(BlockIo& io) override {
      sectors.push_back(io.offset_bytes >> kSectorShift);
      kept_.push_back(&io);
    }
    std::vector<BlockIo*> kept_;
  };

  KeepingBdev()
      : Bdev({.name = "disk",
              .uuid = {},
              .product_name = "Keeping disk",
              .size_bytes = kDiskBytes,
              .limits = {},
              .io_types = {IoType::kRead, IoType::kWrite}}) {}

 private:
  Result<std::unique_ptr<BdevChannel>> make_channel() override { return std::make_unique<KeepingChannel>(*this); }
};

// What stays from input to input.
class World {
 public:
  World() {
    set_log_print_level(LogLevel::kError);
    const UniqueFd guest_fd(::dup(guest.fd()));
    MemoryMap built;
    for (const MemoryRegion& region : guest.regions()) built = built.with(region, guest_fd, {}).value();
    map = std::make_shared<const MemoryMap>(std::move(built));
    requests = guest.allocate(test::kHigh, kInflightRequests * kRequestBytes);
    mark = guest.mark();
    scratch = guest.allocate(test::kHigh, kScratchBytes);
    fd.reset(::memfd_create("inflight", MFD_CLOEXEC));
    CHECK(::ftruncate(fd.get(), kFileBytes) == 0);
    void* mapped = ::mmap(nullptr, kFileBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    CHECK(mapped != MAP_FAILED);
    notes = static_cast<uint8_t*>(mapped);
    Bdev* const bdev = bdevs_.add(std::make_unique<KeepingBdev>()).value();
    handle_ = bdevs_.open("disk", BdevAccess::kWrite, events_, "fuzz").value();
    device = std::make_unique<BlkDevice>("disk", *bdev, BlkDevice::Options{.packed_ring = true});
    hosts.on(hosts.home(), [&] { channel_ = hosts.home().get_channel(*bdev).value(); });
  }

  KeepingBdev::KeepingChannel& disk() { return *static_cast<KeepingBdev::KeepingChannel*>(channel_.get()); }

  // Of each request: header, then data, then status.
  static constexpr uint64_t kRequestBytes = 1024;
  uint64_t header_of(unsigned place) const { return requests + place * kRequestBytes; }
  uint64_t data_of(unsigned place) const { return header_of(place) + sizeof(BlkRequestHeader); }
  uint64_t status_of(unsigned place) const { return data_of(place) + kSectorSize; }

  GuestMemory guest;
  std::shared_ptr<const MemoryMap> map;
  uint64_t requests = 0;
  uint64_t scratch = 0;  // where each input allocates from, and `mark` goes back to
  GuestMemory::Mark mark;
  UniqueFd fd;
  uint8_t* notes = nullptr;  // the file, as the front end maps it
  ManualHosts hosts{1, PollMode::kPoll};
  std::unique_ptr<BlkDevice> device;
  LogLimiter log_limiter;
  Mutator mutator;

 private:
  ThreadDirectory threads_{hosts};
  BdevManager bdevs_{threads_};
  IgnoreEvents events_;
  std::unique_ptr<BdevHandle> handle_;
  ChannelRef channel_;
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
    packed_ = (mode & kInflightPacked) != 0;
    index_ = (mode & kInflightSecondQueue) != 0 ? 1 : 0;
    size_ = static_cast<uint16_t>(1U << (input_.byte() % (kMaxLogInflightRing + 1)));
    if ((mode & kInflightRawDescription) != 0) {
      description_ = input_.take<InflightDescription>();
    } else {
      description_.num_queues = static_cast<uint16_t>(1 + input_.byte() % 4);
      description_.queue_size = static_cast<uint16_t>(size_ + input_.byte() % 33);
      description_.mmap_offset = input_.byte() * kInflightAlignment;
      description_.mmap_size = description_.num_queues * InflightRegion::queue_bytes(packed_, description_.queue_size);
    }
    std::memset(world_.notes, 0, kFileBytes);
    std::memset(world_.guest.at(world_.requests), 0, kInflightRequests * World::kRequestBytes);
    std::memset(world_.guest.at(world_.scratch), 0, kScratchBytes);
    world_.guest.release(world_.mark);
    start_index_ = (mode & kInflightOldRing) != 0 ? 65533 : 0;
    driver_ = std::make_unique<RingDriver>(
        world_.guest, RingDriver::Options{.size = size_, .packed = packed_, .start_index = start_index_});
    no_tables_ = world_.guest.mark();
    rings_ = {world_.guest.at(driver_->desc_gpa()),
              driver_->used_gpa() - driver_->desc_gpa() + split_used_bytes(size_)};
    set_region();
  }

  // False if the description is refused.
  bool has_region() const { return region_ != nullptr; }

  // Whatever has happened, a front end that begins anew is served.
  void end() {
    settle();
    fresh();
    offer(0);
    settle();
    CHECK(expected_.size() == 1 && world_.disk().sectors == expected_);
    collect();
    CHECK(offered_.empty());
    end_queue();
    drop_region();
  }

  void step() {
    switch (static_cast<InflightStep>(input_.byte() % kInflightSteps)) {
      case InflightStep::kOffer:
        return offer(input_.byte());
      case InflightStep::kTurn:
        return turn(1 + input_.byte() % 4);
      case InflightStep::kComplete: {
        const uint8_t which = input_.byte();
        if (world_.disk().keeps_any()) on_home([&] { world_.disk().end(which); });
        return;
      }
      case InflightStep::kStart:
        return start_back_end();
      case InflightStep::kRestart:
        return restart((input_.byte() & 1U) != 0);
      case InflightStep::kFresh:
        return fresh();
      case InflightStep::kHeader: {
        const uint8_t word = input_.byte();
        return write_word(word * 2U % header_bytes(), input_.take<uint16_t>());
      }
      case InflightStep::kEntry: {
        const uint8_t entry = input_.byte();
        const uint8_t word = input_.byte();
        return write_word(entry_at(entry) + word * 2U % entry_bytes(), input_.take<uint16_t>());
      }
      case InflightStep::kForge: {
        const uint8_t entry = input_.byte();
        const uint8_t request = input_.byte();
        return forge(entry, request, input_.byte() % 3);
      }
      case InflightStep::kBytes: {
        const auto offset = input_.take<uint16_t>();
        const std::span<const uint8_t> bytes = input_.take_bytes(input_.byte());
        return write_notes(offset % part_.size(), bytes);
      }
      case InflightStep::kPoke: {
        const auto offset = input_.take<uint16_t>();
        const uint8_t value = input_.byte();
        if (cut_) return;
        stop_mutating();
        pokes_.push_back({part_.data() + offset % part_.size(), value});
        tampered_ = true;
        return;
      }
      case InflightStep::kRings: {
        const auto offset = input_.take<uint16_t>();
        const auto value = input_.take<uint16_t>();
        std::memcpy(rings_.data() + offset % rings_.size() / 2 * 2, &value, sizeof(value));
        wild_ = true;
        return;
      }
      case InflightStep::kCut:
        stop_mutating();
        pokes_.clear();
        cut_ = tampered_ = true;
        CHECK(::ftruncate(world_.fd.get(), 0) == 0);
        return;
    }
  }

 private:
  template <typename Fn>
  void on_home(Fn fn) {
    world_.hosts.on(world_.hosts.home(), std::move(fn));
  }
  template <typename T>
  T await(Task<T> task) {
    return world_.hosts.await(world_.hosts.home(), std::move(task));
  }

  // --- The buffer ---

  // As SET_INFLIGHT_FD does it. What is of other queues must not be looked at.
  void set_region() {
    auto mapped = InflightRegion::map(description_, packed_, world_.fd);
    if (!mapped) {
      CHECK(mapped.error().code != 0 && *mapped.error().what != '\0');
      return;
    }
    region_ = std::move(*mapped);
    const uint64_t each = InflightRegion::queue_bytes(packed_, description_.queue_size);
    part_ = {world_.notes + description_.mmap_offset + index_ * each, each};
    whole_ = {region_->queue_area(0, packed_), description_.num_queues * each};
    std::byte* const own = region_->queue_area(index_, packed_);
    CHECK((own != nullptr) == (index_ < description_.num_queues));
    roomy_ = own != nullptr && size_ <= description_.queue_size;
    if (own == nullptr) part_ = {world_.notes, each};
    ASAN_POISON_MEMORY_REGION(whole_.data(), whole_.size());
    if (own != nullptr) ASAN_UNPOISON_MEMORY_REGION(own, entry_at(description_.queue_size));
  }
  void drop_region() {
    stop_mutating();
    pokes_.clear();
    ASAN_UNPOISON_MEMORY_REGION(whole_.data(), whole_.size());
    region_.reset();
    if (!std::exchange(cut_, false)) return;
    CHECK(::ftruncate(world_.fd.get(), kFileBytes) == 0);
  }

  size_t header_bytes() const { return packed_ ? sizeof(PackedInflightHeader) : sizeof(SplitInflightHeader); }
  size_t entry_bytes() const { return packed_ ? sizeof(PackedInflightEntry) : sizeof(SplitInflightEntry); }
  size_t entry_at(size_t i) const { return header_bytes() + i * entry_bytes(); }

  void write_notes(size_t offset, std::span<const uint8_t> bytes) {
    if (cut_ || offset >= part_.size()) return;
    std::memcpy(part_.data() + offset, bytes.data(), std::min(bytes.size(), part_.size() - offset));
    tampered_ = true;
  }
  template <typename T>
  void write_as(size_t offset, const T& value) {
    write_notes(offset, {reinterpret_cast<const uint8_t*>(&value), sizeof(value)});
  }
  void write_word(size_t offset, uint16_t value) { write_as(offset, value); }

  void forge(uint8_t entry, unsigned request, unsigned which) {
    const unsigned place = request % kInflightRequests;
    const std::vector<Segment> segments = segments_of(place, 0);
    const Segment& segment = segments[which];
    const size_t at = entry_at(entry % std::max<size_t>(description_.queue_size, 1));
    write_as(at + offsetof(PackedInflightEntry, addr), segment.gpa);
    write_as(at + offsetof(PackedInflightEntry, len), segment.len);
    const auto flags = static_cast<uint16_t>((segment.writable ? kDescWrite : 0) | (which < 2 ? kDescNext : 0));
    write_as(at + offsetof(PackedInflightEntry, flags), flags);
    write_as(at + offsetof(PackedInflightEntry, id), static_cast<uint16_t>(request % size_));
  }

  // --- The driver ---

  std::vector<Segment> segments_of(unsigned place, unsigned layout) const {
    const Segment header{.gpa = world_.header_of(place), .len = sizeof(BlkRequestHeader)};
    if ((layout & kInflightShort) != 0)
      return {header, {.gpa = world_.data_of(place), .len = kSectorSize + 1, .writable = true}};
    return {header,
            {.gpa = world_.data_of(place), .len = kSectorSize, .writable = true},
            {.gpa = world_.status_of(place), .len = 1, .writable = true}};
  }

  // A read of a sector that no other one reads.
  void offer(unsigned layout) {
    collect();
    unsigned place = 0;
    while (std::ranges::find(offered_, place, &Offered::place) != offered_.end()) ++place;
    const std::vector<Segment> segments = segments_of(place, layout);
    const bool indirect = (layout & kInflightIndirect) != 0 || segments.size() > size_;
    const size_t descriptors = indirect ? 1 : segments.size();
    // Tables are not freed before the input's end.
    const bool room = tables_ * 64 < kScratchBytes / 2;
    if (place >= kInflightRequests || driver_->free_descriptors() < descriptors || (indirect && !room)) return;
    *world_.guest.as<BlkRequestHeader>(world_.header_of(place)) = {
        .type = static_cast<uint32_t>(BlkRequestType::kIn), .reserved = 0, .sector = next_sector_};
    if (indirect) ++tables_;
    const uint16_t id = indirect ? driver_->add_indirect(segments) : driver_->add_chain(segments);
    offered_.push_back({.id = id, .place = place, .sector = next_sector_});
    expected_.push_back(next_sector_++);
    allowed_ += packed_ && believed_ ? descriptors : 1;
    driver_->publish();
  }

  // Takes what it has been shown. It does not lose its way, but for notes that were forged.
  void collect() {
    for (uint16_t i = 0; i < size_; ++i) {
      const auto used = driver_->poll_used();
      if (!used) break;
      const size_t erased = std::erase_if(offered_, [&used](const Offered& one) { return one.id == used->id; });
      CHECK(misled() || erased == 1);
    }
    CHECK(misled() || driver_->violation().empty());
  }

  // Whether what the target does need not make sense to the driver.
  bool misled() const { return believed_ || wild_; }

  // --- Back ends ---

  void start_back_end() {
    if (queue_ != nullptr) kill();
    collect();
    make_queue();
    counted_ = true;
    believed_ |= tampered_;
    run_ring();
  }

  void make_queue() {
    on_home([&] {
      queue_ =
          std::make_unique<BlkQueue>(index_, world_.hosts.home(), *world_.device, Coalescing{}, world_.log_limiter);
      queue_->set_size(size_);
      queue_->set_addresses(driver_->vring_addr(index_));
    });
    set_base(packed_ ? driver_->used_position().encoded() * 0x10001U : driver_->used_idx());
  }
  void set_base(uint32_t base) {
    on_home([&] { queue_->set_base(base); });
  }

  // The ring starts. What it is to do from now on, if nobody has meddled with it, and how much it may do otherwise.
  void run_ring() {
    expected_.clear();
    for (const Offered& one : offered_) expected_.push_back(one.sector);
    world_.disk().sectors.clear();
    allowed_ = expected_.size();
    if (misled()) allowed_ = packed_ ? size_ : static_cast<uint16_t>(driver_->avail_idx() - driver_->used_idx());
    taken_before_ = queue_->stats().requests;
    const size_t noted = noted_in_flight();
    const bool stable = pokes_.empty() && !cut_;
    mutate();
    await(queue_->start({}));
    await(queue_->update({.map = world_.map,
                          .inflight = region_,
                          .features = kFeatureVersion1 | kFeatureIndirectDesc | (packed_ ? kFeatureRingPacked : 0),
                          .channel = &world_.disk(),
                          .enabled_by_default = true}));
    CHECK(queue_->running() || queue_->fault() != RingFault::kNone);
    CHECK(!stable || taken() <= noted);
    check();
  }
  size_t noted_in_flight() const {
    if (cut_) return 0;
    size_t count = 0;
    for (size_t at = header_bytes(); at + entry_bytes() <= part_.size(); at += entry_bytes())
      count += part_[at] == 1 ? 1U : 0U;
    return count;
  }

  // Memory becomes again what it is now, as if the back end had come to its end here.
  void kill() {
    stop_mutating();
    const std::vector<uint8_t> rings(rings_.begin(), rings_.end());
    std::vector<uint8_t> notes;
    if (!cut_) notes.assign(part_.begin(), part_.end());
    end_queue();
    std::ranges::copy(rings, rings_.begin());
    std::ranges::copy(notes, part_.begin());
  }
  void end_queue() {
    if (queue_ == nullptr) return;
    stop_queue();
    on_home([&] {
      queue_->reset();
      queue_.reset();
    });
  }
  uint32_t stop_queue() {
    std::optional<uint32_t> base;
    on_home([&] { start(queue_->end(), [&base](uint32_t value) { base = value; }); });
    for (unsigned turns = 0; !base; ++turns) {
      CHECK(turns < most_turns());
      on_home([&] { world_.disk().end_all(); });
      world_.hosts.turn();
    }
    // Both positions are in the ring.
    if (packed_) CHECK((*base & 0x7fffU) < size_ && (*base >> 16 & 0x7fffU) < size_);
    return *base;
  }

  void restart(bool with_base) {
    if (queue_ == nullptr) return;
    // One that broke has taken a request that it does not give back, or has yet to read the notes.
    if (queue_->fault() != RingFault::kNone) {
      counted_ = false;
      believed_ |= tampered_;
    }
    const uint32_t base = stop_queue();
    collect();
    if (with_base) set_base(base);
    run_ring();
  }

  void fresh() {
    if (queue_ != nullptr) stop_queue();
    drop_region();
    std::memset(world_.notes, 0, kFileBytes);
    description_ = {.num_queues = 2, .queue_size = size_};
    description_.mmap_size = 2 * InflightRegion::queue_bytes(packed_, size_);
    set_region();
    CHECK(region_ != nullptr && roomy_);
    world_.guest.release(no_tables_);
    tables_ = 0;
    driver_->reset(start_index_);
    offered_.clear();
    tampered_ = believed_ = wild_ = false;
    counted_ = true;
    if (queue_ == nullptr) make_queue();
    set_base(driver_->base());
    run_ring();
  }

  // --- The target's turns ---

  void mutate() {
    if (!pokes_.empty() && !std::exchange(mutating_, true)) world_.mutator.begin(pokes_);
  }
  void stop_mutating() {
    if (std::exchange(mutating_, false)) world_.mutator.end();
  }

  void turn(int count) {
    mutate();
    for (int i = 0; i < count; ++i) world_.hosts.turn();
    if (queue_ == nullptr) return;
    check();
    collect();
  }

  // All that there is to do is done, within so many turns.
  void settle() {
    if (queue_ == nullptr) return;
    mutate();
    for (unsigned turns = 0, vain = 0; vain < 3; ++turns) {
      CHECK(turns < most_turns());
      const uint64_t before = taken();
      const bool kept = world_.disk().keeps_any();
      on_home([&] { world_.disk().end_all(); });
      world_.hosts.turn();
      vain = kept || taken() != before ? 0 : vain + 1;
    }
    check();
    CHECK(queue_->in_flight() == 0);
    if (queue_->fault() != RingFault::kNone || !counted_ || wild_) return;
    if (!packed_ || !believed_) CHECK(taken() == allowed_);
  }
  unsigned most_turns() const { return 4U * size_ + 64; }
  uint64_t taken() const { return queue_->stats().requests - taken_before_; }

  void check() {
    CHECK(queue_->in_flight() <= size_);
    CHECK(*to_string(queue_->fault()) != '\0');
    if (counted_ && !wild_) CHECK(taken() <= allowed_);
    if (misled() || !counted_) return;
    const std::vector<uint64_t>& done = world_.disk().sectors;
    CHECK(done.size() <= expected_.size() && std::equal(done.begin(), done.end(), expected_.begin()));
    if (!cut_) CHECK(queue_->fault() == (roomy_ ? RingFault::kNone : RingFault::kInflightSize));
  }

  struct Offered {
    uint16_t id = 0;
    unsigned place = 0;
    uint64_t sector = 0;
  };

  World& world_;
  FuzzBytes& input_;
  bool packed_ = false;
  uint32_t index_ = 0;
  uint16_t size_ = 0;
  uint16_t start_index_ = 0;
  InflightDescription description_;
  std::shared_ptr<const InflightRegion> region_;
  std::span<std::byte> whole_;  // all queues' parts, as the target has them mapped
  std::span<uint8_t> part_;     // the queue's, as the front end has it mapped
  bool roomy_ = false;          // there is one, and it is large enough

  std::unique_ptr<RingDriver> driver_;
  std::span<uint8_t> rings_;
  GuestMemory::Mark no_tables_;
  unsigned tables_ = 0;
  std::vector<Offered> offered_;  // and not shown, in their order
  uint64_t next_sector_ = 1;

  std::unique_ptr<BlkQueue> queue_;
  std::vector<uint64_t> expected_;  // sectors, since the ring was started
  uint64_t allowed_ = 0;            // requests since then
  uint64_t taken_before_ = 0;
  bool counted_ = false;   // these two say something
  bool tampered_ = false;  // somebody else has written to the notes,
  bool believed_ = false;  // and then the ring was started with them
  bool wild_ = false;      // the rings are no driver's any more
  bool cut_ = false;
  bool mutating_ = false;
  std::vector<Mutator::Poke> pokes_;
};

}  // namespace
}  // namespace sluice::vhost

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice;
  FuzzBytes input({data, size});
  vhost::Run run(vhost::world(), input);
  if (!run.has_region()) return 0;
  while (!input.empty()) run.step();
  run.end();
  return 0;
}
