// How many file descriptors the process may still open, and who may have them: those that guests cause to be open must
// not use up what the process needs for its own work (files of stores, RPC clients), nor the few that a new guest
// needs.
//
// Nothing is counted: the kernel gives the lowest number that is free, so that as many as a new one's number are open.
// Thread: any.
// Source: open(2), getrlimit(2).
#pragma once

#include <cstdint>

#include "lib/base/result.h"

namespace sluice {

enum class DescriptorRoom : uint8_t {
  kPlenty,   // less than three quarters of the limit are used
  kScarce,   // only for those who have few
  kReserve,  // the last twentieth: only for the process itself
};

// Where a new descriptor, of this number, lies.
DescriptorRoom descriptor_room(int fd);
// Where the next one would. Errors: those of dup(2), EMFILE above all.
Result<DescriptorRoom> next_descriptor_room(int any_open_fd);

}  // namespace sluice
