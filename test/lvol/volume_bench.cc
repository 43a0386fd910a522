// What a volume costs on top of its base bdev: reads and writes of what is mapped, first writes to a clone, clones.
// On ManualHost, base and store in memory; one core.
#include <benchmark/benchmark.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/io_buffer.h"
#include "lib/bdev/malloc/malloc_bdev.h"
#include "lib/lvol/store.h"
#include "lib/lvol/volume_bdev.h"
#include "test/support/manual_host.h"

namespace sluice::lvol {
namespace {

constexpr uint64_t kVolumeBytes = 256U << 20;
constexpr uint64_t kBaseBytes = 4 * kVolumeBytes;
constexpr uint64_t kIoBytes = 4096;
constexpr uint64_t kRequests = kVolumeBytes / kIoBytes;

struct IgnoreEvents : BdevEvents, StoreEvents {
  void on_resize() override {}
  void on_remove() override {}
  void on_no_space(bool) override {}
  void on_usage(uint32_t, bool) override {}
  void on_failed(const Error&) override {}
};

struct Load {
  BdevChannel* channel = nullptr;
  std::vector<uint64_t> offsets;
  size_t next = 0;
};
struct LoadIo : BlockIo {
  Load* load = nullptr;
  iovec piece{};
};

class World {
 public:
  World() {
    bdevs_.add(create_malloc_bdev({.name = "base", .num_blocks = kBaseBytes / 512, .block_size_bytes = 512}).value())
        .value();
    base_ = open("base", *owner_);
    // Fresh memory costs more than all the rest.
    Opened disk = open("base", user());
    run(disk, IoType::kWrite, 32, kBaseBytes / kIoBytes, kBaseBytes, true);
    close(disk);
    CHECK(hosts_.await(*owner_, Store::format(channel_of(base_), {.name = "store"})).has_value());
    store_ = hosts_.await(*owner_, Store::load(*owner_, channel_of(base_), events_)).value();
  }
  ~World() {
    hosts_.await(*owner_, store_->close());
    store_.reset();
    close(base_);
    hosts_.await(hosts_.home(), bdevs_.remove_all());
    hosts_.await(hosts_.home(), threads_.destroy(*owner_));
  }

  struct Opened {
    LwThread* thread;
    std::unique_ptr<BdevHandle> handle;
    ChannelRef channel;
  };
  static BdevChannel& channel_of(const Opened& opened) { return static_cast<BdevChannel&>(*opened.channel.get()); }

  Opened open(const std::string& name, LwThread& thread) {
    Opened opened{
        .thread = &thread, .handle = bdevs_.open(name, BdevAccess::kRead, events_, "benchmark").value(), .channel = {}};
    opened.channel = hosts_.on(thread, [&] { return thread.get_channel(opened.handle->bdev()).value(); });
    return opened;
  }
  void close(Opened& opened) {
    hosts_.on(*opened.thread, [&] { opened.channel.reset(); });
    opened.handle.reset();
  }

  VolumeId create(const std::string& name) {
    return hosts_.await(*owner_, store_->create({.name = name, .size_bytes = kVolumeBytes})).value();
  }
  VolumeId snapshot(VolumeId id, const std::string& name) {
    return hosts_.await(*owner_, store_->snapshot(id, name, {})).value();
  }
  VolumeId clone(VolumeId id, const std::string& name) {
    return hosts_.await(*owner_, store_->clone(id, name, {})).value();
  }
  void remove(VolumeId id) {
    CHECK(hosts_.await(*owner_, store_->remove(id)).has_value());
    hosts_.await(*owner_, store_->settle());
  }
  Bdev& offer(VolumeId id) {
    Volume& volume = *store_->volumes().find(id);
    return *bdevs_.add(make_volume_bdev(*store_, volume, *volume.record, "store", base_.handle->bdev(), nullptr))
                .value();
  }
  void withdraw(Bdev& bdev) { hosts_.await(hosts_.home(), bdevs_.remove(bdev, RemoveMode::kIfUnused)).value(); }

  // Requests within the first `size_bytes`, in order or in random order; each offset once.
  void run(Opened& opened, IoType type, size_t depth, uint64_t requests, uint64_t size_bytes = kVolumeBytes,
           bool sequential = false) {
    Load load{.channel = &channel_of(opened), .offsets = {}};
    for (uint64_t i = 0; i < requests; ++i) load.offsets.push_back(i * kIoBytes % size_bytes);
    if (!sequential) std::ranges::shuffle(load.offsets, random_);
    // Aligned to pages, as a guest's: how fast memory is copied depends on how the two places lie within their pages.
    const IoBuffer memory = IoBuffer::allocate(kIoBytes * depth).value();
    std::vector<LoadIo> ios(depth);
    for (size_t i = 0; i < depth; ++i) {
      LoadIo& io = ios[i];
      io.load = &load;
      io.piece = {.iov_base = memory.bytes().data() + kIoBytes * i, .iov_len = kIoBytes};
      io.type = type;
      io.iov = &io.piece;
      io.iov_count = 1;
      io.length_bytes = kIoBytes;
      io.run = [](Work& work) { submit(static_cast<LoadIo&>(work)); };
    }
    hosts_.on(*opened.thread, [&] {
      for (LoadIo& io : ios) submit(io);
    });
    while (load.channel->in_flight() > 0 || load.next < load.offsets.size()) hosts_.turn();
  }

