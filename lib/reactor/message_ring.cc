#include "lib/reactor/message_ring.h"

#include <rte_ring.h>

#include "lib/base/check.h"

namespace sluice {

MessageRing::MessageRing(unsigned capacity) {
  const ssize_t size = rte_ring_get_memsize(capacity);
  CHECK(size > 0);
  constexpr size_t kAlignment = 128;
  ring_.reset(static_cast<rte_ring*>(
      std::aligned_alloc(kAlignment, (static_cast<size_t>(size) + kAlignment - 1) & ~(kAlignment - 1))));
  CHECK(ring_ != nullptr);
  CHECK(rte_ring_init(ring_.get(), "messages", capacity, RING_F_SC_DEQ) == 0);
}

bool MessageRing::push(Message& message) { return rte_ring_mp_enqueue(ring_.get(), &message) == 0; }

size_t MessageRing::pop(Message** messages, size_t max) {
  return rte_ring_sc_dequeue_burst(ring_.get(), reinterpret_cast<void**>(messages), static_cast<unsigned>(max),
                                   nullptr);
}

bool MessageRing::empty() const {
  // As rte_ring_empty(), which reads without atomics what producers change meanwhile.
  return __atomic_load_n(&ring_->prod.tail, __ATOMIC_RELAXED) == __atomic_load_n(&ring_->cons.tail, __ATOMIC_RELAXED);
}

}  // namespace sluice
