#include "lib/thread/thread_directory.h"

namespace sluice {

Result<LwThread*> ThreadDirectory::create(std::string name, const CpuMask& cpumask) {
  auto host = placer_.place(cpumask);
  if (!host) return std::unexpected(host.error());
  const uint64_t id = next_id_++;
  auto thread = std::make_unique<LwThread>(std::move(name), id, cpumask, **host);
  LwThread* made = thread.get();
  owned_[id] = std::move(thread);
  list(*made);
  return made;
}

Task<> ThreadDirectory::destroy(LwThread& thread) {
  unlist(thread);
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

}  // namespace sluice
