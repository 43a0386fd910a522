// sluice-vhost: serves block devices to virtual machines on vhost-user-blk sockets.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>

#include "app/vhost/daemon.h"
#include "lib/base/log.h"
#include "rpc/version.h"

namespace {

using namespace sluice;

// A transformation for CLI11: the text is replaced by what `convert` makes of it, or refused with its message.
template <typename T, typename Convert>
CLI::Option* add(CLI::App& app, const std::string& names, T& target, const std::string& help, Convert convert) {
  return app.add_option_function<std::string>(
      names,
      [&target, names, convert](const std::string& text) {
        const auto value = convert(text);
        if (!value) throw CLI::ValidationError(names, "'" + text + "' is not valid");
        target = *value;
      },
      help);
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

}  // namespace

int main(int argc, char** argv) {
  DaemonOptions options;
  options.cpumask.set(0);
  LogLevel level = LogLevel::kNotice;
  std::vector<std::string> flags;

  CLI::App app("Serves block devices to virtual machines on vhost-user-blk sockets.", "sluice-vhost");
  app.set_version_flag("-v,--version", std::string("Sluice ") + rpc::kVersion);
  add(app, "-m,--cpumask", options.cpumask, "cores to run on: 0x5, or [0,2-3] (default: 0x1)", parse_cpumask);
  add(app, "--mode", options.mode, "poll, interrupt or adaptive: how eagerly to poll (default: interrupt)",
      parse_poll_mode);
  app.add_option("-S,--vhost-dir", options.vhost_directory,
                 "directory of the vhost sockets (default: the present one)");
  add(app, "--vhost-socket-mode", options.vhost_socket_mode, "mode of the vhost sockets (default: 0600)", parse_mode);
  app.add_option("-r,--rpc-socket", options.rpc_socket, "socket of the JSON-RPC (default: " + options.rpc_socket + ")");
  add(app, "--rpc-socket-mode", options.rpc_socket_mode, "its mode (default: 0600)", parse_mode);
  app.add_option("-c,--config", options.config, "file of calls to make at the start, as rpc.py save_config writes it");
  add(app, "--log-level", level, "ERROR, WARNING, NOTICE, INFO or DEBUG (default: NOTICE)", parse_log_level);
  app.add_option("--log-flags", flags, "components whose debug lines are wanted, such as vhost,bdev")->delimiter(',');

  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help_or_version) {
    return app.exit(help_or_version);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "sluice-vhost: %s (sluice-vhost --help lists the options)\n", error.what());
    return 2;
  }
  for (const std::string& name : flags) {
    const std::optional<LogFlag> flag = parse_log_flag(name);
    if (!flag) {
      std::fprintf(stderr, "sluice-vhost: there is no log flag '%s'\n", name.c_str());
      return 2;
    }
    set_log_flag(*flag, true);
  }
  set_log_print_level(level);
  return run_daemon(options);
}
