// What the target's side of a virtqueue costs per request. `serve` is on one core and without a front end: available
// chains are made beforehand, and one index update hands over a batch of them; in a packed ring the driver has to write
// them anew, which is included. `two_cores` has a driver on core 1 that
// polls and writes each request anew, so it also shows what moving cache lines between the cores costs; the target runs
// on core 0, and the argument is how many requests the driver keeps in flight.
#include <benchmark/benchmark.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/malloc/malloc_bdev.h"
#include "lib/bdev/null/null_bdev.h"
#include "lib/vhost/blk_queue.h"
#include "test/support/manual_host.h"

namespace sluice::vhost {
namespace {

constexpr uint16_t kRing = 512;
constexpr uint64_t kChains = kRing / 4;  // of 3 descriptors each, in steps of 4
constexpr uint64_t kUser = 0x7000'0000'0000;
constexpr uint64_t kAvail = 0x4000;
constexpr uint64_t kUsed = 0x8000;
constexpr uint64_t kHeaders = 0x10000;
constexpr uint64_t kData = 0x100000;
constexpr uint64_t kMemoryBytes = 16 << 20;
constexpr uint64_t kDiskBytes = 512 << 20;

struct IgnoreEvents : BdevEvents {
  void on_resize() override {}
  void on_remove() override {}
};

// A ring of 4 KiB reads in guest memory, and the queue that serves it.
class Ring {
 public:
  Ring(bool null_bdev, bool packed, bool tracked = false)
      : packed_(packed), hosts_(1, PollMode::kPoll), threads_(hosts_), bdevs_(threads_) {
    memory_fd_.reset(::memfd_create("guest", MFD_CLOEXEC));
    CHECK(::ftruncate(memory_fd_.get(), kMemoryBytes) == 0);
    auto map = MemoryMap().with({.guest_address = 0, .size = kMemoryBytes, .user_address = kUser, .mmap_offset = 0},
                                memory_fd_, {});
    map_ = std::make_shared<const MemoryMap>(std::move(map.value()));
    guest_ = map_->translate_user(kUser, kMemoryBytes);
    build_chains();

    auto bdev = null_bdev
                    ? create_null_bdev({.name = "disk", .num_blocks = kDiskBytes / 512, .block_size_bytes = 512})
                    : create_malloc_bdev({.name = "disk", .num_blocks = kDiskBytes / 512, .block_size_bytes = 512});
    Bdev& added = *bdevs_.add(std::move(bdev.value())).value();
    handle_ = bdevs_.open("disk", BdevAccess::kWrite, events_, "benchmark").value();
    device_ = std::make_unique<BlkDevice>("disk", added, BlkDevice::Options{.packed_ring = packed_});
    LwThread& thread = hosts_.home();
    hosts_.on(thread, [&] {
      channel_ = thread.get_channel(added).value();
      queue_ = std::make_unique<BlkQueue>(0, thread, *device_, Coalescing{}, log_limiter_);
      queue_->set_size(kRing);
      queue_->set_addresses({.index = 0, .desc = kUser, .used = kUser + kUsed, .avail = kUser + kAvail});
    });
    hosts_.await(thread, queue_->start({}));
    std::shared_ptr<const InflightRegion> inflight;
    if (tracked) {
      auto file = InflightRegion::make_file({.num_queues = 1, .queue_size = kRing}, packed).value();
      inflight = InflightRegion::map(file.description, packed, file.fd).value();
    }
    hosts_.await(thread, queue_->update({.map = map_,
                                         .inflight = inflight,
                                         .features = device_->features(),
                                         .channel = static_cast<BdevChannel*>(channel_.get()),
                                         .write_through = false,
                                         .enabled_by_default = true}));
    CHECK(queue_->running());
  }

  ~Ring() {
    hosts_.await(hosts_.home(), queue_->stop());
    hosts_.on(hosts_.home(), [&] {
      queue_.reset();
      channel_.reset();
    });
    handle_.reset();
    hosts_.await(hosts_.home(), bdevs_.remove_all());
  }

