#include "test/support/allocation_count.h"

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

std::atomic<uint64_t> count;

}  // namespace

uint64_t sluice::allocation_count() { return count.load(std::memory_order_relaxed); }

#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)

// The sanitizer has replaced the operators already; it tells of malloc() as well.
#include <sanitizer/allocator_interface.h>

namespace {

void on_malloc(const volatile void*, size_t) { count.fetch_add(1, std::memory_order_relaxed); }
void on_free(const volatile void*) {}
[[maybe_unused]] const int installed = __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);

}  // namespace

#else

namespace {

void* take(size_t size, size_t alignment) {
  count.fetch_add(1, std::memory_order_relaxed);
  // aligned_alloc wants whole multiples of the alignment.
  const size_t rounded = (size + alignment - 1) / alignment * alignment;
  void* taken = alignment <= alignof(std::max_align_t) ? std::malloc(size) : std::aligned_alloc(alignment, rounded);
  if (taken == nullptr) std::abort();
  return taken;
}

}  // namespace

// The forms for arrays and without exceptions call these.
void* operator new(size_t size) { return take(size, 1); }
void* operator new(size_t size, std::align_val_t alignment) { return take(size, static_cast<size_t>(alignment)); }
void operator delete(void* taken) noexcept { std::free(taken); }
void operator delete(void* taken, size_t) noexcept { std::free(taken); }
void operator delete(void* taken, std::align_val_t) noexcept { std::free(taken); }
void operator delete(void* taken, size_t, std::align_val_t) noexcept { std::free(taken); }

#endif
