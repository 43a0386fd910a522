// StoreTracer: tells what memory looked like after each instruction that changed it: where a process can be killed.
//
// While it traces, the processor stops after each instruction of this thread (the trap flag), and the watched memory is
// compared with what it was. Slow: a microsecond or two an instruction.
//
// Thread:    one tracer at a time in the process.
// Ownership: borrows what it watches.
// Source:    Intel's manual, volume 3, "Single-Step Exception Condition".
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace sluice::test {

class StoreTracer {
 public:
  using Image = std::vector<std::byte>;

  explicit StoreTracer(std::vector<std::span<std::byte>> watched);
  ~StoreTracer();

  // Runs step(), and returns what the memory was before it, and after each of its changes: all parts in one image.
  template <typename Step>
  std::vector<Image> trace(Step&& step) {
    begin();
    step();
    return end();
  }
  Image image() const;
  // Makes the memory what it was.
  void restore(const Image& image) const;

 private:
  void begin();
  std::vector<Image> end();

  std::vector<std::span<std::byte>> watched_;
};

}  // namespace sluice::test