  // The driver: `requests` reads of random places, `depth` of them in flight. On its own OS thread.
  void drive(uint64_t requests, uint64_t depth) {
    if (packed_) {
      drive_packed(requests, depth);
      return;
    }
    const auto* used_ring = reinterpret_cast<const SplitUsedElem*>(guest_ + kUsed + 4);
    auto* avail_ring = reinterpret_cast<uint16_t*>(guest_ + kAvail + 4);
    auto* avail_index = reinterpret_cast<uint16_t*>(guest_ + kAvail + 2);
    const auto* used_index = reinterpret_cast<const uint16_t*>(guest_ + kUsed + 2);
    uint64_t submitted = 0;
    uint16_t avail = avail_index_;
    uint16_t seen = avail;
    const auto submit = [&](uint64_t chain) {
      write_random_header(chain);
      write_descriptors(chain);
      avail_ring[avail++ % kRing] = static_cast<uint16_t>(4 * chain);
      ++submitted;
    };
    while (submitted < depth) submit(submitted);
    __atomic_store_n(avail_index, avail, __ATOMIC_RELEASE);
    for (uint64_t done = 0; done < requests;) {
      const uint16_t now = __atomic_load_n(used_index, __ATOMIC_ACQUIRE);
      if (now == seen) continue;
      for (; seen != now; ++seen, ++done) {
        const uint64_t chain = used_ring[seen % kRing].id / 4;
        if (submitted < requests) submit(chain);
      }
      __atomic_store_n(avail_index, avail, __ATOMIC_RELEASE);
    }
    avail_index_ = avail;
    finished_.store(true, std::memory_order_release);
  }

  // xorshift64: of the driver's core, which does not wait for it.
  void write_random_header(uint64_t chain) {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    write_header(chain,
                 static_cast<uint64_t>((static_cast<unsigned __int128>(random_) * (kDiskBytes / 4096)) >> 64) * 8);
  }

  // The same with a packed ring: each chain is made available by itself, as Linux does it.
  void drive_packed(uint64_t requests, uint64_t depth) {
    uint64_t submitted = 0;
    const auto submit = [&](uint64_t chain) {
      write_random_header(chain);
      offer_packed(chain);
      ++submitted;
    };
    while (submitted < depth) submit(submitted);
    for (uint64_t done = 0; done < requests;) {
      const std::optional<uint16_t> chain = take_back_packed();
      if (!chain) continue;
      ++done;
      if (submitted < requests) submit(*chain);
    }
    finished_.store(true, std::memory_order_release);
  }

  // Turns the target until the driver has finished.
  void serve_driver() {
    while (!finished_.load(std::memory_order_acquire)) hosts_.turn();
    finished_.store(false);
  }

  // Makes `depth` more requests available, and serves until they are used.
  void round(uint16_t depth) {
    if (packed_) {
      for (uint16_t i = 0; i < depth; ++i) offer_packed(i);
      for (uint16_t done = 0; done < depth;) {
        hosts_.turn();
        while (take_back_packed()) ++done;
      }
      return;
    }
    avail_index_ = static_cast<uint16_t>(avail_index_ + depth);
    __atomic_store_n(reinterpret_cast<uint16_t*>(guest_ + kAvail + 2), avail_index_, __ATOMIC_RELEASE);
    while (__atomic_load_n(reinterpret_cast<uint16_t*>(guest_ + kUsed + 2), __ATOMIC_ACQUIRE) != avail_index_)
      hosts_.turn();
  }

