// Descriptors that a front end has passed to be kept: only of kinds that can neither hold us up nor hold what keeps
// its own session alive.
//
// A session ends when its connection does, which is when nobody has the front end's end of it any more. A front end
// that is gone must not have left it with us: as a call descriptor, in the queue of a socket that is one, or in
// something else that refers to files.
//
// Thread: any.
// Source: Vhost-user Protocol, "VHOST_USER_SET_VRING_KICK" and the like; unix(7).
#pragma once

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"

namespace sluice::vhost {

// For SET_VRING_KICK: an eventfd. It is watched by its edges and never read, which a pipe, say, would not bear for
// long.
Result<> accept_kick(const UniqueFd& fd);
// For SET_VRING_CALL and SET_VRING_ERR: an eventfd, a pipe, or an end of a pair of sockets (UML's are). Made
// non-blocking; a front end can undo that, which guarded_write() survives.
Result<> accept_call(const UniqueFd& fd);
// For SET_BACKEND_REQ_FD: an end of a pair of sockets. Nothing can be received from it any more.
Result<> accept_channel(const UniqueFd& fd);

}  // namespace sluice::vhost
