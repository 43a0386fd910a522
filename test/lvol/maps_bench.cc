// What a look into a map costs, and the changes of one. One core, no disk.
#include <benchmark/benchmark.h>

#include <random>

#include "lib/lvol/maps.h"

namespace sluice::lvol {
namespace {

// One volume of 1 TiB in clusters of 256 KiB, all of it mapped.
struct Tebibyte {
  static constexpr uint32_t kClusters = 1U << 22;

  Tebibyte() {
    for (uint32_t index = 0; index < kClusters; ++index) {
      maps.set(root, index, {.own = clusters.take().value(), .valid = ~0ULL}, ++record);
    }
  }
  ~Tebibyte() { maps.abandon({&root}); }
  void settle() {
    while (maps.settle(record, 10'000) || clusters.settle(record, 10'000)) {
    }
  }

  const Geometry geometry{.total_clusters = 2 * kClusters, .reserved_clusters = 2};
  Epochs epochs;
  ClusterTable clusters{geometry, epochs};
  PagePlaces places{geometry, clusters};
  Maps maps{clusters, places, epochs};
  MapRoot root;
  RecordNumber record = 0;
};

// Entries near each other, as of a guest that works on 64 MiB, and all over the volume; for the only request in flight,
// whose coming takes a memory fence, and beside another one.
void map_find(benchmark::State& state) {
  Tebibyte world;
  EpochReader reader(world.epochs);
  EpochUse use;
  EpochUse other;
  if (state.range(1) != 0) reader.enter(other);
  std::mt19937 random(1);
  std::vector<uint32_t> order(1 << 16);
  for (uint32_t& index : order) index = static_cast<uint32_t>(random() % static_cast<uint64_t>(state.range(0)));
  size_t at = 0;
  for (auto _ : state) {
    reader.enter(use);
    benchmark::DoNotOptimize(world.maps.find(world.root, order[at++ % order.size()]));
    reader.leave(use);
  }
  if (state.range(1) != 0) reader.leave(other);
}
BENCHMARK(map_find)->ArgNames({"clusters", "others"})->ArgsProduct({{256, Tebibyte::kClusters}, {0, 1}});

// The first write to each leaf of a fresh clone copies the leaf; those that follow find it private.
void map_set_in_clone(benchmark::State& state) {
  Tebibyte world;
  const auto apart = static_cast<uint32_t>(state.range(0));
  for (auto _ : state) {
    state.PauseTiming();
    MapRoot clone;
    world.maps.share(world.root, clone);
    state.ResumeTiming();
    for (uint32_t i = 0; i < 1000; ++i) {
      const uint32_t index = i * apart;
      const Entry old = world.maps.find(clone, index).entry;
      world.maps.set(clone, index, {.own = world.clusters.take().value(), .base = old.own, .valid = 1}, ++world.record);
    }
    state.PauseTiming();
    world.maps.release(clone, ++world.record);
    world.settle();
    state.ResumeTiming();
  }
  state.SetItemsProcessed(state.iterations() * 1000);
}
BENCHMARK(map_set_in_clone)->ArgName("apart")->Arg(1)->Arg(kFanOut)->Unit(benchmark::kMicrosecond);

void map_share_and_release(benchmark::State& state) {
  Tebibyte world;
  for (auto _ : state) {
    MapRoot snapshot;
    world.maps.share(world.root, snapshot);
    world.maps.release(snapshot, ++world.record);
    world.settle();
  }
}
BENCHMARK(map_share_and_release);

}  // namespace
}  // namespace sluice::lvol

BENCHMARK_MAIN();
