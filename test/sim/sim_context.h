// What the parts of a simulation share: the world, the dice, the disks and their exports, and the requests in flight.
// Thread: the simulation's only one.
#pragma once

#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "lib/base/intrusive_list.h"
#include "lib/bdev/block_io.h"
#include "test/sim/content_model.h"
#include "test/sim/sim_disk.h"
#include "test/sim/trace.h"
#include "test/support/disk_user.h"

namespace sluice::sim {

inline constexpr size_t kHosts = 3;
inline constexpr uint64_t kCapacityBytes = 2U << 20;
// A request that takes longer has been lost: a disk needs 5 ms at most for each of some 40 pieces.
inline constexpr uint64_t kRequestBoundNs = kNsPerSec;
// So soon a front end is connected again when its back end is back: it tries every second.
inline constexpr uint64_t kReconnectNs = 3 * kNsPerSec;

// A disk below the target.
struct DiskState {
  DiskState(std::string disk_name, BdevLimits disk_limits, uint64_t size, std::mt19937_64& random)
      : name(std::move(disk_name)),
        limits(disk_limits),
        size_bytes(size),
        store(kCapacityBytes, random),
        model(kCapacityBytes / ContentModel::kSectorBytes) {}

  const std::string name;
  const BdevLimits limits;
  uint64_t size_bytes;
  SimStore store;
  ContentModel model;
  bool busy = false;  // being replaced
};

// A way to a disk: exported by a controller, with a front end that uses it; or the disk itself, without either.
struct Export {
  Export(DiskState& exported, size_t index)
      : disk(exported), controller(fmt::format("c{}", index)), front(fmt::format("f{}", index)) {}
  explicit Export(DiskState& used) : disk(used), front(used.name), direct(true), attached(true) {}

  DiskState& disk;
  const std::string controller;
  const std::string front;  // the bdev that users open
  const bool direct = false;
  bool controller_up = false;
  bool back_busy = false;   // controller or disk are being replaced
  bool attached = false;    // direct: the disk is there
  bool front_busy = false;  // being attached or detached

  // Errors are to be expected from when the scenario took controller or disk away until a request of the same host has
  // succeeded afterwards.
  uint64_t disturbances = 0;
  uint64_t restored_ns = 0;  // UINT64_MAX: not yet
  std::array<bool, kHosts> disturbed{};

  void disturb() {
    ++disturbances;
    restored_ns = UINT64_MAX;
    disturbed.fill(true);
  }
};

struct ActiveTag;

// A request of a user; lives as long as the simulation.
struct SimRequest : BlockIo, ListHook<ActiveTag> {
  Export* through = nullptr;
  std::vector<iovec> pieces;
  uint64_t number = 0;
  uint64_t begin_ns = 0;
  uint64_t disturbances = 0;     // of its export, when it was submitted
  uint64_t least_size = 0;       // of the disk, while it was in flight
  bool disk_has_failed = false;  // a request of this kind and place
  bool in_flight = false;
  std::function<void()> done;
};

struct Context {
  Context(uint64_t seed, bool print) : random(seed ^ 0x5deece66dU), trace(world.hosts, print) {
    world.hosts.set_seed(seed);
  }

  uint64_t now_ns() const { return world.hosts.now_ns(); }
  // 0 to n-1.
  uint64_t below(uint64_t n) { return random() % n; }
  bool chance(uint64_t percent) { return below(100) < percent; }

  // The first failure is the one that counts.
  template <typename... Args>
  void fail(fmt::format_string<Args...> format, Args&&... args) {
    if (!failure.empty()) return;
    failure = fmt::format(format, std::forward<Args>(args)...);
    trace.note("FAILURE: {}", failure);
  }

  BdevWorld world{kHosts};
  std::mt19937_64 random;
  Trace trace;
  std::string failure;
  List<SimRequest, ActiveTag> active;  // the oldest first
  uint64_t requests = 0;
  uint64_t errors = 0;
};

}  // namespace sluice::sim
