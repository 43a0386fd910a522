// sluice-reconnect: front ends that lose their back end and come back: how long is it until each has a request
// completed again? Each, in a thread of its own, tries to connect once a millisecond, and then does what QEMU does.
//
// Writes one line of JSON when all of them have done I/O. Then, for each line on standard input, which is the time (of
// CLOCK_MONOTONIC, in ns) at which the back end was killed, another one: how long after that, in milliseconds, each
// one's connection was accepted, and its first read was completed, which is compared with what it had written.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <future>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "app/conformance/session.h"

namespace {

using namespace sluice;
using namespace sluice::test;

constexpr size_t kBytes = 4096;

struct Failure {
  std::string what;
};

uint64_t monotonic_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

class Guest {
 public:
  Guest(std::string path, uint32_t number)
      : path_(std::move(path)),
        written_(pattern(kBytes, number)),
        session_({.layout = {{.guest_address = 0, .size = 1 << 20, .user_address = 0x7f55'0000'0000}}}) {}

  void begin() {
    if (!session_.open_and_start(path_)) fail(session_.error());
    if (session_.blk().write(8, written_) != vhost::BlkStatus::kOk) fail("a write is not completed");
  }
  void lose_back_end() {
    session_.close();
    session_.set_base(0, session_.ring().base());
  }
  // Returns once its request is completed.
  void come_back(uint64_t killed_ns) {
    while (!session_.open(path_)) {
      if (monotonic_ns() - killed_ns > 60'000'000'000) fail("nobody listens within 60 s");
      ::usleep(1000);
    }
    accepted_ms_ = static_cast<double>(monotonic_ns() - killed_ns) / 1e6;
    if (!session_.start()) fail(session_.error());
    Bytes data(kBytes);
    if (session_.blk().read(8, data) != vhost::BlkStatus::kOk) fail("a read is not completed");
    completed_ms_ = static_cast<double>(monotonic_ns() - killed_ns) / 1e6;
    if (data != written_) fail("what was written is not there");
  }
  double accepted_ms() const { return accepted_ms_; }
  double completed_ms() const { return completed_ms_; }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw Failure{path_ + ": " + what}; }

  const std::string path_;
  const Bytes written_;
  Session session_;
  double accepted_ms_ = 0;
  double completed_ms_ = 0;
};

using Guests = std::vector<std::unique_ptr<Guest>>;

std::vector<double> sorted(const Guests& guests, double (Guest::*figure)() const) {
  std::vector<double> figures;
  for (const auto& guest : guests) figures.push_back((*guest.*figure)());
  std::ranges::sort(figures);
  return figures;
}

void run(const std::string& prefix, uint32_t count) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  Guests guests;
  for (uint32_t i = 0; i < count; ++i) guests.push_back(std::make_unique<Guest>(prefix + std::to_string(i), i));
  for (const auto& guest : guests) guest->begin();
  fmt::print("{{\"started\": {}}}\n", guests.size());
  std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
    const uint64_t killed_ns = std::stoull(line);
    for (const auto& guest : guests) guest->lose_back_end();
    std::vector<std::future<void>> returns;
    for (const auto& guest : guests) {
      returns.push_back(std::async(std::launch::async, [&guest, killed_ns] { guest->come_back(killed_ns); }));
    }
    for (auto& each : returns) each.get();
    fmt::print("{{\"accepted_ms\": [{:.3f}], \"completed_ms\": [{:.3f}]}}\n",
               fmt::join(sorted(guests, &Guest::accepted_ms), ", "),
               fmt::join(sorted(guests, &Guest::completed_ms), ", "));
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::string prefix;
  uint32_t count = 1;
  CLI::App app("Front ends that lose their back end and come back.", "sluice-reconnect");
  app.option_defaults()->always_capture_default();
  app.add_option("--socket-prefix", prefix, "DIR/vhost. for the sockets DIR/vhost.0, DIR/vhost.1, ...")->required();
  app.add_option("--count", count, "sockets, and so front ends")->check(CLI::Range(1, 4096));
  try {
    app.parse(argc, argv);
    run(prefix, count);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    fmt::print(stderr, "sluice-reconnect: {} (sluice-reconnect --help lists the options)\n", error.what());
    return 2;
  } catch (const Failure& failure) {
    fmt::print(stderr, "sluice-reconnect: {}\n", failure.what);
    return 1;
  }
  return 0;
}
