// sluice-vhost: serves block devices to virtual machines on vhost-user-blk sockets.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>

#include "app/vhost/daemon.h"
#include "lib/base/log.h"
#include "rpc/version.h"

namespace {

using namespace sluice;

// Sets `target` to what `parse` makes of an option's text; false, with a line on standard error, if it makes nothing of
// it.
template <typename T>
bool convert(const char* option, const std::string& text, std::optional<T> (*parse)(const std::string&), T& target) {
  const std::optional<T> value = parse(text);
  if (value) {
    target = *value;
  } else {
    std::fprintf(stderr, "sluice-vhost: %s: '%s' is not valid (sluice-vhost --help tells what is)\n", option,
                 text.c_str());
  }
  return value.has_value();
}

std::optional<CpuMask> parse_cpumask(const std::string& text) {
  const Result<CpuMask> mask = CpuMask::parse(text);
  return mask && !mask->none() ? std::optional(*mask) : std::nullopt;
}

std::optional<mode_t> parse_mode(const std::string& text) {
  const bool octal = !text.empty() && text.size() <= 4 && text.find_first_not_of("01234567") == std::string::npos;
  const auto mode = octal ? static_cast<mode_t>(std::stoul(text, nullptr, 8)) : mode_t{01000};
  return mode <= 0777 ? std::optional(mode) : std::nullopt;
}

std::optional<PollMode> parse_poll_mode(const std::string& text) {
  const std::map<std::string, PollMode> modes{
      {"poll", PollMode::kPoll}, {"interrupt", PollMode::kInterrupt}, {"adaptive", PollMode::kAdaptive}};
  const auto found = modes.find(text);
  return found == modes.end() ? std::nullopt : std::optional(found->second);
}

std::optional<LogLevel> parse_level(const std::string& text) { return parse_log_level(text); }
std::optional<LogFlag> parse_flag(const std::string& text) { return parse_log_flag(text); }

}  // namespace

int main(int argc, char** argv) {
  DaemonOptions options;
  std::string cpumask = "0x1";
  std::string mode = "adaptive";
  std::string vhost_socket_mode = "0600";
  std::string rpc_socket_mode = "0600";
  std::string log_level = "NOTICE";
  std::vector<std::string> log_flags;

  CLI::App app("Serves block devices to virtual machines on vhost-user-blk sockets.", "sluice-vhost");
  app.option_defaults()->always_capture_default();
  app.set_version_flag("-v,--version", std::string("Sluice ") + rpc::kVersion);
  app.add_option("-m,--cpumask", cpumask, "cores to run on: 0x5, or [0,2-3]");
  app.add_option("--mode", mode, "how eagerly to poll: poll, interrupt or adaptive");
  app.add_option("-S,--vhost-dir", options.vhost_directory, "directory of the vhost sockets");
  app.add_option("--vhost-socket-mode", vhost_socket_mode, "mode of the vhost sockets");
  app.add_option("-r,--rpc-socket", options.rpc_socket, "socket of the JSON-RPC");
  app.add_option("--rpc-socket-mode", rpc_socket_mode, "mode of the JSON-RPC's socket");
  app.add_option("-c,--config", options.config, "file of calls to make at the start, as rpc.py save_config writes it");
  app.add_option("--state-dir", options.state_dir,
                 "directory that keeps what is provisioned, and from which a later start makes it again; --config is "
                 "for the first start then");
  app.add_option("--upgrade-from", options.upgrade_from,
                 "RPC socket of a daemon to take the place of, with its sockets, guests, configuration and state")
      ->excludes("--config", "--state-dir", "--vhost-dir", "--rpc-socket");
  app.add_option("--log-level", log_level, "ERROR, WARNING, NOTICE, INFO or DEBUG");
  app.add_option("--log-flags", log_flags, "components whose debug lines are wanted, such as vhost,bdev")
      ->delimiter(',');
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help_or_version) {
    return app.exit(help_or_version);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "sluice-vhost: %s (sluice-vhost --help lists the options)\n", error.what());
    return 2;
  }

  LogLevel level{};
  if (!convert("--cpumask", cpumask, parse_cpumask, options.cpumask) ||
      !convert("--mode", mode, parse_poll_mode, options.mode) ||
      !convert("--vhost-socket-mode", vhost_socket_mode, parse_mode, options.vhost_socket_mode) ||
      !convert("--rpc-socket-mode", rpc_socket_mode, parse_mode, options.rpc_socket_mode) ||
      !convert("--log-level", log_level, parse_level, level)) {
    return 2;
  }
  for (const std::string& name : log_flags) {
    LogFlag flag{};
    if (!convert("--log-flags", name, parse_flag, flag)) return 2;
    set_log_flag(flag, true);
  }
  set_log_print_level(level);
  return run_daemon(options);
}
