// Random: a small, fast source of random numbers for choosing offsets; the same sequence for the same seed.
// Source: wyrand (Wang Yi), two multiplications; passes the usual statistical tests.
#pragma once

#include <cstdint>

namespace sluice::bdevperf {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    state_ += 0xa0761d6478bd642f;
    const unsigned __int128 product = static_cast<unsigned __int128>(state_) * (state_ ^ 0xe7037ed1a0b428db);
    return static_cast<uint64_t>(product >> 64) ^ static_cast<uint64_t>(product);
  }

  // Maps a random number to 0 .. count - 1 by its upper bits, without a division. The lower bits stay free for other
  // use as long as count is below 2^32.
  static uint64_t scale(uint64_t random, uint64_t count) {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(random) * count >> 64);
  }
  uint64_t below(uint64_t count) { return scale(next(), count); }

 private:
  uint64_t state_;
};

}  // namespace sluice::bdevperf
