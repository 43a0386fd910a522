// One daemon takes the place of another: what the two say to each other. The new one asks by RPC, with a socket on
// which the old one connects and hands over. When the new one has made everything, it says so; the old one says "go"
// and ends. Until "go" the new one serves nobody. Whatever goes wrong before it, the old one takes everything back.
//
// Thread: any; these block, with limits, while there is nobody to be served.
// Source: docs/decisions/0019-planned-upgrade.md
#pragma once

#include <expected>
#include <string>

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"
#include "rpc/hand_over.h"

namespace sluice {

// --- The new one ---

// A connection on which the daemon with this RPC socket hands over. The error says what it says.
std::expected<UniqueFd, std::string> ask_for_hand_over(const std::string& rpc_path);
// Everything is ready to be served. Returns once the old one serves nobody any more. Errors: ETIMEDOUT, those of the
// socket; then it may still serve.
Result<> confirm_hand_over(int predecessor);

// --- The old one ---

// True: the successor serves. False, with a line in the log: it does not, and never will.
bool pass_on(UniqueFd successor, const rpc::HandOver& hand_over);

}  // namespace sluice