 private:
  void write_header(uint64_t chain, uint64_t sector) const {
    const BlkRequestHeader header{.type = 0, .reserved = 0, .sector = sector};
    std::memcpy(guest_ + kHeaders + 64 * chain, &header, sizeof(header));
  }
  void write_descriptors(uint64_t chain) const {
    auto* descs = reinterpret_cast<SplitDesc*>(guest_);
    const auto first = static_cast<uint16_t>(4 * chain);
    descs[first] = {kHeaders + 64 * chain, 16, kDescNext, static_cast<uint16_t>(first + 1)};
    descs[first + 1] = {kData + 4096 * chain, 4096, kDescNext | kDescWrite, static_cast<uint16_t>(first + 2)};
    descs[first + 2] = {kHeaders + 64 * chain + 16, 1, kDescWrite, 0};
  }
  // Both sides of a packed ring are counted on and on; every other round of it has the wrap counter 0.
  static bool wrap_of(uint16_t position) { return (position & kRing) == 0; }
  PackedDesc& packed_desc(uint16_t position) const { return reinterpret_cast<PackedDesc*>(guest_)[position % kRing]; }
  void offer_packed(uint64_t chain) {
    const auto available = [](uint16_t position, unsigned flags) {
      return static_cast<uint16_t>(flags | (wrap_of(position) ? kPackedDescAvail : kPackedDescUsed));
    };
    const auto id = static_cast<uint16_t>(chain);
    const uint16_t at = avail_index_;
    const auto second = static_cast<uint16_t>(at + 1);
    const auto third = static_cast<uint16_t>(at + 2);
    packed_desc(second) = {kData + 4096 * chain, 4096, id, available(second, kDescNext | kDescWrite)};
    packed_desc(third) = {kHeaders + 64 * chain + 16, 1, id, available(third, kDescWrite)};
    PackedDesc& first = packed_desc(at);
    first.addr = kHeaders + 64 * chain;
    first.len = 16;
    first.id = id;
    __atomic_store_n(&first.flags, available(at, kDescNext), __ATOMIC_RELEASE);
    avail_index_ = static_cast<uint16_t>(at + 3);
  }
  std::optional<uint16_t> take_back_packed() {
    const PackedDesc& desc = packed_desc(used_index_);
    const uint16_t flags = __atomic_load_n(&desc.flags, __ATOMIC_ACQUIRE);
    const bool wrap = wrap_of(used_index_);
    if (((flags & kPackedDescAvail) != 0) != wrap || ((flags & kPackedDescUsed) != 0) != wrap) return std::nullopt;
    used_index_ = static_cast<uint16_t>(used_index_ + 3);
    return desc.id;
  }
  void build_chains() {
    for (uint64_t chain = 0; chain < kChains; ++chain) {
      write_header(chain, (chain * 7919 * 4096 % kDiskBytes) / 512);
      if (!packed_) write_descriptors(chain);
    }
    if (packed_) {
      // Calls are not wanted; a split ring's driver asks for none without saying so.
      const PackedEvent event{.off_wrap = 0, .flags = kPackedEventDisable};
      std::memcpy(guest_ + kAvail, &event, sizeof(event));
      return;
    }
    auto* heads = reinterpret_cast<uint16_t*>(guest_ + kAvail + 4);
    for (uint16_t i = 0; i < kRing; ++i) heads[i] = static_cast<uint16_t>(4 * (i % kChains));
  }

 public:
  // Writes the whole disk once, so that reads find memory and not the page of zeroes.
  void fill_disk() {
    std::vector<std::byte> data(1 << 20, std::byte{1});
    const iovec iov{.iov_base = data.data(), .iov_len = data.size()};
    for (uint64_t offset = 0; offset < kDiskBytes; offset += data.size()) {
      struct Write : BlockIo {
        bool done = false;
      } write;
      write.type = IoType::kWrite;
      write.iov = &iov;
      write.iov_count = 1;
      write.offset_bytes = offset;
      write.length_bytes = data.size();
      write.run = [](Work& work) { static_cast<Write&>(work).done = true; };
      hosts_.on(hosts_.home(), [&] { static_cast<BdevChannel*>(channel_.get())->submit(write); });
      while (!write.done) hosts_.turn();
    }
  }

