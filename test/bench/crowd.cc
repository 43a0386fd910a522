// sluice-crowd: front ends of many controllers at once, in one process: idle guests, or bad neighbours.
//
// Each line on standard output is a JSON object. It stays connected, asleep, until standard input ends or SIGTERM.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <optional>
#include <thread>
#include <vector>

#include "app/conformance/front_end.h"
#include "lib/base/clock.h"
#include "lib/base/unique_fd.h"
#include "lib/virtio/virtio.h"
#include "lib/virtio/wire.h"
#include "test/bench/attacks.h"

namespace {

using namespace sluice;
using namespace sluice::test;
using vhost::Request;

constexpr uint32_t kQueueSize = 128;
// The ring takes one page; the rest stands for the guest's memory, and is never touched.
constexpr uint64_t kMemoryBytes = 64 << 10;
constexpr uint64_t kAvailOffset = vhost::split_desc_bytes(kQueueSize);
constexpr uint64_t kUsedOffset = (kAvailOffset + vhost::split_avail_bytes(kQueueSize) + 3) / 4 * 4;
static_assert(kUsedOffset + vhost::split_used_bytes(kQueueSize) <= 4096);
constexpr uint64_t kUserAddress = 0x7f55'0000'0000;
// What a Linux guest's driver takes of what is offered; without those needed it would be another measurement.
constexpr uint64_t kNeededFeatures =
    vhost::kFeatureVersion1 | vhost::kFeatureEventIdx | vhost::kFeatureProtocolFeatures;
constexpr uint64_t kWantedFeatures = kNeededFeatures | vhost::kFeatureIndirectDesc | vhost::kBlkFeatureSegMax |
                                     vhost::kBlkFeatureBlkSize | vhost::kBlkFeatureFlush | vhost::kBlkFeatureConfigWce |
                                     vhost::kBlkFeatureDiscard | vhost::kBlkFeatureWriteZeroes;
constexpr uint64_t kWantedProtocol = vhost::kProtocolReplyAck | vhost::kProtocolConfig;
// A daemon may have thousands of others to start first.
constexpr int kPatienceMs = 60'000;

struct Options {
  std::string socket_prefix;
  uint32_t first = 0;
  uint32_t count = 1;
  std::string behave = "idle";
  uint64_t seed = 1;
};

// Any failure ends the program.
struct Failure {
  std::string what;
};
[[noreturn]] void fail_errno(std::string_view what) {
  throw Failure{fmt::format("{}: {}", what, std::strerror(errno))};
}

Bytes message(Request request, const Bytes& payload = {}, uint32_t flags = vhost::kVersion) {
  return bytes_of(vhost::Header{static_cast<uint32_t>(request), flags, static_cast<uint32_t>(payload.size())}) +
         payload;
}

// One front end. Each step is done for all of them before the next one, so that none waits for an answer that another
// one's work could be done meanwhile.
class Neighbour {
 public:
  explicit Neighbour(std::string path) : path_(std::move(path)) {}

  // Of its own, beside the socket: the kick. The descriptor of its memory goes with the mapping, as nobody here needs
  // it again. The mapping stays: a guest's memory is never the daemon's alone.
  void prepare() {
    memory_.reset(::memfd_create("guest", MFD_CLOEXEC));
    kick_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!memory_ || !kick_) fail_errno("cannot make a descriptor");
    if (::ftruncate(memory_.get(), kMemoryBytes) != 0) fail_errno("cannot size a guest's memory");
    void* ring = ::mmap(nullptr, kMemoryBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory_.get(), 0);
    if (ring == MAP_FAILED) fail_errno("cannot map a guest's memory");
    std::memset(ring, 0, kUsedOffset + vhost::split_used_bytes(kQueueSize));
  }

  void connect() {
    if (!front_end_.connect(path_)) fail(front_end_.error());
  }
  void send_half() {
    const Bytes whole = message(Request::kSetFeatures, Bytes(sizeof(vhost::U64Payload)));
    send(std::span(whole).first(whole.size() / 2));
  }

