#include "lib/bdev/aio/aio_context.h"

#include <sys/eventfd.h>

namespace sluice {

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
  auto* ring = reinterpret_cast<Ring*>(context_);
  const bool known =
      ring->magic == kRingMagic && ring->incompatible_features == 0 && ring->header_bytes == sizeof(Ring);
  ring_ = known ? ring : nullptr;
  return {};
}

size_t AioContext::ask_kernel(io_event* events, size_t max) const {
  timespec no_wait{};
  const int count = ::io_getevents(context_, 0, static_cast<long>(max), events, &no_wait);
  return count > 0 ? static_cast<size_t>(count) : 0;
}

}  // namespace sluice
