// HandOver: all that a daemon leaves to the one that takes its place, and its form on a UNIX socket: JSON, and the
// descriptors that it refers to by number.
//
// Thread: plain data. Sending and receiving block, no longer than the socket's own timeouts.
// Source: docs/decisions/0019-planned-upgrade.md
#pragma once

#include <json/value.h>

#include <expected>
#include <string>
#include <vector>

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"
#include "lib/vhost/session_state.h"

namespace sluice::rpc {

struct HandOver {
  Json::Value config;  // {"subsystems": [...]}
  std::string vhost_directory;
  std::string rpc_path;
  UniqueFd rpc_listener;
  std::string state_path;    // of the state directory; empty: none is kept
  UniqueFd state_directory;  // locked
  std::vector<vhost::ControllerState> controllers;
};

// The descriptors stay the sender's as well.
Result<> send_hand_over(int socket, const HandOver& hand_over);
// Guest memory is mapped. The error says what is wrong: the sender may be of another version.
std::expected<HandOver, std::string> receive_hand_over(int socket);

}  // namespace sluice::rpc
