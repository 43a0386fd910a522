// The seeds that a randomised test runs through, as the user asked for, and how to run a failed one again.
//   SLUICE_SIM_SEED=7       only this seed, with every line of its trace
//   SLUICE_SIM_SEEDS=1-5000 these seeds, however long they take
#pragma once

#include <cstdint>
#include <string_view>

namespace sluice {

class Seeds {
 public:
  // `usual` seeds where the user asks for none; where the code is slow (sanitizers, a busy machine) as many of them as
  // begin within `patience_ns`. `test` is the program below build/release/test and its filter, for replay().
  // While it lives, an abort or a sanitizer's report prints replay() of the seed that runs. One at a time (checked).
  Seeds(uint64_t usual, uint64_t patience_ns, std::string_view program, std::string_view filter);
  Seeds(const Seeds&) = delete;
  Seeds& operator=(const Seeds&) = delete;
  ~Seeds();

  // The next seed; false: that was the last. Counts them in runs().
  bool next();
  // Runs this seed, whichever next() would bring.
  void set(uint64_t seed);
  uint64_t seed() const { return seed_; }
  uint64_t runs() const { return runs_; }
  // The user wants to see the trace.
  bool print() const { return print_; }
  // "seed 7 has failed; to replay it: ...", until the next seed.
  const char* replay() const;

 private:
  std::string_view program_;
  std::string_view filter_;
  uint64_t seed_ = 0;
  uint64_t last_;
  uint64_t runs_ = 0;
  uint64_t end_ns_;
  bool print_ = false;
};

}  // namespace sluice
