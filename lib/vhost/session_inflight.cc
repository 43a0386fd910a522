// Session: the messages about the buffer in which requests in flight are noted.
#include "lib/vhost/session.h"

namespace sluice::vhost {

// Made for the front end, which hands it back before it starts the rings.
Task<Session::Outcome> Session::get_inflight_fd(WireMessage& message) {
  if ((protocol_features_ & kProtocolInflightShmfd) == 0)
    co_return Outcome{.result = fail(EINVAL, "INFLIGHT_SHMFD was not negotiated"), .has_reply = true};
  auto file = InflightRegion::make_file(payload_of<InflightDescription>(message), VirtQueue::wants_packed(features_));
  if (!file) co_return Outcome{.result = std::unexpected(file.error()), .has_reply = true};
  Outcome answer = Outcome::answer(file->description);
  answer.fd = std::move(file->fd);
  co_return answer;
}

// The same, or after a lost connection the old one. Rings look at it when they are started.
Task<Session::Outcome> Session::set_inflight_fd(WireMessage& message) {
  if ((protocol_features_ & kProtocolInflightShmfd) == 0)
    co_return Outcome{.result = fail(EINVAL, "INFLIGHT_SHMFD was not negotiated")};
  if (message.fds.size() != 1)
    co_return Outcome{.result = fail(EINVAL, "a buffer for requests in flight needs one descriptor")};
  bool running = false;
  co_await for_each_queue([&running](BlkQueue& queue) { running |= queue.running(); });
  if (running)
    co_return Outcome{.result = fail(EBUSY, "the buffer for requests in flight cannot change while a ring runs")};
  auto region =
      InflightRegion::map(payload_of<InflightDescription>(message), VirtQueue::wants_packed(features_), message.fds[0]);
  if (!region) co_return Outcome{.result = std::unexpected(region.error())};
  inflight_ = std::move(*region);
  co_return Outcome{};
}

}  // namespace sluice::vhost
