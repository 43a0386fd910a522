// Daemon: the parts of sluice-vhost, put together.
#pragma once

#include <sys/types.h>

#include <string>

#include "lib/base/cpu_mask.h"
#include "lib/thread/thread_host.h"

namespace sluice {

struct DaemonOptions {
  CpuMask cpumask;
  PollMode mode = PollMode::kAdaptive;
  std::string vhost_directory = ".";
  mode_t vhost_socket_mode = 0600;
  std::string rpc_socket = "/var/tmp/sluice.sock";
  mode_t rpc_socket_mode = 0600;
  std::string config;     // empty: none
  std::string state_dir;  // empty: nothing is kept
  // The RPC socket of a daemon whose place this one takes, with its guests, sockets, directory and configuration.
  // Empty: none.
  std::string upgrade_from;
};

// Runs until SIGINT, SIGTERM or SIGHUP; a second one ends the process at once. The result is the process's: 0 after a
// clean end; 1 when it could not start, which one line of the log explains, and then nothing of it is left behind.
int run_daemon(const DaemonOptions& options);

}  // namespace sluice
