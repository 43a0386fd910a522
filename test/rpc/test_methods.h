// Methods for tests of the dispatcher and the server.
#pragma once

#include "lib/thread/await.h"
#include "rpc/method.h"

namespace sluice::rpc::test {

struct Echo {
  std::string text;
};

inline Task<RpcResult> echo(Echo params) { co_return params.text; }
inline Task<RpcResult> refuse(NoParams) { co_return fail_rpc(ENODEV, "bdev 'x' does not exist"); }

// "echo" returns its text; "refuse" fails with ENODEV; "wait" returns once `event` is set.
inline void add_test_methods(MethodTable& table, Event& event) {
  table.add(make_method<Echo>({"echo", "Returns its text.", {"string", "the text"}, nothing(), {"old_echo"}},
                              {optional("text", &Echo::text, "what to return")}, echo));
  table.add(make_method<NoParams>({"refuse", "Fails.", kTrue, nothing()}, {}, refuse));
  struct Waiting {
    static Task<RpcResult> wait(Event& event) {
      co_await event.wait();
      co_return true;
    }
  };
  table.add(make_method<NoParams>({"wait", "Waits.", kTrue, nothing()}, {},
                                  [&event](NoParams) { return Waiting::wait(event); }));
}

}  // namespace sluice::rpc::test
