// Copies a file to the beginning of a disk behind a vhost-user-blk socket.
#pragma once

#include <string>

namespace sluice::copy {

struct Options {
  std::string source;       // a file, sparse or not
  std::string socket_path;  // of a controller
  bool new_disk = false;    // all of it is zeros already: the file's zeros need not be written
  bool verify = false;      // read all of it back, and compare
};

// Has reactors of its own until it is done. The result is the process's; what went wrong is on standard error.
int run(const Options& options);

}  // namespace sluice::copy
