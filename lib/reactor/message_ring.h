// MessageRing: the bounded lock-free queue through which messages reach a reactor: many producers, one consumer.
// A DPDK rte_ring in our own memory; DPDK's environment layer is not used.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

#include "lib/thread/work.h"

struct rte_ring;

namespace sluice {

class MessageRing {
 public:
  // `capacity` is a power of two; one place less is usable. Aborts when memory for it is short.
  explicit MessageRing(unsigned capacity);

  // Any OS thread. False when full.
  bool push(Message& message);
  // The consumer only: up to `max` messages, oldest first; how many.
  size_t pop(Message** messages, size_t max);
  bool empty() const;

 private:
  struct Free {
    void operator()(rte_ring* ring) const { std::free(ring); }
  };
  std::unique_ptr<rte_ring, Free> ring_;
};

}  // namespace sluice
