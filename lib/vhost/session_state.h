// SessionState: a front end's session at rest, between two back ends: what one has given up, the other goes on with.
//
// Nothing is in flight, all completions have been published, and the connection is between two messages. Kicks that
// come meanwhile stay in their descriptors, messages in the socket.
//
// Thread:    plain data.
// Ownership: owns its descriptors; the memory map owns those of its regions.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lib/base/unique_fd.h"
#include "lib/vhost/chain.h"
#include "lib/vhost/dirty_log.h"
#include "lib/vhost/inflight_region.h"
#include "lib/vhost/memory_map.h"
#include "lib/virtio/wire.h"

namespace sluice::vhost {

struct RingState {
  uint32_t index = 0;
  uint16_t size = 0;  // 0: not set yet, as what has no value
  std::optional<VringAddr> addresses;
  std::optional<uint32_t> base;  // in the form of SET_VRING_BASE
  std::optional<bool> enabled;
  bool started = false;
  RingFault fault = RingFault::kNone;
  UniqueFd kick;
  UniqueFd call;
  UniqueFd error;
};

// Not here: a device state that is just being transferred, which the front end is told has failed.
struct SessionState {
  UniqueFd socket;
  uint64_t features = 0;
  uint64_t protocol_features = 0;
  bool rings_enabled = false;
  bool writeback = true;
  uint64_t status = 0;
  UniqueFd backend_channel;
  std::shared_ptr<const MemoryMap> memory = std::make_shared<const MemoryMap>();
  std::shared_ptr<const InflightRegion> inflight;  // null: requests in flight are not tracked
  std::shared_ptr<DirtyLog> log;                   // null: there is none
  std::vector<RingState> rings;
};

// A controller without a back end: its socket, and the front end that is connected, if there is one.
struct ControllerState {
  std::string name;
  UniqueFd listener;
  std::optional<SessionState> session;
};

}  // namespace sluice::vhost
