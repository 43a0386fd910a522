// What a simulation's scenario does while users do I/O.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "lib/base/unix_socket.h"
#include "lib/virtio/connection.h"
#include "test/sim/simulation.h"

namespace sluice::sim {

void Simulation::one_event() {
  Export& through = *exports_[below(exports_.size())];
  DiskState& disk = *disks_[below(disks_.size())];
  switch (below(20)) {
    case 0:
      add_user(through);
      break;
    case 1:
      add_user(*direct_[below(direct_.size())]);
      break;
    case 2:
      if (!users_.empty()) users_[below(users_.size())]->stop();
      break;
    case 3:
      if (!through.front_busy && through.attached) begin("detaching " + through.front, detach(through));
      break;
    case 4:
    case 5:
      if (!through.front_busy && !through.attached) begin("attaching " + through.front, attach(through));
      break;
    case 6:
      if (!through.back_busy && !through.disk.busy)
        begin("recreating " + through.controller, recreate_controller(through));
      break;
    case 7:
      if (!disk.busy &&
          std::ranges::none_of(exports_, [&](const auto& e) { return &e->disk == &disk && e->back_busy; }))
        begin("replacing " + disk.name, replace_disk(disk));
      break;
    case 8:
      if (!disk.busy) resize(disk);
      break;
    case 9:
      disk.store.failing_percent = chance(50) ? 0 : static_cast<uint32_t>(1 + below(20));
      break;
    case 10:
      switch_mode();
      break;
    case 11:
      change_polling();
      break;
    case 12:
      begin("looking around", look_around());
      break;
    case 13:
      begin("knocking at " + through.controller, knock(through));
      break;
    default:
      begin("moving a thread", move_a_thread());
      break;
  }
}

void Simulation::begin(std::string name, Task<> task) {
  context_.trace.note("{}", name);
  CHECK(gate_->spawn(watch(std::move(name), std::move(task))));
}

Task<> Simulation::watch(std::string name, Task<> task) {
  const auto operation =
      operations_.insert(operations_.end(), {.name = std::move(name), .begin_ns = context_.now_ns()});
  co_await std::move(task);
  context_.trace.note("end of {}", operation->name);
  operations_.erase(operation);
}

void Simulation::add_user(Export& through) {
  const auto present = std::ranges::count_if(users_, [](const auto& user) { return !user->ended(); });
  if (present >= 8 || !through.attached) return;
  users_.push_back(std::make_unique<SimUser>(context_, through, users_.size()));
  CHECK(gate_->spawn(users_.back()->run()));
}

// --- Hosts and threads ---

void Simulation::switch_mode() {
  constexpr std::array kModes = {PollMode::kPoll, PollMode::kInterrupt, PollMode::kAdaptive};
  const PollMode mode = kModes[below(kModes.size())];
  const size_t host = below(kHosts);
  context_.trace.note("mode {} on {}", static_cast<int>(mode), host);
  ManualHosts& hosts = context_.world.hosts;
  post_to(hosts.home(host), [&hosts, host, mode] { hosts[host].set_mode(mode); });
}

void Simulation::change_polling() {
  PollingOptions polling;
  polling.max_poll_ns = below(100) * kNsPerUs;
  polling.grow = static_cast<uint32_t>(1 + below(4));
  polling.grow_start_ns = below(30) * kNsPerUs;
  polling.shrink = static_cast<uint32_t>(below(4));
  polling.idle_poll_budget = static_cast<uint32_t>(below(101));
  const size_t host = below(kHosts);
  context_.trace.note("polling of {}: {} ns at most", host, polling.max_poll_ns);
  ManualHosts& hosts = context_.world.hosts;
  post_to(hosts.home(host), [&hosts, host, polling] { hosts[host].set_polling(polling); });
}

// Those of controllers can move, with requests in flight, and those of users who use a disk directly. Those of the
// others cannot, but for a moment.
Task<> Simulation::move_a_thread() {
  ThreadDirectory& threads = context_.world.threads;
  std::vector<uint64_t> ids;
  const bool any = chance(30);
  co_await threads.for_each([&](LwThread& thread) {
    if (any || thread.name().starts_with("vhost.")) ids.push_back(thread.id());
  });
  if (ids.empty()) co_return;
  LwThread* thread = threads.find(ids[below(ids.size())]);
  if (thread == nullptr) co_return;
  const std::string name = thread->name();
  const ThreadHost* const origin = &thread->host();
  Result<> moved;
  if (chance(70)) {
    const size_t host = (static_cast<const ManualHost*>(origin)->index() + 1 + below(kHosts - 1)) % kHosts;
    moved = co_await threads.move(*thread, context_.world.hosts[host]);
  } else {
    CpuMask mask;
    mask.set(static_cast<uint32_t>(below(kHosts)));
    mask.set(static_cast<uint32_t>(below(kHosts)));
    moved = co_await threads.set_cpumask(*thread, mask);
  }
  // EBUSY: another move is under way, or the thread is bound to its host. It may be gone by now.
  if (!moved && moved.error().code != EBUSY) context_.fail("{} cannot move: {}", name, moved.error().what);
  if (moved && &thread->host() != origin) ++outcome_.moves;
  context_.trace.note("{}: {}", name, moved ? "moved" : moved.error().what);
}

Task<> Simulation::look_around() {
  const std::vector<vhost::ControllerInfo> infos = co_await target_->list();
  for (const vhost::ControllerInfo& info : infos) {
    for (const auto& session : info.sessions) {
      for (const auto& queue : session.queues) {
        if (queue.fault != vhost::RingFault::kNone) context_.fail("a ring of {} is broken", info.name);
      }
    }
  }
  if (Bdev* bdev = context_.world.manager.find(disks_[below(disks_.size())]->name)) {
    const IoStats stats = co_await context_.world.manager.iostat(*bdev);
    context_.trace.note("{} reads", stats.of(IoType::kRead).ops);
  }
}

// --- Disks and controllers ---

void Simulation::add_disk(DiskState& disk) {
  context_.world.add(std::make_unique<SimDisk>(disk.name, disk.size_bytes, disk.limits, disk.store));
}

// Also smaller: what is beyond the end fails then, and is there again when the disk grows.
void Simulation::resize(DiskState& disk) {
  Bdev* bdev = context_.world.manager.find(disk.name);
  disk.size_bytes = (1 + below(16)) * (kCapacityBytes / 16);
  context_.trace.note("{} has {} bytes now", disk.name, disk.size_bytes);
  context_.active.for_each([&disk](SimRequest& request) {
    if (&request.through->disk == &disk) request.least_size = std::min(request.least_size, disk.size_bytes);
  });
  context_.world.manager.set_size(*bdev, disk.size_bytes);
}

Task<> Simulation::create_controller(Export& through) {
  CpuMask mask;
  if (chance(50)) mask.set(static_cast<uint32_t>(below(kHosts)));
  const Result<> created = co_await target_->create_controller(
      {.name = through.controller, .bdev_name = through.disk.name, .cpumask = mask});
  if (!created) context_.fail("{} cannot be created: {}", through.controller, created.error().what);
  through.controller_up = true;
  through.restored_ns = context_.now_ns();
}

Task<> Simulation::remove_controller(Export& through) {
  through.controller_up = false;
  through.disturb();
  const Result<> removed = co_await target_->remove_controller(through.controller);
  if (!removed) context_.fail("{} cannot be removed: {}", through.controller, removed.error().what);
}

Task<> Simulation::recreate_controller(Export& through) {
  through.back_busy = true;
  co_await remove_controller(through);
  co_await sleep_for(1 + below(chance(80) ? 2 * kNsPerMs : 300 * kNsPerMs));
  co_await create_controller(through);
  through.back_busy = false;
}

// As if the hardware were pulled out under load, and later, at once or in the middle of it, its controllers too.
Task<> Simulation::replace_disk(DiskState& disk) {
  disk.busy = true;
  for (const auto& through : exports_) {
    if (&through->disk != &disk) continue;
    through->back_busy = true;
    through->disturb();
  }
  const auto direct = std::ranges::find(direct_, &disk, [](const auto& through) { return &through->disk; });
  (*direct)->attached = false;
  Event removed;
  start(context_.world.manager.remove(*context_.world.manager.find(disk.name), RemoveMode::kForce),
        [this, &removed](Result<> result) {
          if (!result) context_.fail("a disk cannot be removed: {}", result.error().what);
          removed.set();
        });
  if (chance(50)) co_await sleep_for(1 + below(kNsPerMs));
  for (const auto& through : exports_) {
    if (&through->disk == &disk) co_await remove_controller(*through);
  }
  co_await removed.wait();
  co_await sleep_for(1 + below(2 * kNsPerMs));
  add_disk(disk);
  (*direct)->attached = true;
  for (const auto& through : exports_) {
    if (&through->disk != &disk) continue;
    co_await create_controller(*through);
    through->back_busy = false;
  }
  disk.busy = false;
}

// --- Front ends ---

Task<> Simulation::attach(Export& through) {
  through.front_busy = true;
  const bool back_is_up = through.controller_up && !through.back_busy;
  const uint64_t disturbances = through.disturbances;
  const Result<Bdev*> attached = co_await module_.attach(
      context_.world.manager, {.name = through.front,
                               .socket_path = directory_ + "/" + through.controller,
                               .vq_count = chance(50) ? 0 : static_cast<uint32_t>(1 + below(kHosts)),
                               .vq_size = 8U << below(5)});
  const bool undisturbed = back_is_up && through.disturbances == disturbances;
  if (!attached && undisturbed) context_.fail("{} cannot be attached: {}", through.front, attached.error().what);
  if (attached && undisturbed) through.disturbed = {};
  through.attached = attached.has_value();
  through.front_busy = false;
  if (through.attached && !settling_) add_user(through);
  context_.trace.note("{}: {}", through.front, attached ? "attached" : attached.error().what);
}

Task<> Simulation::detach(Export& through) {
  through.front_busy = true;
  const Result<> detached = co_await module_.detach(context_.world.manager, through.front);
  if (!detached) context_.fail("{} cannot be detached: {}", through.front, detached.error().what);
  through.attached = false;
  through.front_busy = false;
}

// Somebody else connects, talks nonsense or nothing, and goes: the front end may have to wait, no more.
Task<> Simulation::knock(Export& through) {
  const Result<UniqueFd> socket = connect_unix(directory_ + "/" + through.controller, SOCK_NONBLOCK);
  if (!socket) co_return;
  std::array<uint32_t, 5> words{};
  for (uint32_t& word : words) word = chance(50) ? 0 : static_cast<uint32_t>(context_.random());
  const size_t length = below(sizeof(words) + 1);
  std::ignore = ::send(socket->get(), words.data(), length, MSG_DONTWAIT | MSG_NOSIGNAL);
  co_await sleep_for(1 + below(2 * kNsPerMs));
}

}  // namespace sluice::sim
