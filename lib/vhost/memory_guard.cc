#include "lib/vhost/memory_guard.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <mutex>
#include <utility>

#include "lib/base/check.h"

namespace sluice::vhost {
namespace {

// The handler may run on any thread at any moment, so it takes no lock: slots live in chunks that are never freed.
constexpr size_t kChunkSlots = 1024;
constexpr size_t kMaxChunks = 4096;
using Chunk = std::array<MemoryGuard::Slot, kChunkSlots>;

std::array<std::atomic<Chunk*>, kMaxChunks> chunks;
std::mutex slots_mutex;  // for taking and freeing
size_t first_free_hint = 0;

struct sigaction previous_action;

struct Found {
  MemoryGuard::Slot* slot = nullptr;
  uintptr_t start = 0;
  size_t bytes = 0;
};

Found find_slot(uintptr_t address) {
  for (const std::atomic<Chunk*>& entry : chunks) {
    Chunk* chunk = entry.load(std::memory_order_acquire);
    if (chunk == nullptr) return {};
    for (MemoryGuard::Slot& slot : *chunk) {
      // Read between two equal starts, so that start and size are of the same mapping, even if the slot is just being
      // given to another one.
      const uintptr_t start = slot.start.load(std::memory_order_acquire);
      const size_t bytes = slot.bytes.load(std::memory_order_acquire);
      if (start != 0 && address - start < bytes && slot.start.load(std::memory_order_relaxed) == start)
        return {&slot, start, bytes};
    }
  }
  return {};
}

}  // namespace

std::atomic<uint32_t> MemoryGuard::losses_{0};

void MemoryGuard::on_sigbus(int /*signal*/, siginfo_t* info, void* /*context*/) {
  const Found found = info->si_code == BUS_ADRERR ? find_slot(reinterpret_cast<uintptr_t>(info->si_addr)) : Found{};
  // The system call itself: what stands for mmap() under a sanitizer is not made for handlers.
  if (found.slot == nullptr || ::syscall(SYS_mmap, found.start, found.bytes, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == -1) {
    // Not ours: the access is repeated, and ends the process the way it would have without us.
    ::sigaction(SIGBUS, &previous_action, nullptr);
    return;
  }
  found.slot->lost.store(true, std::memory_order_relaxed);
  losses_.fetch_add(1, std::memory_order_relaxed);
}

MemoryGuard::Slot& MemoryGuard::take_slot() {
  const std::lock_guard lock(slots_mutex);
  static bool installed = false;
  if (!std::exchange(installed, true)) {
    struct sigaction action{};
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    CHECK(::sigaction(SIGBUS, &action, &previous_action) == 0);
  }
  for (size_t i = first_free_hint;; ++i) {
    CHECK(i < kChunkSlots * kMaxChunks);
    std::atomic<Chunk*>& chunk = chunks[i / kChunkSlots];
    if (chunk.load(std::memory_order_relaxed) == nullptr) chunk.store(new Chunk, std::memory_order_release);
    Slot& slot = (*chunk.load(std::memory_order_relaxed))[i % kChunkSlots];
    if (slot.bytes.load(std::memory_order_relaxed) == 0) {
      slot.bytes.store(1, std::memory_order_relaxed);  // taken; the caller fills it in
      first_free_hint = i + 1;
      return slot;
    }
  }
}

MemoryGuard::MemoryGuard(void* address, size_t bytes) : slot_(take_slot()) {
  CHECK(bytes > 0);
  slot_.lost.store(false, std::memory_order_relaxed);
  slot_.bytes.store(bytes, std::memory_order_relaxed);
  slot_.start.store(reinterpret_cast<uintptr_t>(address), std::memory_order_release);
}

MemoryGuard::~MemoryGuard() {
  slot_.start.store(0, std::memory_order_release);
  const std::lock_guard lock(slots_mutex);
  slot_.bytes.store(0, std::memory_order_relaxed);
  first_free_hint = 0;
}

}  // namespace sluice::vhost
