// Mutator: another thread that changes bytes of shared memory, over and over, while what is tested looks at them.
//
// Thread:    begin() and end() by one thread, in turns.
// Ownership: borrows the pokes from begin() to end(). Its thread ends with the process, and so must the object.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace sluice {

class Mutator {
 public:
  struct Poke {
    uint8_t* at;
    uint8_t value;
  };

  Mutator() : thread_([this] { run(); }) { thread_.detach(); }

  void begin(const std::vector<Poke>& pokes) {
    pokes_ = &pokes;
    wanted_ = true;
    wanted_.notify_one();
  }
  // Nothing is changed any more once this returns.
  void end() {
    wanted_ = false;
    while (busy_) std::this_thread::yield();
  }

 private:
  [[noreturn]] void run() {
    for (;;) {
      wanted_.wait(false);
      // Sequentially consistent, all four: either this sees that it is not wanted any more, or end() sees it busy.
      busy_ = true;
      while (wanted_) {
        for (const Poke& poke : *pokes_) __atomic_fetch_xor(poke.at, poke.value, __ATOMIC_RELAXED);
      }
      busy_ = false;
    }
  }

  std::atomic<bool> wanted_ = false;
  std::atomic<bool> busy_ = false;
  const std::vector<Poke>* pokes_ = nullptr;
  std::thread thread_;
};

}  // namespace sluice
