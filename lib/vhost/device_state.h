// DeviceState: what a back end tells the one that serves the guest next, beyond what the front end itself passes on.
//
// Source: docs/format-device-state.md; Vhost-user Protocol, "Migrating back-end state".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "lib/base/result.h"

namespace sluice::vhost {

struct DeviceState {
  uint64_t capacity = 0;  // sectors
  uint32_t block_size = 0;
  bool readonly = false;
  bool writeback = true;  // the write cache setting
};

inline constexpr size_t kDeviceStateBytes = 32;

std::array<std::byte, kDeviceStateBytes> encode(const DeviceState& state);
// Errors: EINVAL (it is not one of ours, of another version, or damaged).
Result<DeviceState> decode(std::span<const std::byte> bytes);

}  // namespace sluice::vhost
