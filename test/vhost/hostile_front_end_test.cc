// Front ends that keep the target waiting, are not meant to be there, or take more than their share: in virtual time.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "app/conformance/front_end.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/vhost/target.h"
#include "test/support/manual_host.h"
#include "test/support/temp_file.h"
#include "test/vhost/held_bdev.h"

namespace sluice::test {
namespace {

using vhost::Header;
using vhost::MemoryMap;
using vhost::MemoryRegion;
using vhost::Request;
using vhost::VringState;

constexpr uint64_t kDeadlineNs = vhost::kMessageDeadlineNs;

// A target on hosts with a clock of their own, and one controller.
class HostileFrontEnd : public testing::Test {
 protected:
  HostileFrontEnd() {
    std::string name = (std::filesystem::temp_directory_path() / "sluice-hostile-XXXXXX").string();
    CHECK(::mkdtemp(name.data()) != nullptr);
    directory_ = name;
    target_.emplace(threads_, bdevs_, vhost::Target::Options{.socket_directory = directory_.string()});
    auto bdev = std::make_unique<HeldBdev>("disk", 1 << 20, 512);
    bdev_ = bdev.get();
    CHECK(bdevs_.add(std::move(bdev)).has_value());
  }
  ~HostileFrontEnd() override {
    front_end_.channel().close();
    hosts_.await(hosts_.home(), bdev_->release(threads_));
    hosts_.await(hosts_.home(), target_->remove_all());
    target_.reset();
    hosts_.await(hosts_.home(), bdevs_.remove_all());
    std::filesystem::remove_all(directory_);
  }

  void create(vhost::Target::ControllerOptions options = {}) {
    options.name = "vhost";
    options.bdev_name = "disk";
    ASSERT_TRUE(hosts_.await(hosts_.home(), target_->create_controller(options)));
    hosts_.run_until_idle();
  }
  void connect() {
    create();
    ASSERT_TRUE(front_end_.connect(path())) << front_end_.error();
    hosts_.run_until_idle();
  }
  std::string path() const { return directory_ / "vhost"; }
  size_t sessions() { return hosts_.await(hosts_.home(), target_->list("vhost")).at(0).sessions.size(); }
  void send(std::span<const uint8_t> bytes) {
    ASSERT_TRUE(front_end_.channel().send_bytes(bytes));
    hosts_.run_until_idle();
  }
  void pass(uint64_t ns) {
    hosts_.advance(ns);
    hosts_.run_until_idle();
  }
  // With need_reply: whether it is acknowledged with success.
  bool accepted(Request request, const Bytes& payload, std::span<const int> fds = {}) {
    EXPECT_TRUE(front_end_.send(request, payload, fds, vhost::kVersion | vhost::kNeedReplyFlag));
    hosts_.run_until_idle();
    const auto ack = front_end_.receive(0);
    return ack && ack->as<uint64_t>() == 0U;
  }
  void negotiate() {
    front_end_.send(Request::kSetProtocolFeatures,
                    bytes_of(vhost::kProtocolReplyAck | vhost::kProtocolMq | vhost::kProtocolConfigureMemSlots));
    hosts_.run_until_idle();
  }

