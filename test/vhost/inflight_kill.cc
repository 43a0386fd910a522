// sluice-inflight-kill: front ends with many requests in flight, and a daemon that is killed under them, again and
// again.
//
//   sluice-inflight-kill DAEMON [ROUNDS [SEED [FRONT_ENDS [packed]]]]
//
// Each block of a disk has one write in flight at most, and each write a number of its own. So whatever a new daemon
// does twice, or not at all, shows: in a block that holds another number than that of its last write, in a request that
// never completes, or in one that completes twice.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "app/conformance/session.h"

namespace sluice::test {
namespace {

constexpr uint32_t kBlock = 4096;
constexpr uint32_t kBlocks = 1024;
constexpr uint32_t kDepth = 128;
constexpr uint16_t kRingSize = 512;
constexpr int kPatienceMs = 20'000;

[[noreturn]] void die(const std::string& text) {
  fmt::print(stderr, "{}\n", text);
  std::exit(1);
}

// A guest with one disk: what it has written, and what it waits for.
class Guest {
 public:
  Guest(std::string socket, uint32_t seed, bool packed)
      : socket_(std::move(socket)),
        random_(seed),
        session_({.queue_size = kRingSize, .leave_features = packed ? 0 : vhost::kFeatureRingPacked}),
        packed_(packed),
        written_(kBlocks),
        busy_(kBlocks) {}

