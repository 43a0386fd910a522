#include "lib/vhost/target.h"

#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "lib/base/unix_socket.h"

namespace sluice::vhost {

Target::Target(ThreadDirectory& threads, BdevManager& bdevs, Options options)
    : threads_(threads), bdevs_(bdevs), options_(std::move(options)), absolute_directory_(options_.socket_directory) {
  // Clients may have another working directory; the sockets themselves are bound by the path as given, which may be
  // relative because the absolute one would be too long.
  std::error_code error;
  const auto absolute = std::filesystem::absolute(options_.socket_directory, error);
  if (!error) absolute_directory_ = absolute.lexically_normal().string();
  if (absolute_directory_.ends_with('/')) absolute_directory_.pop_back();
  std::signal(SIGPIPE, SIG_IGN);
}

Target::~Target() { CHECK(entries_.empty()); }

Task<Result<>> Target::create_controller(ControllerOptions options) {
  if (options.name.empty() || options.name.contains('/'))
    co_return fail(EINVAL, "a controller's name is a file name, without slashes");
  if (entries_.contains(options.name)) co_return fail(EEXIST, "a controller of this name exists");
  Bdev* bdev = bdevs_.find(options.bdev_name);
  if (bdev == nullptr) co_return fail(ENODEV, "there is no bdev of this name");
  const std::string path = options_.socket_directory + "/" + options.name;
  if (options.queue_threads > kMaxQueues) co_return fail(EINVAL, "a controller has 64 queues at most");
  auto threads = create_threads(options);
  if (!threads) co_return std::unexpected(threads.error());
  std::optional<ControllerState> inherited;
  if (auto found = inherited_.extract(options.name); !found.empty()) inherited = std::move(found.mapped());
  auto listener = inherited ? std::move(inherited->listener) : listen_unix(path, options_.socket_mode);
  if (!listener) {
    co_await destroy_threads(std::move(*threads));
    co_return std::unexpected(listener.error());
  }

  LwThread& thread = *threads->front();
  threads->erase(threads->begin());
  auto controller = std::make_unique<Controller>(options.name, path, std::move(*listener), options.allowed, thread,
                                                 *threads, inherited.has_value());
  // The name is taken from here on: others may ask for it while this waits.
  Entry& entry = *entries_.emplace(options.name, std::make_unique<Entry>()).first->second;
  entry.busy = true;
  Result<> started = controller->open(
      bdevs_, options.bdev_name,
      {.readonly = options.readonly, .packed_ring = options.packed_ring, .any_memory_file = options.any_memory_file});
  if (started && inherited) started = co_await controller->take_over(std::move(inherited->session));
  if (started && !inherited) started = co_await controller->start();
  if (!started) {
    co_await destroy(std::move(controller));
    entries_.erase(options.name);
    co_return started;
  }
  entry.controller = std::move(controller);
  entry.busy = false;
  co_return Result<>{};
}

Task<Result<>> Target::remove_controller(std::string name) {
  const auto found = entries_.find(name);
  if (found == entries_.end() || found->second->busy) co_return fail(ENODEV, "there is no controller of this name");
  Entry& entry = *found->second;
  entry.busy = true;
  while (entry.lookers > 0) co_await entry.idle.wait();
  co_await destroy(std::move(entry.controller));
  entries_.erase(name);
  co_return Result<>{};
}

Task<> Target::remove_all() {
  std::vector<std::string> names;
  for (const auto& [name, entry] : entries_) names.push_back(name);
  for (const std::string& name : names) std::ignore = co_await remove_controller(name);
}

Task<std::vector<ControllerState>> Target::give_up() {
  for (const auto& [name, entry] : entries_) CHECK(!entry->busy && entry->lookers == 0);
  Gate resting;
  for (const auto& [name, entry] : entries_) resting.spawn(entry->controller->rest());
  co_await resting.close();
  std::vector<ControllerState> states;
  Gate ending;
  for (const auto& [name, entry] : entries_) {
    ending.spawn([](Target& self, Entry& given_up, std::vector<ControllerState>& into) -> Task<> {
      into.push_back(co_await given_up.controller->give_up());
      std::vector<LwThread*> threads = given_up.controller->threads();
      given_up.controller.reset();
      co_await self.destroy_threads(std::move(threads));
    }(*this, *entry, states));
  }
  co_await ending.close();
  entries_.clear();
  co_return states;
}

void Target::take_over(std::vector<ControllerState> states) {
  for (ControllerState& state : states) {
    std::string name = state.name;
    inherited_.emplace(std::move(name), std::move(state));
  }
}

Task<> Target::go_on() {
  for (const auto& [name, entry] : entries_) co_await entry->controller->go_on();
}

// The controller's own first. All or none are made.
Result<std::vector<LwThread*>> Target::create_threads(const ControllerOptions& options) {
  const CpuMask cpumask = options.cpumask.none() ? threads_.all_cpus() : options.cpumask;
  std::vector<LwThread*> threads;
  for (uint32_t i = 0; i <= options.queue_threads; ++i) {
    auto thread = threads_.create("vhost." + options.name + (i == 0 ? "" : "." + std::to_string(i - 1)), cpumask);
    // If there is no place for one of them, there is none for the first.
    if (!thread) return std::unexpected(thread.error());
    threads.push_back(*thread);
  }
  return threads;
}

Task<> Target::destroy_threads(std::vector<LwThread*> threads) {
  for (LwThread* thread : threads) co_await threads_.destroy(*thread);
}

Task<> Target::destroy(std::unique_ptr<Controller> controller) {
  co_await controller->stop();
  std::vector<LwThread*> threads = controller->threads();
  controller.reset();
  co_await destroy_threads(std::move(threads));
}

Task<Result<>> Target::set_coalescing(std::string name, Coalescing coalescing) {
  if (coalescing.delay_base_ns > kMaxCoalescingNs) co_return fail(EINVAL, "the delay is 10 ms at most");
  if (coalescing.iops_threshold == 0) co_return fail(EINVAL, "the threshold is 1 at least");
  const auto found = entries_.find(name);
  if (found == entries_.end() || found->second->busy) co_return fail(ENODEV, "there is no controller of this name");
  Entry& entry = *found->second;
  ++entry.lookers;
  co_await entry.controller->set_coalescing(coalescing);
  if (--entry.lookers == 0) entry.idle.set();
  co_return Result<>{};
}

Task<Result<>> Target::set_bdev(std::string name, std::string bdev_name) {
  const auto found = entries_.find(name);
  if (found == entries_.end() || found->second->busy) co_return fail(ENODEV, "there is no controller of this name");
  Entry& entry = *found->second;
  ++entry.lookers;
  const Result<> set = co_await entry.controller->set_bdev(bdevs_, std::move(bdev_name));
  if (--entry.lookers == 0) entry.idle.set();
  co_return set;
}

Task<std::vector<ControllerInfo>> Target::list(std::string name) {
  std::vector<std::string> names;
  if (!name.empty()) {
    names.push_back(std::move(name));
  } else {
    for (const auto& [key, entry] : entries_) names.push_back(key);
  }
  std::vector<ControllerInfo> infos;
  for (const std::string& key : names) {
    // Looked up each time: controllers come and go while this waits for another one's thread.
    const auto found = entries_.find(key);
    if (found == entries_.end() || found->second->busy) continue;
    Entry& entry = *found->second;
    ++entry.lookers;
    infos.push_back(co_await entry.controller->info());
    infos.back().socket_path = absolute_directory_ + "/" + key;
    if (--entry.lookers == 0) entry.idle.set();
  }
  co_return infos;
}

}  // namespace sluice::vhost
