// Front ends that say anything: messages with any payload and any descriptors, halves of them, memory that is cut off,
// kicks and time, against a Controller with a malloc bdev. After each input the target has to be as it was: no session,
// no descriptor more than before.
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <vector>

#include "lib/base/check.h"
#include "lib/base/fd_passing.h"
#include "lib/base/log.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/malloc/malloc_bdev.h"
#include "lib/vhost/target.h"
#include "test/fuzz/fuzz_bytes.h"
#include "test/fuzz/vhost_control_input.h"
#include "test/support/manual_host.h"

namespace sluice::vhost {
namespace {

constexpr uint64_t kDiskBytes = 64 << 10;
constexpr size_t kMostSentFds = kMaxFds + 1;

UniqueFd memory_file(const char* name, uint64_t bytes) {
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  CHECK(fd && ::ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0);
  return fd;
}

// A guest's memory with rings of both kinds, each with some requests.
std::vector<std::byte> guest_memory() {
  std::vector<std::byte> memory(kControlMemoryBytes);
  const auto put = [&memory](uint64_t offset, const auto& value) {
    std::memcpy(memory.data() + offset, &value, sizeof(value));
  };
  constexpr uint16_t kRequests = 2;
  for (uint16_t i = 0; i < kRequests; ++i) {
    const uint64_t header = kControlHeaders + i * 64U;
    const uint64_t data = kControlData + i * 4096U;
    put(header, BlkRequestHeader{.type = i, .reserved = 0, .sector = i});
    const uint16_t write = i == 0 ? kDescWrite : 0;
    const auto first = static_cast<uint16_t>(3 * i);
    const auto next = [first](int by) { return static_cast<uint16_t>(first + by); };
    const uint64_t split = kControlDescs + first * sizeof(SplitDesc);
    put(split, SplitDesc{header, 16, kDescNext, next(1)});
    put(split + 16, SplitDesc{data, 1024, static_cast<uint16_t>(kDescNext | write), next(2)});
    put(split + 32, SplitDesc{header + 32, 1, kDescWrite, 0});
    put(kControlAvail + sizeof(SplitAvail) + 2U * i, first);
    const uint64_t packed = kControlPacked + first * sizeof(PackedDesc);
    put(packed, PackedDesc{header, 16, i, kDescNext | kPackedDescAvail});
    put(packed + 16, PackedDesc{data, 1024, i, static_cast<uint16_t>(kDescNext | kPackedDescAvail | write)});
    put(packed + 32, PackedDesc{header + 32, 1, i, kDescWrite | kPackedDescAvail});
  }
  put(kControlAvail, SplitAvail{.flags = 0, .idx = kRequests});
  return memory;
}

// What stays from input to input.
class World {
 public:
  World() {
    set_log_print_level(LogLevel::kError);
    std::string name = (std::filesystem::temp_directory_path() / "sluice-fuzz-XXXXXX").string();
    CHECK(::mkdtemp(name.data()) != nullptr);
    directory_ = name;
    std::atexit([] { std::filesystem::remove_all(world().directory_); });
    at(ControlFd::kMemory) = memory_file("guest", kControlMemoryBytes);
    at(ControlFd::kEvent).reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    std::array<int, 2> ends{};
    CHECK(::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) == 0);
    pipe_reader_.reset(ends[0]);
    at(ControlFd::kPipe).reset(ends[1]);
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()) == 0);
    socket_reader_.reset(ends[0]);
    at(ControlFd::kSocket).reset(ends[1]);
    at(ControlFd::kNull).reset(::open("/dev/null", O_RDWR | O_CLOEXEC));
    at(ControlFd::kSmallMemory) = memory_file("small", 4096);
    at(ControlFd::kEmptyMemory) = memory_file("empty", 0);
    at(ControlFd::kSealedMemory) = memory_file("sealed", kControlMemoryBytes);
    CHECK(::fcntl(at(ControlFd::kSealedMemory).get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    at(ControlFd::kDirectory).reset(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    at(ControlFd::kEpoll).reset(::epoll_create1(EPOLL_CLOEXEC));
    at(ControlFd::kFile).reset(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    const std::string path = "/proc/self/fd/" + std::to_string(fd(ControlFd::kMemory));
    at(ControlFd::kReadOnlyMemory).reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC));

    target_ = std::make_unique<Target>(threads_, bdevs_, Target::Options{.socket_directory = directory_.string()});
    bdev_ = bdevs_.add(create_malloc_bdev({.name = "disk", .num_blocks = kDiskBytes / 512}).value()).value();
    CHECK(
        hosts.await(hosts.home(), target_->create_controller({.name = "c", .bdev_name = "disk", .packed_ring = true})));
    hosts.run_until_idle();
  }

  // The guest's memory as it is at first.
  void renew() {
    static const std::vector<std::byte> memory = guest_memory();
    const int guest = fd(ControlFd::kMemory);
    CHECK(::ftruncate(guest, kControlMemoryBytes) == 0);
    CHECK(::pwrite(guest, memory.data(), memory.size(), 0) == static_cast<ssize_t>(memory.size()));
    std::array<std::byte, 4096> ignored{};
    CHECK(::fcntl(fd(ControlFd::kEvent), F_SETFL, O_NONBLOCK) == 0);
    for (const int reader : {fd(ControlFd::kEvent), pipe_reader_.get(), socket_reader_.get()}) {
      while (::read(reader, ignored.data(), ignored.size()) > 0) continue;
    }
  }

  UniqueFd connect() const {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    (directory_ / "c").string().copy(address.sun_path, sizeof(address.sun_path) - 1);
    UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    CHECK(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
    return socket;
  }

  int fd(ControlFd kind) { return at(kind).get(); }
  void resize(unsigned times) {
    hosts.on(hosts.home(), [&] { bdevs_.set_size(*bdev_, kDiskBytes * times); });
  }
  size_t sessions() { return hosts.await(hosts.home(), target_->list("c")).at(0).sessions.size(); }

  ManualHosts hosts{1, PollMode::kInterrupt};

  static World& world() {
    static World* const one = new World;  // not destroyed: nothing outlives the process but the directory
    return *one;
  }

 private:
  UniqueFd& at(ControlFd kind) { return fds_[static_cast<size_t>(kind)]; }

  std::filesystem::path directory_;
  std::array<UniqueFd, kControlFds> fds_;
  UniqueFd pipe_reader_, socket_reader_;
  ThreadDirectory threads_{hosts};
  BdevManager bdevs_{threads_};
  Bdev* bdev_ = nullptr;
  std::unique_ptr<Target> target_;
};

// As many are open.
int next_descriptor() { return UniqueFd(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0)).get(); }

// One input.
class Run {
 public:
  explicit Run(World& world) : world_(world), socket_(world.connect()) { world_.hosts.run_until_idle(); }

