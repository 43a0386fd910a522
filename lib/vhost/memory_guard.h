// MemoryGuard: keeps the process alive when a guest's memory file shrinks under its mapping.
//
// An access to pages that the file no longer has raises SIGBUS. The guard's handler puts anonymous zero pages in the
// place of the whole mapping and lets the access go on; whoever serves that guest then sees lost() and gives it up.
// Faults elsewhere end the process as ever.
//
// Thread: any. The handler is installed with the first guard, and stays.
// Source: mmap(2), "SIGBUS"; signal-safety(7).
#pragma once

#include <signal.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace sluice::vhost {

class MemoryGuard {
 public:
  // Guards [address, address + bytes), which is one mapping, while this exists.
  MemoryGuard(void* address, size_t bytes);
  MemoryGuard(const MemoryGuard&) = delete;
  MemoryGuard& operator=(const MemoryGuard&) = delete;
  // Before the mapping is taken away.
  ~MemoryGuard();

  // Whether the mapping's contents have been lost.
  bool lost() const { return slot_.lost.load(std::memory_order_relaxed); }

  // Counts losses in the process: lost() needs to be looked at only when this has changed.
  static uint32_t losses() { return losses_.load(std::memory_order_relaxed); }

  struct Slot {
    std::atomic<uintptr_t> start{0};  // 0: free
    std::atomic<size_t> bytes{0};
    std::atomic<bool> lost{false};
  };

 private:
  static void on_sigbus(int signal, siginfo_t* info, void* context);
  static Slot& take_slot();

  static std::atomic<uint32_t> losses_;
  Slot& slot_;
};

}  // namespace sluice::vhost