  LwThread& user() { return hosts_.home(); }
  void await_settled() { hosts_.await(*owner_, store_->settle()); }

 private:
  static void submit(LoadIo& io) {
    CHECK(io.status == IoStatus::kOk);
    if (io.load->next == io.load->offsets.size()) return;
    io.offset_bytes = io.load->offsets[io.load->next++];
    io.load->channel->submit(io);
  }

  ManualHosts hosts_{1, PollMode::kPoll};
  ThreadDirectory threads_{hosts_};
  BdevManager bdevs_{threads_};
  LwThread* owner_ = threads_.create("lvol.store", threads_.all_cpus()).value();
  IgnoreEvents events_;
  Opened base_;
  std::unique_ptr<Store> store_;
  std::mt19937_64 random_{1};
};

void base(benchmark::State& state, IoType type) {
  World world;
  World::Opened disk = world.open("base", world.user());
  world.run(disk, IoType::kWrite, 32, kRequests, kVolumeBytes, true);
  for (auto _ : state) world.run(disk, type, static_cast<size_t>(state.range(0)), kRequests);
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kRequests));
  world.close(disk);
}

void mapped(benchmark::State& state, IoType type) {
  World world;
  Bdev& bdev = world.offer(world.create("volume"));
  World::Opened disk = world.open(bdev.name(), world.user());
  world.run(disk, IoType::kWrite, 32, kRequests, kVolumeBytes, true);
  for (auto _ : state) world.run(disk, type, static_cast<size_t>(state.range(0)), kRequests);
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kRequests));
  world.close(disk);
  world.withdraw(bdev);
}

void fresh_clone(benchmark::State& state) {
  World world;
  const VolumeId volume = world.create("image");
  Bdev& image = world.offer(volume);
  World::Opened disk = world.open(image.name(), world.user());
  world.run(disk, IoType::kWrite, 32, kRequests, kVolumeBytes, true);
  world.close(disk);
  world.withdraw(image);
  const VolumeId snapshot = world.snapshot(volume, "snapshot");
  for (auto _ : state) {
    state.PauseTiming();
    const VolumeId id = world.clone(snapshot, "clone");
    Bdev& bdev = world.offer(id);
    World::Opened clone = world.open(bdev.name(), world.user());
    state.ResumeTiming();
    world.run(clone, IoType::kWrite, static_cast<size_t>(state.range(0)), kRequests);
    state.PauseTiming();
    world.close(clone);
    world.withdraw(bdev);
    world.remove(id);
    state.ResumeTiming();
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kRequests));
}

// A chain of snapshots, with a write to the volume after each of them.
void after_snapshots(benchmark::State& state, IoType type) {
  constexpr int kSnapshots = 1000;
  World world;
  const VolumeId volume = world.create("volume");
  Bdev& bdev = world.offer(volume);
  World::Opened disk = world.open(bdev.name(), world.user());
  world.run(disk, IoType::kWrite, 32, kRequests, kVolumeBytes, true);
  for (int i = 0; i < kSnapshots; ++i) {
    world.snapshot(volume, "s" + std::to_string(i));
    world.run(disk, IoType::kWrite, 1, 1);
  }
  for (auto _ : state) world.run(disk, type, static_cast<size_t>(state.range(0)), kRequests);
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kRequests));
  world.close(disk);
  world.withdraw(bdev);
}

void clones(benchmark::State& state) {
  World world;
  const VolumeId snapshot = world.snapshot(world.create("image"), "snapshot");
  uint64_t made = 0;
  for (auto _ : state) world.clone(snapshot, "clone" + std::to_string(made++));
  state.SetItemsProcessed(state.iterations());
}

BENCHMARK_CAPTURE(base, read, IoType::kRead)->Arg(1)->Arg(32);
BENCHMARK_CAPTURE(mapped, read, IoType::kRead)->Arg(1)->Arg(32);
BENCHMARK_CAPTURE(base, write, IoType::kWrite)->Arg(1)->Arg(32);
BENCHMARK_CAPTURE(mapped, write, IoType::kWrite)->Arg(1)->Arg(32);
BENCHMARK(fresh_clone)->Arg(1)->Arg(32);
BENCHMARK_CAPTURE(after_snapshots, read, IoType::kRead)->Arg(32);
BENCHMARK(clones)->Iterations(1000);

}  // namespace
}  // namespace sluice::lvol

BENCHMARK_MAIN();