  void step(FuzzBytes& input) {
    const uint8_t request = input.byte();
    const uint8_t how = input.byte();
    const uint8_t descriptors = input.byte();
    const auto payload = input.take_bytes(input.byte());
    if (request < static_cast<uint8_t>(ControlStep::kKick)) {
      send_message(request, how, descriptors, payload);
      if ((how & kHowBeforeTurn) == 0) turn();
      return;
    }
    switch (static_cast<ControlStep>(request)) {
      case ControlStep::kKick: {
        const uint64_t one = 1;
        // Not when it is full: nobody would read it.
        if (::fcntl(world_.fd(ControlFd::kEvent), F_SETFL, O_NONBLOCK) == 0)
          std::ignore = ::write(world_.fd(ControlFd::kEvent), &one, sizeof(one));
        break;
      }
      case ControlStep::kTruncate:
        CHECK(::ftruncate(world_.fd(ControlFd::kMemory), how % 16 * 4096) == 0);
        break;
      case ControlStep::kPass:
        world_.hosts.advance(uint64_t{1} << how % 36);
        break;
      case ControlStep::kRawBytes:
        send(payload, {});
        break;
      case ControlStep::kFillEvent: {
        const uint64_t full = UINT64_MAX - 1;
        CHECK(::fcntl(world_.fd(ControlFd::kEvent), F_SETFL, O_NONBLOCK) == 0);
        std::ignore = ::write(world_.fd(ControlFd::kEvent), &full, sizeof(full));
        CHECK(::fcntl(world_.fd(ControlFd::kEvent), F_SETFL, 0) == 0);
        break;
      }
      case ControlStep::kResize:
        world_.resize(1 + how % 2);
        break;
      case ControlStep::kReadNothing:
        reads_ = false;
        break;
      default:
        return;
    }
    turn();
  }

  void end() {
    socket_.reset();
    world_.hosts.run_until_idle();
    // What waits for a while, does so no longer.
    world_.hosts.advance(kMessageDeadlineNs);
    world_.hosts.run_until_idle();
    CHECK(world_.sessions() == 0);
  }

 private:
  void turn() {
    world_.hosts.run_until_idle();
    if (reads_) drop_replies();
  }

  void send_message(uint8_t request, uint8_t how, uint8_t descriptors, std::span<const uint8_t> payload) {
    uint32_t flags = (how & kHowOtherVersion) != 0 ? kVersion + 1 : kVersion;
    if ((how & kHowNeedReply) != 0) flags |= kNeedReplyFlag;
    if ((how & kHowReply) != 0) flags |= kReplyFlag;
    auto size = static_cast<uint32_t>(payload.size());
    if ((how & kHowLonger) != 0) ++size;
    if ((how & kHowShorter) != 0 && size > 0) --size;
    const Header header{.request = request, .flags = flags, .size = size};
    std::vector<uint8_t> message(sizeof(header));
    std::memcpy(message.data(), &header, sizeof(header));
    message.insert(message.end(), payload.begin(), payload.end());
    if ((how & kHowHalf) != 0) message.resize(message.size() / 2);

    const size_t count = descriptors % 8U == kTooManyFds ? kMostSentFds : descriptors % 8U;
    std::vector<int> fds;
    for (size_t i = 0; i < count; ++i) {
      const auto kind = static_cast<ControlFd>((descriptors / 8U + i) % kControlFds);
      fds.push_back(kind == ControlFd::kOwnSocket ? socket_.get() : world_.fd(kind));
    }
    send(message, fds);
  }

  void send(std::span<const uint8_t> bytes, std::span<const int> fds) {
    if (bytes.empty()) return;
    // The target may have closed its end, or its buffer be full: nobody cares.
    std::ignore = send_with_fds(socket_.get(), std::as_bytes(bytes), fds, MSG_DONTWAIT);
  }

  // Without room for descriptors: the kernel closes what comes.
  void drop_replies() const {
    std::array<std::byte, 4096> ignored{};
    while (::recv(socket_.get(), ignored.data(), ignored.size(), MSG_DONTWAIT) > 0) continue;
  }

  World& world_;
  UniqueFd socket_;
  bool reads_ = true;
};

}  // namespace
}  // namespace sluice::vhost

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice;
  vhost::World& world = vhost::World::world();
  world.renew();
  const int before = vhost::next_descriptor();
  {
    vhost::Run run(world);
    FuzzBytes input({data, size});
    while (!input.empty()) run.step(input);
    run.end();
  }
  CHECK(vhost::next_descriptor() == before);
  return 0;
}
