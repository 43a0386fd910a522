// What the block layer and a module cost per request: submit, carry out, complete. On ManualHost; one core.
#include <benchmark/benchmark.h>

#include <memory>
#include <vector>

#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/malloc/malloc_bdev.h"
#include "lib/bdev/null/null_bdev.h"
#include "test/support/manual_host.h"

namespace sluice {
namespace {

constexpr uint64_t kDiskBytes = 64 << 20;

struct IgnoreEvents : BdevEvents {
  void on_resize() override {}
  void on_remove() override {}
};

// Requests that submit themselves again until `left` have completed.
struct Load {
  BdevChannel* channel;
  int64_t left;
};
struct LoadIo : BlockIo {
  Load* load = nullptr;
  iovec piece{};
};

void submit_complete(benchmark::State& state, bool null_bdev) {
  ManualHosts hosts(1, PollMode::kPoll);
  ThreadDirectory threads(hosts);
  BdevManager bdevs(threads);
  auto made = null_bdev ? create_null_bdev({.name = "disk", .num_blocks = kDiskBytes / 512, .block_size_bytes = 512})
                        : create_malloc_bdev({.name = "disk", .num_blocks = kDiskBytes / 512, .block_size_bytes = 512});
  Bdev& bdev = *bdevs.add(std::move(made.value())).value();
  IgnoreEvents events;
  auto handle = bdevs.open("disk", BdevAccess::kWrite, events, "benchmark").value();
  LwThread& home = hosts.home();
  ChannelRef channel = hosts.on(home, [&] { return home.get_channel(bdev).value(); });
  Load load{.channel = static_cast<BdevChannel*>(channel.get()), .left = 0};

  const auto depth = static_cast<size_t>(state.range(0));
  std::vector<std::byte> memory(4096 * depth);
  std::vector<LoadIo> ios(depth);
  for (size_t i = 0; i < depth; ++i) {
    LoadIo& io = ios[i];
    io.load = &load;
    io.piece = {.iov_base = memory.data() + 4096 * i, .iov_len = 4096};
    io.type = IoType::kWrite;
    io.iov = &io.piece;
    io.iov_count = 1;
    io.offset_bytes = 4096 * i;
    io.length_bytes = 4096;
    io.run = [](Work& work) {
      auto& done = static_cast<LoadIo&>(work);
      if (--done.load->left >= 0) done.load->channel->submit(done);
    };
  }
  constexpr int64_t kRequests = 65536;
  for (auto _ : state) {
    load.left = kRequests - static_cast<int64_t>(depth);
    hosts.on(home, [&] {
      for (LoadIo& io : ios) load.channel->submit(io);
    });
    while (load.channel->in_flight() > 0 || home.run().worked) home.run();
  }
  state.SetItemsProcessed(state.iterations() * kRequests);

  hosts.on(home, [&] { channel.reset(); });
  handle.reset();
  hosts.await(home, bdevs.remove_all());
}
BENCHMARK_CAPTURE(submit_complete, null, true)->Arg(1)->Arg(32)->Arg(128);
BENCHMARK_CAPTURE(submit_complete, malloc, false)->Arg(1)->Arg(32)->Arg(128);

}  // namespace
}  // namespace sluice

BENCHMARK_MAIN();
