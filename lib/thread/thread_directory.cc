#include "lib/thread/thread_directory.h"

#include <cerrno>

namespace sluice {
namespace {

constexpr Error kHomeThread{EBUSY, "a reactor's own thread cannot move"};
constexpr Error kChanging{EBUSY, "the thread is being moved, or is ending"};

Task<> call_nothing_on(ThreadHost& host) {
  co_await call_on(host.home(), [] {});
}

}  // namespace

Result<LwThread*> ThreadDirectory::create(std::string name, const CpuMask& cpumask) {
  auto host = placer_.place(cpumask);
  if (!host) return std::unexpected(host.error());
  const uint64_t id = next_id_++;
  auto thread = std::make_unique<LwThread>(std::move(name), id, cpumask, **host);
  LwThread* made = thread.get();
  Owned& owned = owned_[id];
  owned.thread = std::move(thread);
  owned.cpumask = cpumask;
  list(*made);
  return made;
}

Task<> ThreadDirectory::destroy(LwThread& thread) {
  unlist(thread);  // from here on nobody moves it
  Owned& owned = owned_.at(thread.id());
  while (owned.changing) co_await owned.settled.wait();
  // The host answers when it has let go of the thread: only then may it be freed, as the host still works on it while
  // the message that ends it runs.
  struct Exit : Message {
    Event gone;
  } exit;
  exit.run = [](Work& work) { static_cast<Exit&>(work).gone.set(); };
  exit.target = LwThread::current();
  post_to(thread, [&thread, &exit] { thread.exit(exit); });
  co_await exit.gone.wait();
  owned_.erase(thread.id());
}

LwThread* ThreadDirectory::find(uint64_t id) const {
  const auto found = threads_.find(id);
  return found == threads_.end() ? nullptr : found->second;
}

void ThreadDirectory::settle(Owned& owned) {
  owned.changing = false;
  owned.settled.notify_all();
}

Task<Result<>> ThreadDirectory::move(LwThread& thread, ThreadHost& destination) {
  const auto found = owned_.find(thread.id());
  if (found == owned_.end()) co_return std::unexpected(kHomeThread);
  Owned& owned = found->second;
  if (owned.changing || find(thread.id()) == nullptr) co_return std::unexpected(kChanging);
  owned.changing = true;
  const Result<> moved = co_await carry(thread, destination);
  settle(owned);
  co_return moved;
}

Task<Result<>> ThreadDirectory::carry(LwThread& thread, ThreadHost& destination) {
  ThreadHost& origin = thread.host();  // only this function changes it
  if (&origin == &destination) co_return Result<>{};
  if (&thread == LwThread::current()) co_return fail(EBUSY, "a thread cannot move itself");
  const bool moved = co_await call_on(origin.home(), [&] { return hand_over(thread, origin, destination); });
  if (!moved) co_return fail(EBUSY, "the thread uses a device whose channels cannot move");
  co_return Result<>{};
}

// On the old host. The thread does not run between letting go and taking over: no message more than it takes.
Task<bool> ThreadDirectory::hand_over(LwThread& thread, ThreadHost& origin, ThreadHost& destination) const {
  if (!thread.can_move()) co_return false;
  origin.let_go(thread, destination);
  co_await flush_messages();
  origin.hand_over(thread);
  co_await call_on(destination.home(), [&thread, &destination] { destination.take_over(thread); });
  co_return true;
}

// The messages of one host to another arrive in order: its answer comes after all that it had for this one.
Task<> ThreadDirectory::flush_messages() const {
  const std::vector<ThreadHost*> hosts = placer_.hosts();
  size_t left = 1;
  Event flushed;
  const auto count = [&left, &flushed] {
    if (--left == 0) flushed.set();
  };
  for (ThreadHost* sender : hosts) {
    if (sender->is_current()) continue;
    ++left;
    start(call_nothing_on(*sender), count);
  }
  count();
  co_await flushed.wait();
}

Task<Result<>> ThreadDirectory::set_cpumask(LwThread& thread, CpuMask cpumask) {
  const uint64_t id = thread.id();
  const auto found = owned_.find(id);
  // Its mask is what its host is known by.
  if (found == owned_.end()) co_return std::unexpected(kHomeThread);
  Owned& owned = found->second;
  // A move to where the new mask does not allow must not overtake this.
  while (owned.changing) co_await owned.settled.wait();
  if (find(id) == nullptr) co_return std::unexpected(kChanging);
  auto place = placer_.place(cpumask);
  if (!place) co_return std::unexpected(place.error());
  owned.changing = true;
  Result<> moved;
  if ((thread.host().home().cpumask() & cpumask).none()) moved = co_await carry(thread, **place);
  if (moved) {
    owned.cpumask = cpumask;
    co_await call_on(thread, [&thread, &cpumask] { thread.set_cpumask(cpumask); });
  }
  settle(owned);
  co_return moved;
}

const CpuMask& ThreadDirectory::cpumask(const LwThread& thread) const {
  const auto found = owned_.find(thread.id());
  return found == owned_.end() ? thread.cpumask() : found->second.cpumask;
}

}  // namespace sluice
