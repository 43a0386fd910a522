#include "test/sim/simulation.h"

#include <algorithm>

namespace sluice::sim {
namespace {

// Attaching takes some ms; detaching has to wait for requests. After 5 s the front end would lose patience.
constexpr uint64_t kOperationBoundNs = 4 * kNsPerSec;

BdevLimits pick_limits(Context& context) {
  BdevLimits limits;
  if (context.chance(25)) limits.block_size_bytes = limits.physical_block_size_bytes = 4096;
  if (context.chance(50)) limits.buffer_alignment_bytes = limits.block_size_bytes;
  if (context.chance(30)) limits.max_segments = static_cast<uint32_t>(1 + context.below(8));
  if (context.chance(30)) limits.max_transfer_bytes = limits.block_size_bytes * (4 + context.below(20));
  if (context.chance(30)) limits.optimal_boundary_bytes = limits.block_size_bytes * 16;
  return limits;
}

}  // namespace

Simulation::Simulation(uint64_t seed, const std::string& directory, bool print)
    : directory_(directory), context_(seed, print) {
  target_ = std::make_unique<vhost::Target>(context_.world.threads, context_.world.manager,
                                            vhost::Target::Options{.socket_directory = directory});
}

Simulation::~Simulation() = default;

Outcome Simulation::run() {
  set_up();
  run_events();
  settle();
  tear_down();
  check_stores();
  outcome_.failure = context_.failure;
  outcome_.trace_hash = context_.trace.hash();
  outcome_.trace_lines = context_.trace.lines();
  outcome_.virtual_ns = context_.now_ns();
  outcome_.requests = context_.requests;
  outcome_.errors = context_.errors;
  return outcome_;
}

// --- Turning ---

// One turn of the hosts. When they have nothing to do, time jumps to what comes next: a timer, or `limit_ns`.
void Simulation::step(uint64_t limit_ns) {
  ManualHosts& hosts = context_.world.hosts;
  vain_turns_ = hosts.turn() ? 0 : vain_turns_ + 1;
  hosts.advance(below(1000));
  check_nothing_is_stuck();
  // With the second one in vain, pollers go cold: time may pass before that, and after.
  if (vain_turns_ < 1 + static_cast<int>(below(2))) return;
  uint64_t next_ns = std::min(hosts.next_deadline_ns(), limit_ns);
  for (size_t i = 0; i < kHosts; ++i) {
    // Adaptive pollers go cold after a window: not all of it at once.
    if (hosts[i].runnable() && hosts[i].mode() == PollMode::kAdaptive)
      next_ns = std::min(next_ns, hosts.now_ns() + 1 + below(20 * kNsPerUs));
  }
  if (next_ns == UINT64_MAX) {
    context_.fail("nothing will ever happen");
  } else if (next_ns > hosts.now_ns()) {
    hosts.advance(next_ns - hosts.now_ns());
  }
}

void Simulation::check_nothing_is_stuck() {
  const uint64_t now = context_.now_ns();
  if (!context_.active.empty()) {
    const SimRequest& oldest = context_.active.front();
    if (now > oldest.begin_ns + kRequestBoundNs) {
      context_.fail("request {} ({} at {} of {}) does not complete", oldest.number, to_string(oldest.type),
                    oldest.offset_bytes / ContentModel::kSectorBytes, oldest.through->front);
    }
  }
  for (const Operation& operation : operations_) {
    if (now > operation.begin_ns + kOperationBoundNs) context_.fail("{} does not end", operation.name);
  }
}

void Simulation::run_until(std::string_view what, const std::function<bool()>& reached, uint64_t bound_ns) {
  const uint64_t limit_ns = context_.now_ns() + bound_ns;
  while (context_.failure.empty() && !reached()) {
    if (context_.now_ns() >= limit_ns) context_.fail("{} takes too long", what);
    step(limit_ns);
  }
}

void Simulation::run_for(uint64_t ns) {
  const uint64_t limit_ns = context_.now_ns() + ns;
  while (context_.failure.empty() && context_.now_ns() < limit_ns) step(limit_ns);
}

void Simulation::finish(std::string_view what, Task<> task, uint64_t bound_ns) {
  if (!context_.failure.empty()) return;
  bool done = false;
  context_.world.hosts.on(app(), [&] { start(std::move(task), [&done] { done = true; }); });
  run_until(what, [&done] { return done; }, bound_ns);
}

// --- Phases ---

void Simulation::set_up() {
  const size_t disks = 1 + below(2);
  for (size_t i = 0; i < disks; ++i) {
    disks_.push_back(std::make_unique<DiskState>(fmt::format("d{}", i), pick_limits(context_),
                                                 kCapacityBytes / (1U << below(3)), context_.random));
    DiskState& disk = *disks_.back();
    disk.store.on_failure = [this, &disk](const BlockIo& io) {
      context_.active.for_each([&](SimRequest& request) {
        if (&request.through->disk != &disk || request.type != io.type) return;
        const bool apart = io.offset_bytes >= request.offset_bytes + request.length_bytes ||
                           request.offset_bytes >= io.offset_bytes + io.length_bytes;
        if (!apart || io.type == IoType::kFlush) request.disk_has_failed = true;
      });
    };
    add_disk(disk);
    direct_.push_back(std::make_unique<Export>(disk));
    if (chance(50)) context_.world.hosts.on(app(), [&] { add_user(*direct_.back()); });
  }
  const size_t exports = disks + below(2);
  for (size_t i = 0; i < exports; ++i) {
    exports_.push_back(std::make_unique<Export>(*disks_[i % disks], i));
    finish("creating a controller", create_controller(*exports_.back()), kOperationBoundNs);
    finish("attaching", attach(*exports_.back()), kOperationBoundNs);
  }
}

void Simulation::run_events() {
  for (uint64_t events = 10 + below(60); events > 0; --events) {
    constexpr std::array kLongest = {20 * kNsPerUs, 300 * kNsPerUs, kNsPerMs, 2 * kNsPerMs, 6 * kNsPerMs};
    run_for(1 + below(kLongest[below(kLongest.size())]));
    if (!context_.failure.empty()) return;
    context_.world.hosts.on(app(), [this] { one_event(); });
  }
}

// The users go; then everything must be as if nothing had happened.
void Simulation::settle() {
  settling_ = true;
  for (const auto& disk : disks_) disk->store.failing_percent = 0;
  for (const auto& user : users_) user->stop();
  run_until(
      "the users' end",
      [this] {
        return operations_.empty() && std::ranges::all_of(users_, [](const auto& user) { return user->ended(); });
      },
      2 * kOperationBoundNs);
  run_for(kReconnectNs);
  check_asleep();
  for (const auto& through : exports_) check_recovery(*through);
  for (const auto& through : direct_) check_recovery(*through);
}

void Simulation::check_recovery(Export& through) {
  if (!context_.failure.empty() || !through.attached) return;
  const Bdev& bdev = *context_.world.manager.find(through.front);
  if (!through.direct) {
    const VirtioBdevInfo info = *VirtioModule::info(bdev);
    outcome_.reconnects += info.reconnects;
    if (!info.connected) context_.fail("{} has not connected again", through.front);
  }
  if (bdev.size_bytes() != through.disk.size_bytes)
    context_.fail("{} has {} bytes, not {}", through.front, bdev.size_bytes(), through.disk.size_bytes);
  through.disturbed = {};
  users_.push_back(std::make_unique<SimUser>(context_, through, users_.size()));
  users_.back()->only_scan();
  finish("the last scan", users_.back()->run(), 5 * kOperationBoundNs);
}

// In interrupt mode nothing keeps a host awake, whatever is attached.
void Simulation::check_asleep() {
  if (!context_.failure.empty()) return;
  ManualHosts& hosts = context_.world.hosts;
  hosts.set_mode(PollMode::kInterrupt);
  run_for(kNsPerMs);
  for (size_t i = 0; i < kHosts; ++i) {
    if (hosts[i].runnable()) context_.fail("host {} does not go to sleep", i);
  }
}

void Simulation::tear_down() {
  enum Part : uint8_t { kFronts, kTarget, kDisks };
  std::array order = {kFronts, kTarget, kDisks};
  std::ranges::shuffle(order, context_.random);
  for (const Part part : order) {
    if (part == kFronts) finish("detaching all", module_.detach_all(context_.world.manager), 3 * kOperationBoundNs);
    if (part == kTarget) finish("removing all controllers", target_->remove_all(), 3 * kOperationBoundNs);
    if (part == kDisks) finish("removing all disks", context_.world.manager.remove_all(), 3 * kOperationBoundNs);
  }
  // Front ends that their bdevs have left are detached all the same; then nothing is left but pools that shrink.
  finish("the end of all operations", gate_->close(), kOperationBoundNs);
  ManualHosts& hosts = context_.world.hosts;
  for (int timers = 0; context_.failure.empty() && hosts.next_deadline_ns() != UINT64_MAX; ++timers) {
    if (timers == 100) context_.fail("a timer is left");
    run_for(kNsPerSec);
  }
  check_asleep();
  for (size_t i = 0; i < kHosts && context_.failure.empty(); ++i) {
    const LwThread& home = hosts.home(i);
    if (home.hot_count() + home.cold_count() > 0) context_.fail("a poller is left on host {}", i);
    if (!home.channels().empty()) context_.fail("a channel is left on host {}", i);
  }
}

void Simulation::check_stores() {
  if (!context_.failure.empty()) return;
  for (const auto& disk : disks_) {
    const std::string wrong = disk->model.check(disk->store.bytes, 0);
    if (!wrong.empty()) context_.fail("disk {}: {}", disk->name, wrong);
  }
}

Outcome run_simulation(uint64_t seed, const std::string& directory, bool print) {
  auto simulation = std::make_unique<Simulation>(seed, directory, print);
  Outcome outcome = simulation->run();
  if (!outcome.failure.empty()) std::ignore = simulation.release();
  return outcome;
}

}  // namespace sluice::sim