 private:
  const bool packed_;
  ManualHosts hosts_;
  ThreadDirectory threads_;
  BdevManager bdevs_;
  IgnoreEvents events_;
  UniqueFd memory_fd_;
  std::shared_ptr<const MemoryMap> map_;
  std::byte* guest_ = nullptr;
  std::unique_ptr<BdevHandle> handle_;
  std::unique_ptr<BlkDevice> device_;
  ChannelRef channel_;
  std::unique_ptr<BlkQueue> queue_;
  LogLimiter log_limiter_;
  uint16_t avail_index_ = 0;
  uint16_t used_index_ = 0;              // packed
  uint64_t random_ = 88172645463325252;  // the driver's
  std::atomic<bool> finished_ = false;
};

// To the first or second core that the process had at its start.
void pin(int which) {
  static const cpu_set_t kAllowed = [] {
    cpu_set_t allowed;
    CHECK(::sched_getaffinity(0, sizeof(allowed), &allowed) == 0);
    return allowed;
  }();
  CHECK(which < CPU_COUNT(&kAllowed));
  int core = 0;
  for (int seen = 0; seen < which || !CPU_ISSET(core, &kAllowed); ++core) seen += CPU_ISSET(core, &kAllowed) ? 1 : 0;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  CHECK(::pthread_setaffinity_np(::pthread_self(), sizeof(set), &set) == 0);
}

void two_cores(benchmark::State& state, bool null_bdev, bool packed) {
  constexpr int64_t kRequests = 200'000;
  Ring ring(null_bdev, packed);
  if (!null_bdev) ring.fill_disk();
  pin(0);
  for (auto _ : state) {
    std::thread driver([&] {
      pin(1);
      ring.drive(kRequests, static_cast<uint64_t>(state.range(0)));
    });
    ring.serve_driver();
    driver.join();
  }
  state.SetItemsProcessed(state.iterations() * kRequests);
}
// What nothing that copies can beat: bare copies from random places of as much memory as a disk has, to so many buffers
// by turns. Arguments: bytes, buffers (as many as a load keeps requests in flight).
void copy_limit(benchmark::State& state) {
  // Made once and kept: it takes longer than most runs.
  static std::byte* const disk = [] {
    void* memory = ::mmap(nullptr, kDiskBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    ::madvise(memory, kDiskBytes, MADV_HUGEPAGE);
    std::memset(memory, 1, kDiskBytes);
    return static_cast<std::byte*>(memory);
  }();
  const auto bytes = static_cast<uint64_t>(state.range(0));
  const auto count = static_cast<uint64_t>(state.range(1));
  // Aligned to pages, as a guest's are.
  std::vector<std::byte> memory(bytes * count + 4096);
  std::byte* const buffers = memory.data() + (-reinterpret_cast<uintptr_t>(memory.data()) & 4095);
  uint64_t random = 88172645463325252;
  uint64_t next = 0;
  for (auto _ : state) {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    const auto block = static_cast<uint64_t>((static_cast<unsigned __int128>(random) * (kDiskBytes / bytes)) >> 64);
    std::memcpy(buffers + bytes * next, disk + bytes * block, bytes);
    next = next + 1 == count ? 0 : next + 1;
    benchmark::DoNotOptimize(buffers);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations());
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(copy_limit)
    ->ArgsProduct({{512, 4096, 16 << 10, 64 << 10, 256 << 10, 1 << 20}, {1, 32}})
    ->Args({4096, 128})
    ->UseRealTime();

// How long a cache line takes to the other core and back: what a driver and a target on two cores cannot do without. It
// depends on where the host has put the two, and changes when it moves one of them.
void two_cores_line(benchmark::State& state) {
  struct Lines {
    alignas(128) std::atomic<uint64_t> there = 0;
    alignas(128) std::atomic<uint64_t> back = 0;
  };
  Lines lines;
  std::thread echo([&lines] {
    pin(1);
    for (uint64_t seen = 0; seen != UINT64_MAX;) {
      const uint64_t sent = lines.there.load(std::memory_order_acquire);
      if (sent != seen) lines.back.store(seen = sent, std::memory_order_release);
    }
  });
  pin(0);
  uint64_t round = 0;
  for (auto _ : state) {
    lines.there.store(++round, std::memory_order_release);
    while (lines.back.load(std::memory_order_acquire) != round) {
    }
  }
  lines.there.store(UINT64_MAX, std::memory_order_release);
  echo.join();
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(two_cores_line)->UseRealTime();

BENCHMARK_CAPTURE(two_cores, null, true, false)->Arg(1)->Arg(32)->Arg(128)->UseRealTime();
BENCHMARK_CAPTURE(two_cores, malloc, false, false)->Arg(1)->Arg(32)->Arg(128)->UseRealTime();
BENCHMARK_CAPTURE(two_cores, null_packed, true, true)->Arg(1)->Arg(32)->Arg(128)->UseRealTime();
BENCHMARK_CAPTURE(two_cores, malloc_packed, false, true)->Arg(1)->Arg(32)->Arg(128)->UseRealTime();

void serve(benchmark::State& state, bool null_bdev, bool packed, bool tracked) {
  Ring ring(null_bdev, packed, tracked);
  const auto depth = static_cast<uint16_t>(state.range(0));
  for (auto _ : state) ring.round(depth);
  state.SetItemsProcessed(state.iterations() * depth);
}
BENCHMARK_CAPTURE(serve, null, true, false, false)->Arg(1)->Arg(32)->Arg(128);
BENCHMARK_CAPTURE(serve, malloc, false, false, false)->Arg(1)->Arg(32)->Arg(128);
BENCHMARK_CAPTURE(serve, null_packed, true, true, false)->Arg(1)->Arg(32)->Arg(128);
BENCHMARK_CAPTURE(serve, malloc_packed, false, true, false)->Arg(1)->Arg(32)->Arg(128);
// With notes of what is in flight.
BENCHMARK_CAPTURE(serve, null_tracked, true, false, true)->Arg(1)->Arg(32)->Arg(128);
BENCHMARK_CAPTURE(serve, null_packed_tracked, true, true, true)->Arg(1)->Arg(32)->Arg(128);

}  // namespace
}  // namespace sluice::vhost

BENCHMARK_MAIN();
