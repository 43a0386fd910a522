#include "lib/thread/thread_directory.h"

#include <cerrno>

namespace sluice {

Result<LwThread*> ThreadDirectory::create(std::string name, const CpuMask& cpumask) {
  auto host = placer_.place(cpumask);
  if (!host) return std::unexpected(host.error());
  const uint64_t id = next_id_++;
  auto thread = std::make_unique<LwThread>(std::move(name), id, cpumask, **host);
  LwThread* made = thread.get();
  owned_[id].thread = std::move(thread);
  list(*made);
  return made;
}

Task<> ThreadDirectory::destroy(LwThread& thread) {
  unlist(thread);  // from here on nobody moves it
  if (Owned& owned = owned_.at(thread.id()); owned.moving) co_await owned.moved.wait();
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

Task<Result<>> ThreadDirectory::move(LwThread& thread, ThreadHost& destination) {
  const auto found = owned_.find(thread.id());
  if (found == owned_.end()) co_return fail(EBUSY, "a reactor's own thread cannot move");
  Owned& owned = found->second;
  if (owned.moving || find(thread.id()) == nullptr) co_return fail(EBUSY, "the thread is being moved, or is ending");
  ThreadHost& origin = thread.host();  // only this function changes it
  if (&origin == &destination) co_return Result<>{};
  owned.moving = true;
  const bool let_go = co_await call_on(origin.home(), [&thread, &origin, &destination] {
    if (!thread.can_move()) return false;
    origin.let_go(thread, destination);
    return true;
  });
  if (let_go) {
    co_await flush_messages_to(origin);
    co_await call_on(origin.home(), [&thread, &origin] { origin.hand_over(thread); });
    co_await call_on(destination.home(), [&thread, &destination] { destination.take_over(thread); });
  }
  owned.moving = false;
  if (find(thread.id()) == nullptr) owned.moved.set();
  if (!let_go) co_return fail(EBUSY, "the thread uses a device whose channels cannot move");
  co_return Result<>{};
}

// The messages of one host to another arrive in order: what follows all others to `host` has them before it.
Task<> ThreadDirectory::flush_messages_to(ThreadHost& host) {
  const std::vector<ThreadHost*> hosts = placer_.hosts();
  size_t left = hosts.size();
  Event flushed;
  for (ThreadHost* sender : hosts) {
    start(
        [](ThreadHost& from, ThreadHost& to) -> Task<> {
          co_await call_on(from.home(), [&to]() -> Task<> { co_await call_on(to.home(), [] {}); });
        }(*sender, host),
        [&left, &flushed] {
          if (--left == 0) flushed.set();
        });
  }
  co_await flushed.wait();
}

Task<Result<>> ThreadDirectory::set_cpumask(LwThread& thread, CpuMask cpumask) {
  // Also where the mask has its core: that is how others see which core a host stands for.
  if (!owned_.contains(thread.id())) co_return fail(EBUSY, "a reactor's own thread keeps its core");
  auto place = placer_.place(cpumask);
  if (!place) co_return std::unexpected(place.error());
  if ((thread.host().home().cpumask() & cpumask).none()) {
    if (auto moved = co_await move(thread, **place); !moved) co_return moved;
  }
  co_await call_on(thread, [&thread, &cpumask] { thread.set_cpumask(cpumask); });
  co_return Result<>{};
}

}  // namespace sluice
