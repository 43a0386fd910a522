#include "lib/reactor/reactor_group.h"

namespace sluice {
namespace {

// Home threads take their ids from the top, out of the way of those that ThreadDirectory counts from 1.
constexpr uint64_t kFirstHomeId = uint64_t{1} << 32;

}  // namespace

Result<std::unique_ptr<ReactorGroup>> ReactorGroup::create(const CpuMask& mask, PollMode mode) {
  if (mask.none()) return fail(EINVAL, "the core mask is empty");
  if ((mask & CpuMask::available()) != mask)
    return fail(EINVAL, "the core mask names a core that this process may not use");
  std::unique_ptr<ReactorGroup> group(new ReactorGroup(mask, mode));
  for (uint32_t lcore = 0; lcore < CpuMask::kMaxCpus; ++lcore) {
    if (!mask.test(lcore)) continue;
    auto reactor = Reactor::create(lcore, group->reactors_.size(), mask.count(), kFirstHomeId + lcore);
    if (!reactor) return std::unexpected(reactor.error());
    (*reactor)->set_mode(mode);
    group->reactors_.push_back(std::move(*reactor));
  }
  return group;
}

ReactorGroup::~ReactorGroup() {
  request_stop();
  join();
}

void ReactorGroup::start() {
  for (const auto& reactor : reactors_) os_threads_.emplace_back([&reactor = *reactor] { reactor.run(); });
}

void ReactorGroup::request_stop() {
  for (const auto& reactor : reactors_) reactor->request_stop();
}

void ReactorGroup::join() {
  for (std::thread& thread : os_threads_) thread.join();
  os_threads_.clear();
}

Result<ThreadHost*> ReactorGroup::place(const CpuMask& cpumask) {
  for (size_t tried = 0; tried < reactors_.size(); ++tried) {
    Reactor& reactor = *reactors_[next_];
    next_ = (next_ + 1) % reactors_.size();
    if (cpumask.test(reactor.lcore())) return &reactor;
  }
  return fail(EINVAL, "no reactor runs on a core of this mask");
}

std::vector<ThreadHost*> ReactorGroup::hosts() const {
  std::vector<ThreadHost*> hosts;
  for (const auto& reactor : reactors_) hosts.push_back(reactor.get());
  return hosts;
}

Reactor* ReactorGroup::find(uint32_t lcore) const {
  for (const auto& reactor : reactors_) {
    if (reactor->lcore() == lcore) return reactor.get();
  }
  return nullptr;
}

}  // namespace sluice