  void connect() {
    for (const Deadline deadline(kPatienceMs); !session_.open_and_start(socket_); ::usleep(1000)) {
      if (deadline.passed()) die(socket_ + ": cannot connect: " + session_.error());
    }
    if (session_.has(vhost::kFeatureRingPacked) != packed_) die(socket_ + ": the rings are of the other kind");
    if (!slots_.empty()) return;
    for (uint32_t i = 0; i < kDepth; i++) {
      const uint64_t memory = session_.memory().allocate(kHigh, kBlock + 32);
      slots_.push_back({.memory = memory});
    }
  }
  // The daemon has gone. The split ring's base is what it says itself; that of a packed one is lost.
  void reconnect() {
    session_.close();
    session_.set_base(0, packed_ ? 0x8000'8000 : ring().used_idx());
    connect();
  }

  void submit() {
    for (Slot& slot : slots_) {
      if (!slot.free) continue;
      slot.block = random_() % kBlocks;
      if (busy_[slot.block]) continue;
      busy_[slot.block] = true;
      slot.write = random_() % 4 != 0;
      slot.number = slot.write ? ++last_number_ : written_[slot.block];
      slot.free = false;
      add(slot);
    }
    ring().publish();
    ring().kick();
  }
  void collect() {
    while (const auto used = ring().poll_used()) finish(static_cast<uint16_t>(used->id));
    if (!ring().violation().empty()) die(socket_ + ": " + ring().violation());
  }
  void finish_all() {
    for (const Deadline deadline(kPatienceMs); ring().outstanding() > 0; collect()) {
      if (deadline.passed()) die(fmt::format("{}: {} requests never complete", socket_, ring().outstanding()));
    }
  }
  // Reads all blocks.
  void verify() {
    for (uint32_t block = 0; block < kBlocks; block++) {
      Slot& slot = slots_[block % kDepth];
      slot = {.memory = slot.memory, .block = block, .number = written_[block], .write = false, .free = false};
      busy_[block] = true;
      add(slot);
      if (block % kDepth == kDepth - 1) {
        ring().publish();
        ring().kick();
        finish_all();
      }
    }
  }
  uint64_t completed() const { return completed_; }
  size_t outstanding() { return ring().outstanding(); }

 private:
  struct Slot {
    uint64_t memory = 0;  // the header, the status, the data
    uint32_t block = 0;
    uint64_t number = 0;
    bool write = false;
    bool free = true;
    uint16_t id = 0;
  };
  RingDriver& ring() { return session_.ring(); }

  void add(Slot& slot) {
    GuestMemory& memory = session_.memory();
    const auto type = slot.write ? vhost::BlkRequestType::kOut : vhost::BlkRequestType::kIn;
    memory.write(slot.memory, bytes_of(vhost::BlkRequestHeader{.type = static_cast<uint32_t>(type),
                                                               .sector = uint64_t{slot.block} * (kBlock / 512)}));
    *memory.at(slot.memory + 16) = 0xff;
    fill(slot.memory + 32, slot.write ? slot.number : ~uint64_t{0});
    slot.id = ring().add_chain(
        std::vector<Segment>{{slot.memory, 16}, {slot.memory + 32, kBlock, !slot.write}, {slot.memory + 16, 1, true}});
  }
  // The number, at the begin and the end of a block.
  void fill(uint64_t at, uint64_t number) {
    for (const uint64_t place : {at, at + kBlock - 8}) *session_.memory().as<uint64_t>(place) = number;
  }
  void finish(uint16_t id) {
    for (Slot& slot : slots_) {
      if (slot.free || slot.id != id) continue;
      if (*session_.memory().at(slot.memory + 16) != 0) die(fmt::format("{}: block {}: error", socket_, slot.block));
      for (const uint64_t place : {slot.memory + 32, slot.memory + 32 + kBlock - 8}) {
        const uint64_t found = *session_.memory().as<uint64_t>(place);
        if (found != slot.number) {
          die(fmt::format("{}: block {} holds write {} and not write {}, the last one", socket_, slot.block, found,
                          slot.number));
        }
      }
      written_[slot.block] = slot.number;
      busy_[slot.block] = false;
      slot.free = true;
      completed_++;
      return;
    }
    die(fmt::format("{}: request {} completes, but is not in flight", socket_, id));
  }

  const std::string socket_;
  std::minstd_rand random_;
  Session session_;
  const bool packed_;
  std::vector<Slot> slots_;
  std::vector<uint64_t> written_;  // by block: its last write that has completed
  std::vector<bool> busy_;
  uint64_t last_number_ = 0;
  uint64_t completed_ = 0;
};

class Killed {
 public:
  Killed(std::string program, const std::filesystem::path& directory, uint32_t disks, bool packed)
      : program_(std::move(program)), directory_(directory) {
    std::ofstream config(directory_ / "config.json");
    std::string bdevs;
    std::string controllers;
    for (uint32_t i = 0; i < disks; i++) {
      const std::string image = directory_ / fmt::format("disk{}", i);
      const UniqueFd file(::open(image.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
      if (::ftruncate(file.get(), off_t{kBlocks} * kBlock) != 0) die("cannot make " + image);
      bdevs += fmt::format(
          R"({}{{"method":"bdev_aio_create","params":{{"name":"disk{}","filename":"{}","block_size":512}}}})",
          i > 0 ? "," : "", i, image);
      controllers += fmt::format(
          R"(,{{"method":"vhost_create_blk_controller","params":{{"ctrlr":"vhost.{}","dev_name":"disk{}","packed_ring":{}}}}})",
          i, i, packed);
    }
    config << R"({"subsystems":[{"subsystem":"bdev","config":[)" << bdevs << controllers << "]}]}\n";
  }
  ~Killed() {
    if (pid_ > 0) kill();
  }

  std::string socket(uint32_t disk) const { return directory_ / fmt::format("vhost.{}", disk); }
  void start() {
    pid_ = ::fork();
    if (pid_ < 0) die("cannot fork");
    if (pid_ > 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const UniqueFd log(::open((directory_ / "log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600));
    ::dup2(log.get(), STDOUT_FILENO);
    ::dup2(log.get(), STDERR_FILENO);
    const std::string rpc = directory_ / "rpc.sock";
    const std::string config = directory_ / "config.json";
    ::execl(program_.c_str(), program_.c_str(), "-m", "0x1", "-S", directory_.c_str(), "-r", rpc.c_str(), "-c",
            config.c_str(), nullptr);
    ::_exit(127);
  }
  void kill() {
    ::kill(pid_, SIGKILL);
    int status = 0;
    ::waitpid(pid_, &status, 0);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) die("the daemon ended by itself");
    pid_ = -1;
  }

 private:
  const std::string program_;
  const std::filesystem::path directory_;
  pid_t pid_ = -1;
};

int run(const std::string& program, int rounds, uint32_t seed, uint32_t count, bool packed) {
  // Not in memory: a file there completes its requests in their order.
  std::string place = std::filesystem::temp_directory_path() / "sluice-inflight-XXXXXX";
  if (::mkdtemp(place.data()) == nullptr) die("cannot make a directory for the disks");
  fmt::print("seed {}, {} rings; a failure leaves {}\n", seed, packed ? "packed" : "split", place);
  std::minstd_rand random(seed);
  Killed daemon(program, place, count, packed);
  daemon.start();
  std::vector<std::unique_ptr<Guest>> guests;
  for (uint32_t i = 0; i < count; i++) {
    guests.push_back(std::make_unique<Guest>(daemon.socket(i), seed + i, packed));
    guests.back()->connect();
  }
  uint64_t in_flight = 0;
  for (int round = 0; round < rounds; round++) {
    const Deadline load(static_cast<int>(5 + random() % 100));
    while (!load.passed()) {
      for (auto& guest : guests) {
        guest->submit();
        guest->collect();
      }
    }
    for (auto& guest : guests) guest->submit();
    ::usleep(random() % 300);
    daemon.kill();
    for (auto& guest : guests) {
      if (random() % 2 == 0) guest->collect();
      in_flight += guest->outstanding();
    }
    daemon.start();
    for (auto& guest : guests) guest->reconnect();
    // Every other time the next round's load comes on top of what was in flight.
    if (random() % 2 == 0) continue;
    for (auto& guest : guests) {
      guest->finish_all();
      guest->verify();
    }
  }
  uint64_t completed = 0;
  for (auto& guest : guests) {
    guest->finish_all();
    guest->verify();
    completed += guest->completed();
  }
  daemon.kill();
  std::filesystem::remove_all(place);
  fmt::print(
      "{} rounds with {} front ends: {} requests, {} of them in flight when the daemon was killed, each done once\n",
      rounds, count, completed, in_flight);
  return 0;
}

}  // namespace
}  // namespace sluice::test

int main(int argc, char** argv) {
  if (argc < 2 || argc > 6) {
    fmt::print(stderr, "usage: {} DAEMON [ROUNDS [SEED [FRONT_ENDS [packed]]]]\n", argv[0]);
    return 2;
  }
  const auto number = [&](int i, int otherwise) { return argc > i ? std::atoi(argv[i]) : otherwise; };
  const bool packed = argc > 5 && std::string(argv[5]) == "packed";
  return sluice::test::run(argv[1], number(2, 200), static_cast<uint32_t>(number(3, 1)),
                           static_cast<uint32_t>(number(4, 4)), packed);
}
