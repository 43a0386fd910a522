#include "lib/bdev/aio/aio_context.h"

#include <libaio.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <iterator>

namespace sluice {
namespace {

constexpr uint32_t kRingMagic = 0xa10a10a1;

}  // namespace

// The kernel's, mapped where io_context_t points to.
struct AioContext::Ring {
  uint32_t id;
  uint32_t capacity;
  uint32_t head;  // ours
  uint32_t tail;  // the kernel's
  uint32_t magic;
  uint32_t compatible_features;
  uint32_t incompatible_features;
  uint32_t header_bytes;
  io_event events[];

  bool known() const { return magic == kRingMagic && incompatible_features == 0 && header_bytes == sizeof(Ring); }
};
static_assert(sizeof(io_event) == 32);

const AioSystem& AioSystem::kernel() {
  static constexpr AioSystem kKernel{.setup = ::io_setup, .submit = ::io_submit};
  return kKernel;
}

AioContext::~AioContext() {
  if (is_open()) ::io_destroy(context_);
}

Result<> AioContext::open(int max_in_flight) {
  UniqueFd notification(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!notification) return fail_errno("cannot create an eventfd");
  if (const int error = system_.setup(max_in_flight, &context_); error != 0) {
    context_ = nullptr;
    return fail(-error, "cannot set up asynchronous I/O (see the limit fs.aio-max-nr)");
  }
  notification_ = std::move(notification);
  static_assert(sizeof(Ring) == 32);
  auto* ring = reinterpret_cast<Ring*>(context_);
  ring_ = ring->known() ? ring : nullptr;
  return {};
}

bool AioContext::has_completions() const {
  return ring_ != nullptr && ring_->head != __atomic_load_n(&ring_->tail, __ATOMIC_ACQUIRE);
}

size_t AioContext::take_completions(std::span<AioCompletion> completions) {
  if (ring_ == nullptr) return ask_kernel(completions);
  // The acquire pairs with the kernel's barrier between an event and the tail that covers it.
  const uint32_t tail = __atomic_load_n(&ring_->tail, __ATOMIC_ACQUIRE);
  uint32_t head = ring_->head;
  size_t count = 0;
  for (; head != tail && count < completions.size(); ++count) {
    const io_event& event = ring_->events[head];
    completions[count] = {.data = event.data, .result = static_cast<int64_t>(event.res)};
    if (++head == ring_->capacity) head = 0;
  }
  // The release: the kernel may write over the events from here on.
  if (count > 0) __atomic_store_n(&ring_->head, head, __ATOMIC_RELEASE);
  return count;
}

size_t AioContext::ask_kernel(std::span<AioCompletion> completions) const {
  io_event events[64];
  timespec no_wait{};
  const size_t max = std::min(completions.size(), std::size(events));
  const int count = ::io_getevents(context_, 0, static_cast<long>(max), events, &no_wait);
  for (int i = 0; i < count; ++i) {
    completions[static_cast<size_t>(i)] = {.data = events[i].data, .result = static_cast<int64_t>(events[i].res)};
  }
  return count > 0 ? static_cast<size_t>(count) : 0;
}

}  // namespace sluice
