#include "lib/vhost/chain.h"

#include <array>

namespace sluice::vhost {

const char* to_string(RingFault fault) {
  static constexpr std::array<const char*, 20> kText = {
      "none",
      "the available index is further ahead than the ring is long",
      "a descriptor index is outside the ring",
      "a descriptor chain is too long or loops",
      "a buffer lies outside the guest's memory, or in too many pieces of it",
      "an indirect descriptor table is not valid",
      "a device-readable descriptor follows a device-writable one",
      "a request's header is incomplete",
      "a request has no byte for its status",
      "a request has too much data",
      "more requests are in flight than the ring has descriptors",
      "the guest's memory has been cut off",
      "the call descriptor blocks",
      "a buffer's id is outside the ring",
      "a buffer has the id of one that is in flight",
      "a descriptor of an available chain is not available",
      "the log of written pages has been cut off",
      "the buffer for requests in flight has no room for the ring",
      "the buffer for requests in flight is damaged",
      "the buffer for requests in flight has been cut off",
  };
  static_assert(kText.size() == static_cast<size_t>(kLastRingFault) + 1);
  return kText[static_cast<size_t>(fault)];
}

}  // namespace sluice::vhost
