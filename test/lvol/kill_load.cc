// sluice-kill-load SEED MIB: the load of test_kill.py, which kills the daemon under it. Takes commands from standard
// input, one line each, and answers each with one line: "ok ...", or what went wrong.
//
//   fill SOCKET          writes the base to this volume
//   attach SOCKET...     these are the disks 1, 2, ...: clones of the base
//   run                  starts the load of all disks
//   down                 waits until it has ended as the daemon is gone: "ok FIRST_FAILURE_NS CHANGES FLUSHES"
//   stop                 ends it
//   verify               waits for the daemon, and reads the disks through
//   begin KEY DISK       a snapshot of this disk is going to be made, whose content is called KEY
//   end KEY              it has been made; "down" does that too
//   check KEY SOCKET     reads through a volume that must hold this content: "ok", "lost" if the daemon is gone
//   forget KEY
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <map>
#include <sstream>

#include "app/common/app.h"
#include "lib/base/log.h"
#include "test/lvol/kill_disk.h"

namespace sluice::lvol {
namespace {

// Lines of standard input.
class Lines final : public EventSource {
 public:
  Task<std::optional<std::string>> next() {
    while (text_.find('\n') == std::string::npos) {
      if (ended_) co_return std::nullopt;
      co_await arrived_.wait();
    }
    const size_t end = text_.find('\n');
    std::string line = text_.substr(0, end);
    text_.erase(0, end + 1);
    co_return line;
  }

 private:
  void on_event(uint32_t) override {
    char bytes[4096];
    const ssize_t got = ::read(STDIN_FILENO, bytes, sizeof(bytes));
    if (got > 0) {
      text_.append(bytes, static_cast<size_t>(got));
    } else {
      ended_ = true;
      thread()->remove_source(*this);
    }
    arrived_.set();
  }

  std::string text_;
  bool ended_ = false;
  Event arrived_;
};

class Program {
 public:
  Program(App& app, uint64_t seed, uint64_t bytes) : app_(app), bdevs_(app.threads), seed_(seed), bytes_(bytes) {}

  Task<int> run() {
    Lines lines;
    if (auto added = LwThread::current()->add_source(lines, STDIN_FILENO, EPOLLIN); !added) {
      co_return complain("standard input", added.error());
    }
    while (const std::optional<std::string> line = co_await lines.next()) {
      std::istringstream words(*line);
      const std::string answer = co_await obey(words);
      fmt::print("{}\n", answer);
      std::fflush(stdout);
    }
    if (running_) co_await stop();
    loads_.clear();
    for (auto& disk : disks_) co_await disk->close();
    co_await bdevs_.remove_all();
    co_return 0;
  }

 private:
  // A content that does not change any more.
  struct Frozen {
    KillModel model;
    KillLoad* of = nullptr;  // being made
  };

  Task<std::string> obey(std::istringstream& words) {
    std::string command;
    std::string first;
    std::string second;
    words >> command >> first;
    if (command == "fill") co_return co_await fill(first);
    if (command == "attach") co_return co_await attach(first, words);
    if (command == "run") co_return start();
    if (command == "down") co_return co_await down();
    if (command == "stop") co_return co_await stop();
    if (command == "verify") co_return co_await verify();
    words >> second;
    if (command == "begin") co_return begin(first, second);
    if (command == "end") co_return end(first);
    if (command == "check") co_return co_await check(first, second);
    if (command == "forget") co_return frozen_.erase(first) == 1 ? "ok" : "no such content";
    co_return fmt::format("unknown command: {}", command);
  }

  Task<std::string> fill(std::string socket) {
    SocketDisk disk(app_, bdevs_, "base");
    std::string answer = "ok";
    if (const auto opened = co_await disk.open(socket, BdevAccess::kWrite); !opened) {
      answer = opened.error().what;
    } else {
      IoBuffer memory = disk.bdev().allocate_buffer(bytes_).value();
      KillModel::fill_base(memory.bytes().first(bytes_), 0);
      constexpr uint64_t kPiece = 1U << 20;
      for (uint64_t at = 0; at < bytes_; at += kPiece) {
        if (co_await disk.submit(IoType::kWrite, at, kPiece, &memory.bytes()[at]) != IoStatus::kOk) answer = "write";
      }
      if (co_await disk.submit(IoType::kFlush, 0, 0, nullptr) != IoStatus::kOk) answer = "flush";
    }
    co_await disk.close();
    co_return answer;
  }

  Task<std::string> attach(std::string socket, std::istringstream& more) {
    do {
      const auto number = static_cast<uint32_t>(disks_.size() + 1);
      disks_.push_back(std::make_unique<SocketDisk>(app_, bdevs_, fmt::format("disk{}", number)));
      const auto opened = co_await disks_.back()->open(socket, BdevAccess::kWrite);
      if (!opened) co_return fmt::format("{}: {}", socket, opened.error().what);
      loads_.push_back(std::make_unique<KillLoad>(*disks_.back(), number, bytes_, seed_ + number));
    } while (more >> socket);
    co_return "ok";
  }

