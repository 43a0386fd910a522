// Connection: one client of the RPC server: requests come out of it one at a time, replies go in.
// Thread:    one lightweight thread.
// Ownership: owns its socket.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "lib/base/unique_fd.h"
#include "lib/thread/await.h"
#include "lib/thread/event_source.h"
#include "rpc/json_framer.h"

namespace sluice::rpc {

class Connection : public EventSource {
 public:
  explicit Connection(UniqueFd socket);
  ~Connection() override;

  Result<> watch();

  // The next request; nothing at the end of the stream, which is also where it can no longer be followed: then the
  // client has been told why.
  Task<std::optional<std::string>> read_request();
  // Sends it, in one write if the socket takes it whole. False when the client is gone or takes nothing any more.
  Task<bool> write(std::string_view bytes);
  // Ends a wait for the client: read_request() returns nothing.
  void hang_up();

 private:
  enum class Read { kSome, kEnd, kLater };

  void on_event(uint32_t events) override;
  Read read_some();
  // Why the stream cannot be followed any more; empty for its proper end.
  static std::string complaint(JsonFramer::Status status, bool inside_value);

  UniqueFd socket_;
  JsonFramer framer_;
  Event activity_;
  bool closing_ = false;
};

}  // namespace sluice::rpc
