// Server: JSON-RPC on a UNIX socket. Event-driven: it costs nothing while nobody calls. One client's requests run in
// order, those of several clients side by side.
//
// Thread:    one lightweight thread, the application's.
// Ownership: owns the socket and its file; borrows the dispatcher.
// Limits:    limits.h. A client holds at most one request, one reply and one chunk of input.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "lib/base/intrusive_list.h"
#include "lib/base/log.h"
#include "lib/base/unique_fd.h"
#include "lib/thread/event_source.h"
#include "lib/thread/gate.h"
#include "lib/thread/timer.h"
#include "rpc/connection.h"
#include "rpc/dispatcher.h"
#include "rpc/limits.h"

namespace sluice::rpc {

class Server {
 public:
  struct Options {
    std::string path;
    mode_t mode = 0600;
    size_t max_clients = kMaxClients;
  };

  // Makes the socket; clients that connect wait until start().
  // Errors: those of listen_unix().
  static Result<std::unique_ptr<Server>> listen(Options options, Dispatcher& dispatcher);
  // The same with a socket that another server has given up; its file is left alone until start().
  static std::unique_ptr<Server> adopt(Options options, UniqueFd socket, Dispatcher& dispatcher);
  // Requires: close() or give_up() has completed.
  ~Server();

  // Begins to serve, on the present thread.
  Result<> start();
  // Takes no more requests, lets those that run end and be answered, and removes the socket's file. Once.
  Task<> close();
  // The same, but the socket and its file stay: clients that connect wait for the server that adopts it. Once.
  Task<UniqueFd> give_up();

  size_t clients() const { return clients_; }

 private:
  struct ClientTag;
  struct Client;

  class Listener : public EventSource {
   public:
    explicit Listener(Server& server) : server_(server) {}
    void on_event(uint32_t) override { server_.accept_all(); }

   private:
    Server& server_;
  };

  Server(Options options, UniqueFd socket, Dispatcher& dispatcher, bool owns_file);

  void stop_listening();
  Task<> end_clients();
  Result<> watch_listener();
  void accept_all();
  void admit(UniqueFd socket);
  Task<> serve(UniqueFd socket);

  const Options options_;
  UniqueFd socket_;
  bool owns_file_;
  Dispatcher& dispatcher_;
  Listener listener_;
  Timer accept_retry_;
  Gate gate_;
  List<Client, ClientTag> connected_;
  size_t clients_ = 0;
  LogLimiter accept_log_;
};

}  // namespace sluice::rpc