  void ask_for_features() { send(message(Request::kGetFeatures) + message(Request::kGetProtocolFeatures)); }
  // `call` may be everybody's: nobody is ever called.
  void start(int call) {
    const uint64_t features = answer(Request::kGetFeatures) & kWantedFeatures;
    const uint64_t protocol = answer(Request::kGetProtocolFeatures) & kWantedProtocol;
    if ((features & kNeededFeatures) != kNeededFeatures || (protocol & vhost::kProtocolReplyAck) == 0) {
      fail("the features needed are not all offered");
    }
    const vhost::MemoryRegion region{.size = kMemoryBytes, .user_address = kUserAddress};
    const vhost::VringAddr ring{
        .desc = kUserAddress, .used = kUserAddress + kUsedOffset, .avail = kUserAddress + kAvailOffset};
    send(message(Request::kSetOwner) + message(Request::kSetFeatures, bytes_of(features)) +
         message(Request::kSetProtocolFeatures, bytes_of(protocol)));
    // Descriptors go with the first of the bytes that are sent at once.
    send(message(Request::kSetMemTable, mem_table_payload({&region, 1})) +
             message(Request::kSetVringNum, bytes_of(vhost::VringState{0, kQueueSize})) +
             message(Request::kSetVringBase, bytes_of(vhost::VringState{0, 0})) +
             message(Request::kSetVringAddr, bytes_of(ring)),
         memory_.get());
    send(message(Request::kSetVringKick, bytes_of(uint64_t{0})), kick_.get());
    send(message(Request::kSetVringCall, bytes_of(uint64_t{0})) + message(Request::kSetVringEnable,
                                                                          bytes_of(vhost::VringState{0, 1}),
                                                                          vhost::kVersion | vhost::kNeedReplyFlag),
         call);
    memory_.reset();
  }
  // The queue runs: the acknowledgement of enabling it is sent after that, and whatever is refused ends the session.
  void wait_for_start() {
    if (answer(Request::kSetVringEnable) != 0) fail("enabling the queue is refused");
  }

  int kick() const { return kick_.get(); }

 private:
  [[noreturn]] void fail(std::string_view what) const { throw Failure{fmt::format("{}: {}", path_, what)}; }

  void send(std::span<const uint8_t> bytes, int descriptor = -1) {
    const std::span fds(&descriptor, descriptor < 0 ? 0 : 1);
    if (!front_end_.channel().send_bytes(bytes, fds)) fail("the session has ended");
  }

  uint64_t answer(Request request) {
    const auto reply = front_end_.receive(kPatienceMs);
    if (!reply) fail(fmt::format("no answer to request {}", static_cast<uint32_t>(request)));
    const auto value = reply->as<uint64_t>();
    if (!value || reply->header.request != static_cast<uint32_t>(request)) fail("an answer to another request");
    return *value;
  }

  std::string path_;
  FrontEnd front_end_;
  UniqueFd memory_;
  UniqueFd kick_;
};

using Crowd = std::vector<Neighbour>;

template <typename... Args>
double seconds_for_each(Crowd& crowd, void (Neighbour::*step)(Args...), Args... args) {
  const uint64_t begin_ns = now_ns();
  for (Neighbour& neighbour : crowd) (neighbour.*step)(args...);
  return static_cast<double>(now_ns() - begin_ns) / static_cast<double>(kNsPerSec);
}

void start_all(Crowd& crowd) {
  const UniqueFd call(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!call) fail_errno("cannot make a descriptor");
  const double connect_s = seconds_for_each(crowd, &Neighbour::connect);
  double start_s = seconds_for_each(crowd, &Neighbour::ask_for_features);
  start_s += seconds_for_each(crowd, &Neighbour::start, call.get());
  start_s += seconds_for_each(crowd, &Neighbour::wait_for_start);
  fmt::print("{{\"started\": {}, \"connect_s\": {:.6f}, \"start_s\": {:.6f}}}\n", crowd.size(), connect_s, start_s);
}

// Returns when standard input has ended, or a signal asks to end.
void sleep_until_told(int signals) {
  std::array<pollfd, 2> ends{
      {{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0}, {.fd = signals, .events = POLLIN, .revents = 0}}};
  for (;;) {
    if (::poll(ends.data(), ends.size(), -1) < 0 && errno != EINTR) fail_errno("cannot wait");
    if (ends[1].revents != 0) return;
    std::array<char, 4096> ignored{};
    if (ends[0].revents != 0 && ::read(STDIN_FILENO, ignored.data(), ignored.size()) <= 0) return;
  }
}

