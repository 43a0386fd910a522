#include "lib/reactor/message_ring.h"

#include <rte_ring.h>

#include "lib/base/check.h"

// ThreadSanitizer cannot follow the ring: its two sides access the same word in different sizes. It is told of the
// hand-over of messages, and does not look at the ring's own slots.
#if __has_feature(thread_sanitizer)
#include <sanitizer/tsan_interface.h>
#else
#define __tsan_acquire(address) static_cast<void>(0)
#define __tsan_release(address) static_cast<void>(0)
#endif

namespace sluice {

MessageRing::MessageRing(unsigned capacity) {
  const ssize_t size = rte_ring_get_memsize(capacity);
  CHECK(size > 0);
  constexpr size_t kAlignment = 128;
  ring_.reset(static_cast<rte_ring*>(
      std::aligned_alloc(kAlignment, (static_cast<size_t>(size) + kAlignment - 1) & ~(kAlignment - 1))));
  CHECK(ring_ != nullptr);
  // RTS: a producer does not wait for those that took a place before it. In the default mode all spin when one of them
  // loses its core between taking its place and filling it: a time slice per message, when there are more than cores.
  CHECK(rte_ring_init(ring_.get(), "messages", capacity, RING_F_MP_RTS_ENQ | RING_F_SC_DEQ) == 0);
}

[[clang::no_sanitize("thread")]] bool MessageRing::push(Message& message) {
  __tsan_release(ring_.get());
  void* const place = &message;
  return rte_ring_mp_rts_enqueue_bulk(ring_.get(), &place, 1, nullptr) == 1;
}

[[clang::no_sanitize("thread")]] size_t MessageRing::pop(Message** messages, size_t max) {
  const size_t count =
      rte_ring_sc_dequeue_burst(ring_.get(), reinterpret_cast<void**>(messages), static_cast<unsigned>(max), nullptr);
  __tsan_acquire(ring_.get());
  return count;
}

bool MessageRing::empty() const {
  // As rte_ring_empty(), which reads without atomics what producers change meanwhile.
  return __atomic_load_n(&ring_->prod.tail, __ATOMIC_RELAXED) == __atomic_load_n(&ring_->cons.tail, __ATOMIC_RELAXED);
}

}  // namespace sluice
