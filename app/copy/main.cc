// sluice-copy: brings the contents of a file to a disk of the daemon, through the same socket as a guest would.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "app/copy/copy.h"
#include "lib/base/log.h"
#include "rpc/version.h"

int main(int argc, char** argv) {
  using namespace sluice;
  copy::Options options;
  CLI::App app("Copies a file to the beginning of a disk behind a vhost-user-blk socket.", "sluice-copy");
  app.set_version_flag("-v,--version", std::string("Sluice ") + rpc::kVersion);
  app.add_option("source", options.source, "the file; where it has holes or zeros, no data are sent")->required();
  app.add_option("socket", options.socket_path, "the vhost-user-blk socket of a controller")->required();
  app.add_flag("--new", options.new_disk,
               "the disk is all zeros: send nothing for the file's zeros, which keeps it thin");
  app.add_flag("--verify", options.verify, "afterwards read everything back and compare it with the file");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help_or_version) {
    return app.exit(help_or_version);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "sluice-copy: %s (sluice-copy --help lists the options)\n", error.what());
    return 2;
  }
  set_log_print_level(LogLevel::kWarning);
  return copy::run(options);
}