void flood(const std::stop_token& stop, int kick) {
  while (!stop.stop_requested()) {
    const uint64_t one = 1;
    std::ignore = ::write(kick, &one, sizeof(one));
  }
}

// All of them attack, in turns of some threads, until told to end. Says then how often each attack was made.
void attack(const Options& options, int signals) {
  constexpr uint32_t kThreads = 4;
  std::vector<std::atomic<uint64_t>> made(Attacker::names().size());
  const auto share = [&](const std::stop_token& stop, uint32_t thread) {
    std::vector<Attacker> attackers;
    for (uint32_t i = thread; i < options.count; i += kThreads)
      attackers.emplace_back(fmt::format("{}{}", options.socket_prefix, options.first + i), options.seed + i);
    while (!stop.stop_requested()) {
      for (Attacker& attacker : attackers) {
        made[attacker.step()].fetch_add(1, std::memory_order_relaxed);
        if (stop.stop_requested()) break;
      }
    }
  };
  {
    std::vector<std::jthread> threads;
    for (uint32_t i = 0; i < std::min(kThreads, options.count); ++i) threads.emplace_back(share, i);
    fmt::print("{{\"attacking\": {}}}\n", options.count);
    std::fflush(stdout);
    sleep_until_told(signals);
  }
  fmt::print("{{");
  for (size_t i = 0; i < made.size(); ++i)
    fmt::print("{}\"{}\": {}", i == 0 ? "" : ", ", Attacker::names()[i], made[i].load());
  fmt::print("}}\n");
}

void run(const Options& options) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  std::signal(SIGPIPE, SIG_IGN);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  const UniqueFd signals(::signalfd(-1, &set, SFD_CLOEXEC));
  if (!signals) fail_errno("cannot wait for signals");

  if (options.behave == "hostile") return attack(options, signals.get());
  const bool drives = options.behave == "idle" || options.behave == "kicks";
  Crowd crowd;
  crowd.reserve(options.count);
  for (uint32_t i = 0; i < options.count; ++i) {
    crowd.emplace_back(fmt::format("{}{}", options.socket_prefix, options.first + i));
    if (drives) crowd.back().prepare();
  }
  if (drives) {
    start_all(crowd);
  } else {
    const double connect_s = seconds_for_each(crowd, &Neighbour::connect);
    if (options.behave == "half") seconds_for_each(crowd, &Neighbour::send_half);
    fmt::print("{{\"connected\": {}, \"connect_s\": {:.6f}}}\n", crowd.size(), connect_s);
  }
  std::fflush(stdout);
  std::jthread flooder;
  if (options.behave == "kicks") {
    flooder = std::jthread([kick = crowd.front().kick()](const std::stop_token& stop) { flood(stop, kick); });
  }
  sleep_until_told(signals.get());
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Front ends of many vhost-user-blk controllers at once.", "sluice-crowd");
  app.option_defaults()->always_capture_default();
  app.add_option("--socket-prefix", options.socket_prefix, "DIR/vhost. for the sockets DIR/vhost.0, DIR/vhost.1, ...")
      ->required();
  app.add_option("--first", options.first, "number of the first socket");
  app.add_option("--count", options.count, "sockets, and so front ends")->check(CLI::Range(1, 65'536));
  app.add_option("--behave", options.behave,
                 "idle: a guest without I/O; silent: says nothing; half: sends half a message; kicks: as idle, and "
                 "kicks the first queue without pause; hostile: everything that a front end or guest could do to harm")
      ->check(CLI::IsMember({"idle", "silent", "half", "kicks", "hostile"}));
  app.add_option("--seed", options.seed, "of the attacks of hostile ones");
  try {
    app.parse(argc, argv);
    run(options);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    fmt::print(stderr, "sluice-crowd: {} (sluice-crowd --help lists the options)\n", error.what());
    return 2;
  } catch (const Failure& failure) {
    fmt::print(stderr, "sluice-crowd: {}\n", failure.what);
    return 1;
  }
  return 0;
}
