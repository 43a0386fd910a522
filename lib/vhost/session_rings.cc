// Session: the messages about rings.
#include <bit>

#include "lib/vhost/passed_fd.h"
#include "lib/vhost/session.h"

namespace sluice::vhost {
namespace {

Result<> no_such_ring() {
  return fail(EINVAL, "a ring's index is out of range, or beyond those that descriptors are left for");
}

// The ring's index and the descriptor, or none, of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR.
struct RingFd {
  uint32_t index;
  UniqueFd fd;
};

Result<RingFd> ring_fd_of(WireMessage& message, bool is_kick) {
  const uint64_t value = payload_of<U64Payload>(message).value;
  const bool none = (value & kVringNoFdFlag) != 0;
  if ((value & ~(kVringIndexMask | kVringNoFdFlag)) != 0) return fail(EINVAL, "a ring's index is out of range");
  if (none != message.fds.empty())
    return fail(EINVAL,
                none ? "a descriptor came with a message that says there is none" : "a message lacks its descriptor");
  RingFd ring{.index = static_cast<uint32_t>(value & kVringIndexMask), .fd = {}};
  if (none) return ring;
  if (auto taken = is_kick ? accept_kick(message.fds[0]) : accept_call(message.fds[0]); !taken)
    return std::unexpected(taken.error());
  ring.fd = std::move(message.fds[0]);
  return ring;
}

}  // namespace

Task<Session::Outcome> Session::set_vring_num(WireMessage& message) {
  const auto [index, num] = payload_of<VringState>(message);
  BlkQueue* ring = co_await queue(index);
  if (ring == nullptr) co_return Outcome{.result = no_such_ring()};
  co_return Outcome{.result = co_await run_on(ring->owner(), [ring, size = num]() -> Result<> {
                      if (ring->running()) return fail(EBUSY, "a ring's size cannot change while it runs");
                      if (size > kMaxQueueSize || !std::has_single_bit(size))
                        return fail(EINVAL, "a ring's size is not a power of two up to 1024");
                      ring->set_size(static_cast<uint16_t>(size));
                      return {};
                    })};
}

Task<Session::Outcome> Session::set_vring_addr(WireMessage& message) {
  const auto addresses = payload_of<VringAddr>(message);
  BlkQueue* ring = co_await queue(addresses.index);
  if (ring == nullptr) co_return Outcome{.result = no_such_ring()};
  // Kept as they are: the memory they are in may come later, and change while the ring runs.
  co_await run_on(ring->owner(), [ring, &addresses, map = memory_] {
    ring->set_addresses(addresses);
    ring->move_to(map);
  });
  co_await update(*ring);
  co_return Outcome{};
}

Task<Session::Outcome> Session::set_vring_base(WireMessage& message) {
  const auto [index, num] = payload_of<VringState>(message);
  BlkQueue* ring = co_await queue(index);
  if (ring == nullptr) co_return Outcome{.result = no_such_ring()};
  // Of a split ring an index; of a packed one two positions.
  const uint32_t limit = (features_ & kFeatureRingPacked) != 0 ? UINT32_MAX : UINT16_MAX;
  co_return Outcome{.result = co_await run_on(ring->owner(), [ring, base = num, limit]() -> Result<> {
                      if (ring->running()) return fail(EBUSY, "a ring's base cannot change while it runs");
                      if (base > limit) return fail(EINVAL, "a ring's base is out of range");
                      ring->set_base(base);
                      return {};
                    })};
}

Task<Session::Outcome> Session::get_vring_base(WireMessage& message) {
  const uint32_t index = payload_of<VringState>(message).index;
  BlkQueue* ring = co_await queue(index);
  if (ring == nullptr) co_return Outcome{.result = no_such_ring(), .has_reply = true};
  const uint32_t base = co_await run_on(ring->owner(), [ring] { return ring->end(); });
  co_return Outcome::answer(VringState{.index = index, .num = base});
}

Task<Session::Outcome> Session::set_vring_kick(WireMessage& message) {
  auto given = ring_fd_of(message, true);
  if (!given) co_return Outcome{.result = std::unexpected(given.error())};
  BlkQueue* ring = co_await queue(given->index);
  if (ring == nullptr) co_return Outcome{.result = no_such_ring()};
  co_await run_on(ring->owner(), [ring, &fd = given->fd] { return ring->start(std::move(fd)); });
  co_await update(*ring);
  co_return Outcome{};
}

Task<Session::Outcome> Session::set_vring_call(WireMessage& message) {
  auto given = ring_fd_of(message, false);
  if (!given) co_return Outcome{.result = std::unexpected(given.error())};
  BlkQueue* ring = co_await queue(given->index);
  if (ring == nullptr) co_return Outcome{.result = no_such_ring()};
  co_await run_on(ring->owner(), [ring, &fd = given->fd] { ring->set_call(std::move(fd)); });
  co_return Outcome{};
}

Task<Session::Outcome> Session::set_vring_err(WireMessage& message) {
  auto given = ring_fd_of(message, false);
  if (!given) co_return Outcome{.result = std::unexpected(given.error())};
  BlkQueue* ring = co_await queue(given->index);
  if (ring == nullptr) co_return Outcome{.result = no_such_ring()};
  co_await run_on(ring->owner(), [ring, &fd = given->fd] { ring->set_error(std::move(fd)); });
  co_return Outcome{};
}

// Also for rings that were never set up: front ends enable all there are.
Task<Session::Outcome> Session::set_vring_enable(WireMessage& message) {
  const auto [index, num] = payload_of<VringState>(message);
  BlkQueue* ring = co_await queue(index);
  if (ring == nullptr) co_return Outcome{.result = no_such_ring()};
  if (num > 1) co_return Outcome{.result = fail(EINVAL, "a ring is enabled with 1 and disabled with 0")};
  co_await run_on(ring->owner(), [ring, enabled = num == 1] { ring->set_enabled(enabled); });
  co_await update(*ring);
  co_return Outcome{};
}

}  // namespace sluice::vhost