  std::filesystem::path directory_;
  ManualHosts hosts_{1};
  ThreadDirectory threads_{hosts_};
  BdevManager bdevs_{threads_};
  std::optional<vhost::Target> target_;
  HeldBdev* bdev_ = nullptr;
  FrontEnd front_end_;
};

Bytes whole_message() {
  return bytes_of(Header{static_cast<uint32_t>(Request::kSetFeatures), vhost::kVersion, sizeof(vhost::U64Payload)}) +
         bytes_of(uint64_t{vhost::kFeatureVersion1});
}

// ---- Half messages

class HalfMessage : public HostileFrontEnd, public testing::WithParamInterface<size_t> {};

TEST_P(HalfMessage, EndsItsSessionAtTheDeadline) {
  connect();
  const Bytes message = whole_message();
  send(std::span(message).first(GetParam()));
  pass(kDeadlineNs - 1);
  EXPECT_EQ(sessions(), 1U);
  pass(1);
  EXPECT_EQ(sessions(), 0U);
  EXPECT_TRUE(front_end_.channel().wait_closed(0));
  // The next one is served.
  FrontEnd next;
  ASSERT_TRUE(next.connect(path()));
  hosts_.run_until_idle();
  EXPECT_EQ(sessions(), 1U);
}

TEST_P(HalfMessage, IsNotGivenMoreTimeForBytesThatDripIn) {
  connect();
  const Bytes message = whole_message();
  const size_t left = message.size() - GetParam();
  send(std::span(message).first(GetParam()));
  // The last byte would come a little late.
  for (size_t i = 0; i + 1 < left; i++) {
    pass(kDeadlineNs / left);
    ASSERT_EQ(sessions(), 1U);
    send(std::span(message).subspan(GetParam() + i, 1));
  }
  pass(kDeadlineNs - (left - 1) * (kDeadlineNs / left));
  EXPECT_EQ(sessions(), 0U);
}

TEST_P(HalfMessage, IsServedWhenTheRestComesInTime) {
  connect();
  const Bytes message = whole_message();
  send(std::span(message).first(GetParam()));
  pass(kDeadlineNs - 1);
  send(std::span(message).subspan(GetParam()));
  EXPECT_EQ(hosts_.next_deadline_ns(), UINT64_MAX);
  pass(2 * kDeadlineNs);
  EXPECT_EQ(sessions(), 1U);
  EXPECT_TRUE(front_end_.send(Request::kGetFeatures));
  hosts_.run_until_idle();
  EXPECT_TRUE(front_end_.receive(0));
}

std::string bytes_name(const testing::TestParamInfo<size_t>& info) { return std::to_string(info.param) + "Bytes"; }
INSTANTIATE_TEST_SUITE_P(At, HalfMessage, testing::Values(1, 11, 12, 19), bytes_name);

TEST_F(HostileFrontEnd, SilentOneCostsNoTimer) {
  connect();
  EXPECT_EQ(sessions(), 1U);
  EXPECT_EQ(hosts_.next_deadline_ns(), UINT64_MAX);
  send(whole_message());
  EXPECT_EQ(hosts_.next_deadline_ns(), UINT64_MAX) << "between messages";
  pass(24 * 3600 * kNsPerSec);
  EXPECT_EQ(sessions(), 1U);
}

TEST_F(HostileFrontEnd, ThatDoesNotReadItsRepliesLosesItsSession) {
  connect();
  // Until it blocks: the target does not read on while a reply is on its way.
  const Bytes request = bytes_of(Header{static_cast<uint32_t>(Request::kGetConfig), vhost::kVersion, 268}) +
                        bytes_of(vhost::ConfigHeader{.offset = 0, .size = 256}) + Bytes(256);
  int sent = 0;
  while (front_end_.channel().connected() &&
         ::send(front_end_.channel().fd(), request.data(), request.size(), MSG_DONTWAIT | MSG_NOSIGNAL) ==
             static_cast<ssize_t>(request.size())) {
    hosts_.run_until_idle();
    // Each of them counts as a message: budgets put the next ones off.
    hosts_.advance(1);
    ASSERT_LT(++sent, 1'000'000);
  }
  EXPECT_EQ(sessions(), 1U);
  EXPECT_NE(hosts_.next_deadline_ns(), UINT64_MAX);
  pass(kDeadlineNs);
  EXPECT_EQ(sessions(), 0U);
}

// ---- Who may connect

TEST_F(HostileFrontEnd, IsLetInByItsUser) {
  create({.allowed = {.uids = {::getuid() + 1, ::getuid()}, .gids = {}}});
  ASSERT_TRUE(front_end_.connect(path()));
  hosts_.run_until_idle();
  EXPECT_EQ(sessions(), 1U);
}

TEST_F(HostileFrontEnd, IsLetInByItsGroup) {
  create({.allowed = {.uids = {::getuid() + 1}, .gids = {::getgid() + 1, ::getgid()}}});
  ASSERT_TRUE(front_end_.connect(path()));
  hosts_.run_until_idle();
  EXPECT_EQ(sessions(), 1U);
}

TEST_F(HostileFrontEnd, OfNoAllowedUserOrGroupIsTurnedAwayAndNamed) {
  testing::internal::CaptureStderr();
  create({.allowed = {.uids = {::getuid() + 1}, .gids = {::getgid() + 1'000'000}}});
  for (int i = 0; i < 100; i++) {
    FrontEnd stranger;
    ASSERT_TRUE(stranger.connect(path()));
    hosts_.run_until_idle();
    hosts_.advance(1);
    EXPECT_TRUE(stranger.channel().wait_closed(0));
    EXPECT_EQ(sessions(), 0U);
  }
  const std::string lines = testing::internal::GetCapturedStderr();
  EXPECT_NE(lines.find("process " + std::to_string(::getpid()) + " of user " + std::to_string(::getuid())),
            std::string::npos)
      << lines;
  EXPECT_LE(std::ranges::count(lines, '\n'), 10) << lines;
}

// ---- Descriptors

// While it exists, the limit of descriptors is one more than the next one's number (1, 1), or so much more.
class DescriptorLimit {
 public:
  DescriptorLimit(unsigned num, unsigned den) {
    CHECK(::getrlimit(RLIMIT_NOFILE, &before_) == 0);
    while (next() < 40) fill_.emplace_back(::dup(STDERR_FILENO));
    rlimit lowered = before_;
    lowered.rlim_cur = static_cast<rlim_t>(next()) * num / den + 1;
    CHECK(::setrlimit(RLIMIT_NOFILE, &lowered) == 0);
  }
  ~DescriptorLimit() { ::setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  static int next() { return UniqueFd(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0)).get(); }
  rlimit before_{};
  std::vector<UniqueFd> fill_;
};

TEST_F(HostileFrontEnd, DoesNotGetTheLastDescriptors) {
  create();
  std::optional<UniqueFd> place(::dup(STDERR_FILENO));  // for its own end
  std::optional<DescriptorLimit> limit(std::in_place, 1U, 1U);
  place.reset();
  ASSERT_TRUE(front_end_.connect(path()));
  hosts_.run_until_idle();
  EXPECT_EQ(sessions(), 0U) << "it waits in the backlog";
  EXPECT_TRUE(UniqueFd(::dup(STDERR_FILENO))) << "for the process's own work there is one";
  limit.reset();
  pass(vhost::kAcceptRetryNs);
  EXPECT_EQ(sessions(), 1U) << "and is served without another connection to remind of it";
}

TEST_F(HostileFrontEnd, ThatSendsDescriptorsWhenTheLastAreLeftLosesItsSession) {
  connect();
  UniqueFd kick(::eventfd(0, EFD_NONBLOCK));
  {
    const DescriptorLimit limit(1, 1);
    const int fd = kick.get();
    front_end_.send(Request::kSetVringKick, bytes_of(uint64_t{0}), {&fd, 1});
    hosts_.run_until_idle();
    EXPECT_EQ(sessions(), 0U);
  }
}

TEST_F(HostileFrontEnd, WithManyQueuesGetsNoMoreWhenDescriptorsAreScarce) {
  connect();
  negotiate();
  for (uint32_t i = 0; i < vhost::kFewQueues - 1; i++)
    EXPECT_TRUE(accepted(Request::kSetVringEnable, bytes_of(VringState{i, 0})));
  {
    const DescriptorLimit limit(5, 4);
    EXPECT_TRUE(accepted(Request::kSetVringEnable, bytes_of(VringState{vhost::kFewQueues - 1, 0}))) << "a few are free";
    EXPECT_FALSE(accepted(Request::kSetVringEnable, bytes_of(VringState{vhost::kFewQueues, 0})));
    EXPECT_TRUE(accepted(Request::kSetVringEnable, bytes_of(VringState{0, 0}))) << "what there is stays";
  }
  EXPECT_TRUE(accepted(Request::kSetVringEnable, bytes_of(VringState{vhost::kMaxQueues - 1, 0})));
}

// The target must not hold what would keep the connection open once the front end has gone.
TEST_F(HostileFrontEnd, CannotLeaveItsEndOfTheConnectionWithTheTarget) {
  create();
  for (const Request request : {Request::kSetVringCall, Request::kSetVringErr, Request::kSetBackendReqFd}) {
    for (const bool hidden : {false, true}) {
      SCOPED_TRACE(std::to_string(static_cast<int>(request)) + (hidden ? ", in a queue" : ""));
      ASSERT_TRUE(front_end_.connect(path()));
      hosts_.run_until_idle();
      front_end_.send(Request::kSetProtocolFeatures, bytes_of(vhost::kProtocolReplyAck | vhost::kProtocolBackendReq));
      const Bytes payload = request == Request::kSetBackendReqFd ? Bytes() : bytes_of(uint64_t{0});
      const int own = front_end_.channel().fd();
      if (hidden) {
        BackendChannel pair;
        ASSERT_TRUE(pair.local.send_bytes(Bytes(1), {&own, 1}));
        const int end = pair.remote.get();
        EXPECT_TRUE(accepted(request, payload, {&end, 1})) << "a pair in itself is fine";
      } else {
        EXPECT_FALSE(accepted(request, payload, {&own, 1}));
      }
      front_end_.channel().close();
      hosts_.run_until_idle();
      EXPECT_EQ(sessions(), 0U);
    }
  }
}

TEST_F(HostileFrontEnd, CannotGiveAnythingButASocketAsItsChannel) {
  connect();
  front_end_.send(Request::kSetProtocolFeatures, bytes_of(vhost::kProtocolReplyAck | vhost::kProtocolBackendReq));
  const UniqueFd event(::eventfd(0, EFD_NONBLOCK));
  const UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  for (const int fd : {event.get(), epoll.get(), STDERR_FILENO})
    EXPECT_FALSE(accepted(Request::kSetBackendReqFd, {}, {&fd, 1}));
}

// ---- Memory

MemoryRegion region_at(uint64_t address, uint64_t size) {
  return {.guest_address = address, .size = size, .user_address = address, .mmap_offset = 0};
}

// Whoever touches a page of it would wait for the file system, which a front end may be itself (FUSE).
TEST_F(HostileFrontEnd, MayNotHaveItsMemoryInAFileOnADisk) {
  const TempFile on_disk(1 << 20);
  if (::fcntl(on_disk.fd(), F_GET_SEALS) >= 0) GTEST_SKIP() << "the folder for temporary files is itself in memory";
  connect();
  negotiate();
  const int fd = on_disk.fd();
  EXPECT_FALSE(accepted(Request::kAddMemReg, mem_reg_payload(region_at(0, 1 << 20)), {&fd, 1}));
  EXPECT_EQ(sessions(), 1U);
  // On tmpfs it may.
  const TempFile in_memory(1 << 20, TempFile::Kind::kMemory);
  const int memory = in_memory.fd();
  EXPECT_TRUE(accepted(Request::kAddMemReg, mem_reg_payload(region_at(0, 1 << 20)), {&memory, 1}));
}

TEST_F(HostileFrontEnd, MayHaveItsMemoryInAnyFileWhereThatIsAllowed) {
  create({.any_memory_file = true});
  ASSERT_TRUE(front_end_.connect(path()));
  hosts_.run_until_idle();
  negotiate();
  const TempFile on_disk(1 << 20);
  const int fd = on_disk.fd();
  EXPECT_TRUE(accepted(Request::kAddMemReg, mem_reg_payload(region_at(0, 1 << 20)), {&fd, 1}));
}

// Those who map more than a small guest needs leave some of the address space to small ones.
TEST(SharedAddressSpace, IsNotUsedUpByLargeGuests) {
  const UniqueFd sparse(::memfd_create("sparse", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(sparse.get(), static_cast<off_t>(vhost::kMaxGuestBytes)), 0);
  std::vector<MemoryMap> large;
  Result<MemoryMap> next = MemoryMap().with(region_at(0, vhost::kMaxGuestBytes), sparse, {});
  for (; next && large.size() < 100; next = MemoryMap().with(region_at(0, vhost::kMaxGuestBytes), sparse, {}))
    large.push_back(std::move(*next));
  ASSERT_FALSE(next.has_value());
#if !__has_feature(thread_sanitizer) && !__has_feature(address_sanitizer)
  EXPECT_EQ(large.size(), vhost::kMaxMappedBytesOfLarge / vhost::kMaxGuestBytes);
#endif
  for (int i = 0; i < 100; i++) {
    auto small = MemoryMap().with(region_at(0, vhost::kSmallGuestBytes), sparse, {});
    EXPECT_TRUE(small) << small.error().what;
  }
}

// Guests of as many regions as are allowed to each, until one more region is refused; then one of a few.
struct ManyRegions {
  explicit ManyRegions(bool one_file) {
    maps.emplace_back();
    for (uint64_t i = 0; maps.size() < 2000; i++) {
      if (i == vhost::kMaxMemSlots) {
        maps.emplace_back();
        i = 0;
      }
      if (files.size() <= (one_file ? 0 : i)) files.push_back(file_of(2 * vhost::kMaxMemSlots));
      auto next = maps.back().with(nth(i), files[one_file ? 0 : i], {});
      if (!next) {
        refused = next.error();
        break;
      }
      maps.back() = std::move(*next);
    }
    MemoryMap modest;
    for (uint64_t i = 0; i < vhost::kFewRegions; i++) {
      auto next = modest.with(nth(i), files[one_file ? 0 : i], {});
      EXPECT_TRUE(next) << next.error().what;
      if (next) modest = std::move(*next);
    }
  }
  static UniqueFd file_of(uint64_t pages) {
    UniqueFd file(::memfd_create("memory", MFD_CLOEXEC));
    EXPECT_EQ(::ftruncate(file.get(), static_cast<off_t>(pages << 12)), 0);
    return file;
  }
  static MemoryRegion nth(uint64_t i) {
    // Every other page, or the kernel would make one mapping of two.
    return {.guest_address = i << 12, .size = 4096, .user_address = i << 12, .mmap_offset = 2 * i << 12};
  }

  std::vector<UniqueFd> files;
  std::vector<MemoryMap> maps;
  Error refused;
};

TEST(SharedMappings, AreNotUsedUpByGuestsOfManyRegions) {
  const ManyRegions many(true);
  EXPECT_EQ(many.refused.code, ENOMEM);
  EXPECT_THAT(many.refused.what, testing::HasSubstr("vm.max_map_count"));
}

TEST(SharedMappings, GuestsOfManyFilesLeaveDescriptorsToOthers) {
  const DescriptorLimit limit(100, 1);
  const ManyRegions many(false);
  EXPECT_EQ(many.refused.code, EMFILE);
  EXPECT_THAT(many.refused.what, testing::HasSubstr("ulimit -n"));
}

}  // namespace
}  // namespace sluice::test
