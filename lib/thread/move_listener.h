// MoveListener: is told when its lightweight thread goes to another host: for what depends on the host.
// Thread: the lightweight thread; nothing of it runs between the two calls. Ends with the listener's destruction.
#pragma once

#include "lib/base/intrusive_list.h"

namespace sluice {

struct MoveTag;

class MoveListener : public ListHook<MoveTag> {
 public:
  virtual ~MoveListener() = default;
  // Still on the old host's OS thread.
  virtual void on_leave() {}
  // On the new one's.
  virtual void on_arrive() {}
};

}  // namespace sluice