  std::string start() {
    for (auto& load : loads_) load->start();
    running_ = true;
    return "ok";
  }

  Task<std::string> ended() {
    for (auto& load : loads_) co_await load->ended();
    running_ = false;
    for (auto& [key, frozen] : frozen_) close_window(frozen);
    for (auto& load : loads_) {
      if (!load->mismatch().empty()) co_return "under load: " + load->mismatch();
    }
    co_return "";
  }

  Task<std::string> down() {
    const std::string wrong = co_await ended();
    if (!wrong.empty()) co_return wrong;
    uint64_t failed_ns = UINT64_MAX;
    uint64_t changes = 0;
    uint64_t flushes = 0;
    std::string failure;
    for (auto& load : loads_) {
      if (load->failed_ns() < failed_ns) failure = load->failure();
      failed_ns = std::min(failed_ns, load->failed_ns());
      changes += load->changes();
      flushes += load->flushes();
    }
    co_return fmt::format("ok {} {} {} {}", failed_ns, changes, flushes, failure);
  }

  Task<std::string> stop() {
    for (auto& load : loads_) load->stop();
    const std::string wrong = co_await ended();
    if (!wrong.empty()) co_return wrong;
    for (auto& load : loads_) {
      if (load->failed_ns() != 0) co_return load->failure();
    }
    co_return "ok";
  }

  Task<std::string> verify() {
    for (auto& load : loads_) {
      const std::string wrong = co_await load->settle();
      if (!wrong.empty()) co_return wrong;
    }
    co_return "ok";
  }

  std::string begin(const std::string& key, const std::string& disk) {
    size_t number = 0;
    std::from_chars(disk.data(), disk.data() + disk.size(), number);
    if (number == 0 || number > loads_.size()) return "no such disk";
    KillLoad& load = *loads_[number - 1];
    frozen_.insert_or_assign(key, Frozen{.model = load.model().begin_window(), .of = &load});
    return "ok";
  }

  std::string end(const std::string& key) {
    const auto found = frozen_.find(key);
    if (found == frozen_.end()) return "no such content";
    close_window(found->second);
    return "ok";
  }

  static void close_window(Frozen& frozen) {
    if (frozen.of != nullptr) frozen.model.end_window(std::exchange(frozen.of, nullptr)->model());
  }

  Task<std::string> check(std::string key, std::string socket) {
    const auto found = frozen_.find(key);
    if (found == frozen_.end() || found->second.of != nullptr) co_return "no such content";
    KillModel& model = found->second.model;
    SocketDisk disk(app_, bdevs_, "check");
    std::string answer = "ok";
    if (const auto opened = co_await disk.open(socket, BdevAccess::kRead); !opened) {
      answer = fmt::format("lost: {}", opened.error().what);
    } else {
      const auto finding = co_await disk.read_through(
          bytes_, [&model](std::span<const std::byte> bytes, uint64_t first) { return model.settle(bytes, first); });
      if (finding.text.empty()) {
        model.settled();
      } else {
        answer = (finding.failed ? "lost: " : "content " + key + ": ") + finding.text;
      }
    }
    co_await disk.close();
    co_return answer;
  }

  App& app_;
  BdevManager bdevs_;
  const uint64_t seed_;
  const uint64_t bytes_;
  std::vector<std::unique_ptr<SocketDisk>> disks_;
  std::vector<std::unique_ptr<KillLoad>> loads_;
  std::map<std::string, Frozen> frozen_;
  bool running_ = false;
};

Task<int> run(App& app, uint64_t seed, uint64_t bytes) {
  Program program(app, seed, bytes);
  co_return co_await program.run();
}

// The last core that we may use: the daemon is on the first.
CpuMask one_core() {
  const CpuMask cores = CpuMask::available();
  CpuMask last;
  for (uint32_t cpu = CpuMask::kMaxCpus; cpu-- > 0 && last.none();) {
    if (cores.test(cpu)) last.set(cpu);
  }
  return last;
}

uint64_t number(const char* text) {
  uint64_t value = 0;
  std::from_chars(text, text + std::string_view(text).size(), value);
  return value;
}

}  // namespace
}  // namespace sluice::lvol

int main(int argc, char** argv) {
  using namespace sluice;
  if (argc != 3 || lvol::number(argv[2]) == 0) {
    std::fprintf(stderr, "usage: sluice-kill-load SEED MIB\n");
    return 2;
  }
  set_log_print_level(LogLevel::kError);
  const uint64_t seed = lvol::number(argv[1]);
  const uint64_t bytes = lvol::number(argv[2]) << 20;
  return run_app({.cpumask = lvol::one_core()}, [&](App& app) { return lvol::run(app, seed, bytes); });
}
