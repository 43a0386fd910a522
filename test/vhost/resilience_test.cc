// A front end that floods, blocks or exhausts what all share: the others of the same reactor go on.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "lib/vhost/guarded_write.h"
#include "lib/vhost/limits.h"
#include "test/vhost/in_process_fixture.h"

namespace sluice::test {
namespace {

using vhost::BlkStatus;
using vhost::MemoryRegion;
using vhost::Request;
using vhost::RingFault;

using VhostResilience = InProcess<TargetFixture>;

// ---- Connections

// Connects and goes, without waiting for anything. False when the backlog is full.
bool touch(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
}

TEST_F(VhostResilience, ConnectionsThatCloseAtOnceNeitherNestNorDelayOthers) {
  auto other = running({}, 1);
  ASSERT_FALSE(HasFailure());
  // As many as the backlog takes, all at once.
  FrontEnd first;
  ASSERT_TRUE(first.connect(socket_path())) << first.error();
  ASSERT_TRUE(first.fence()) << first.error();
  int waiting = 0;
  while (waiting < 5000 && touch(socket_path())) waiting++;
  EXPECT_GT(waiting, 50);
  first.channel().close();
  expect_io_works(*other);
  // And as many as come.
  {
    const Repeated left([path = socket_path()] { return touch(path); });
    const Repeated right([path = socket_path()] { return touch(path); });
    uint32_t seed = 0;
    for (const Deadline deadline(1000); !deadline.passed() && !HasFailure();) expect_io_works(*other, 0, seed++);
    EXPECT_TRUE(eventually([&] { return left.count() + right.count() > 100; }));
  }
  expect_target_alive(0);
}

// The kernel keeps a connection that could not be accepted in the backlog, and tells of it only once.
TEST_F(VhostResilience, FrontEndIsServedOnceThereAreDescriptorsAgain) {
  struct Limit {
    Limit() { ::getrlimit(RLIMIT_NOFILE, &before); }
    ~Limit() { ::setrlimit(RLIMIT_NOFILE, &before); }
    rlimit before{};
  };
  testing::internal::CaptureStderr();
  FrontEnd front_end;
  {
    const Limit limit;
    // All below the first free one are taken; that one is left, for our end of the connection.
    const int free = UniqueFd(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0)).get();
    rlimit lowered = limit.before;
    lowered.rlim_cur = static_cast<rlim_t>(free) + 1;
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &lowered), 0);
    EXPECT_TRUE(front_end.connect(socket_path())) << front_end.error();
    // It says so: what is written to the standard error is in a file now.
    struct stat captured{};
    EXPECT_TRUE(eventually([&] { return ::fstat(STDERR_FILENO, &captured) == 0 && captured.st_size > 0; }));
    EXPECT_TRUE(front_end.send(Request::kGetFeatures));
    EXPECT_TRUE(front_end.channel().stays_silent());
  }
  EXPECT_TRUE(front_end.receive()) << "without another connection to remind of it";
  EXPECT_TRUE(front_end.fence()) << front_end.error();
  EXPECT_THAT(testing::internal::GetCapturedStderr(), testing::HasSubstr("cannot accept a front end"));
  front_end.channel().close();
  expect_target_alive();
}

TEST_F(VhostResilience, FrontEndsThatSendGarbageWriteFewLogLines) {
  testing::internal::CaptureStderr();
  for (int i = 0; i < 1000; i++) {
    FrontEnd front_end;
    ASSERT_TRUE(front_end.connect(socket_path())) << i;
    // Not a request; one that is refused and has no acknowledgement; one that must not be sent.
    if (i % 3 == 0) front_end.channel().send_bytes(Bytes(sizeof(vhost::Header)));
    if (i % 3 == 1) front_end.send(Request::kSetVringNum, bytes_of(vhost::VringState{0, 3}));
    if (i % 3 == 2) front_end.send(Request::kGetInflightFd, Bytes(20));
    ASSERT_TRUE(front_end.channel().wait_closed()) << i;
  }
  const std::string written = testing::internal::GetCapturedStderr();
  // A handful at once, and then one in ten seconds.
  EXPECT_GE(std::ranges::count(written, '\n'), 1);
  EXPECT_LE(std::ranges::count(written, '\n'), 20) << written;
  expect_target_alive();
}

// ---- Floods of messages

class VhostFlood : public VhostResilience {
 public:
  // The other controller's requests take their share of the reactor while one front end sends without a pause.
  void expect_others_share(const std::function<bool(FrontEnd&, uint64_t)>& send) {
    auto other = running({}, 1);
    Session flooding;
    ASSERT_TRUE(flooding.open(socket_path())) << flooding.error();
    ASSERT_FALSE(HasFailure());
    {
      uint64_t sent = 0;
      const Repeated flood([&send, &flooding, sent]() mutable { return send(flooding.front_end(), sent++); });
      ASSERT_TRUE(eventually([&] { return flood.count() > 100; })) << flooding.error();
      const uint64_t before = flood.count();
      const Deadline deadline(kTimeoutMs);
      for (uint32_t i = 0; i < 100 && !HasFailure(); i++) expect_io_works(*other, 0, i);
      EXPECT_FALSE(deadline.passed());
      EXPECT_TRUE(eventually([&] { return flood.count() > before; })) << flooding.error();
    }
    flooding.close();
    expect_target_alive();
  }
};

TEST_F(VhostFlood, MessagesDoNotStarveOtherControllers) {
  // Many at once: one system call of ours for a hundred of the target's.
  Bytes messages;
  for (int i = 0; i < 200; i++)
    messages = messages + bytes_of(vhost::Header{static_cast<uint32_t>(Request::kSetOwner), vhost::kVersion, 0});
  expect_others_share([&](FrontEnd& front_end, uint64_t) { return front_end.channel().send_bytes(messages); });
}

TEST_F(VhostFlood, MemoryTablesDoNotStarveOtherControllers) {
  const GuestMemory memory(GuestMemory::many_regions(vhost::kMaxRegions, 1 << 20));
  // Two that have no mapping in common.
  std::vector<MemoryRegion> smaller = memory.regions();
  for (MemoryRegion& region : smaller) region.size /= 2;
  const Bytes tables[] = {mem_table_payload(memory.regions()), mem_table_payload(smaller)};
  const std::vector<int> fds = repeat(memory.fd(), vhost::kMaxRegions);
  expect_others_share(
      [&](FrontEnd& front_end, uint64_t sent) { return front_end.send(Request::kSetMemTable, tables[sent % 2], fds); });
}

// A guest that fills its ring again as soon as a request is done, with large requests.
TEST_F(VhostFlood, RequestsDoNotStarveOtherControllers) {
  auto other = running({}, 1);
  auto flooding = running({.queue_size = 1024});
  ASSERT_FALSE(HasFailure());
  GuestMemory& memory = flooding->memory();
  const uint64_t header = memory.allocate(kHigh, sizeof(vhost::BlkRequestHeader));
  memory.write(header, bytes_of(vhost::BlkRequestHeader{.type = 0}));
  constexpr uint32_t kBytes = 256 << 10;
  const uint64_t data = memory.allocate(kHigh, kBytes);
  const uint64_t status = memory.allocate(kHigh, 1);
  const std::vector<Segment> request{
      {header, sizeof(vhost::BlkRequestHeader)}, {data, kBytes, true}, {status, 1, true}};
  RingDriver& ring = flooding->ring(0);
  {
    const Repeated flood([&] {
      while (ring.free_descriptors() >= request.size()) ring.add_chain(request);
      ring.publish();
      ring.kick();
      bool any = false;
      while (ring.poll_used()) any = true;
      return any;
    });
    ASSERT_TRUE(eventually([&] { return flood.count() > 10; })) << ring.violation();
    const uint64_t before = flood.count();
    const Deadline deadline(2 * kTimeoutMs);
    for (uint32_t i = 0; i < 50 && !HasFailure(); i++) expect_io_works(*other, 0, i);
    EXPECT_FALSE(deadline.passed());
    EXPECT_TRUE(eventually([&] { return flood.count() > before; })) << ring.violation();
  }
  EXPECT_EQ(ring.violation(), "");
}

// ---- Descriptors that block

// What the target has set non-blocking is the file's flag, which the front end shares.
void make_blocking(int fd) { ASSERT_EQ(::fcntl(fd, F_SETFL, 0), 0); }

// The next write of eight bytes to the eventfd or pipe finds no room.
void fill(int fd, bool pipe) {
  if (pipe) {
    const Bytes much(4096);
    while (::write(fd, much.data(), much.size()) > 0) {
    }
    while (::write(fd, much.data(), 1) > 0) {
    }
    return;
  }
  uint64_t value = 0;
  [[maybe_unused]] const ssize_t emptied = ::read(fd, &value, sizeof(value));
  value = 0xffff'ffff'ffff'fffe;
  ASSERT_EQ(::write(fd, &value, sizeof(value)), static_cast<ssize_t>(sizeof(value)));
}

class VhostBlockingDescriptor : public VhostResilience, public testing::WithParamInterface<bool> {
 public:
  void SetUp() override {
    vhost::forget_blocked_writes();
    VhostResilience::SetUp();
    if (IsSkipped()) return;
    session_ = running({.num_queues = 2});
    other_ = running({}, 1);
    ASSERT_FALSE(HasFailure());
    if (GetParam()) {
      int ends[2] = {-1, -1};
      ASSERT_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
      reader_.reset(ends[0]);
      writer_.reset(ends[1]);
    } else {
      writer_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    }
  }
  void give(Request request) {
    ASSERT_TRUE(session_->front_end().set_vring_fd(request, 0, writer_.get()));
    ASSERT_TRUE(session_->front_end().fence()) << session_->error();
    fill(writer_.get(), GetParam());
    make_blocking(writer_.get());
  }
  void expect_others_unharmed() {
    expect_io_works(*session_, 1);
    expect_io_works(*other_);
    EXPECT_TRUE(session_->front_end().fence()) << session_->error();
  }
  vhost::SessionInfo::Queue queue() { return session_info().queues.at(0); }

 protected:
  UniqueFd reader_, writer_;
  std::unique_ptr<Session> session_, other_;
};

TEST_P(VhostBlockingDescriptor, OfCallsCostsOnlyItsRing) {
  give(Request::kSetVringCall);
  ASSERT_FALSE(HasFailure());
  BlkDriver& blk = session_->blk(0);
  blk.poll_instead_of_calls(true);
  session_->ring(0).enable_calls();
  blk.submit(read_request(0, 512));
  ASSERT_TRUE(blk.complete()) << "what was to be told is in the ring";
  EXPECT_TRUE(session_->ring(0).err_signalled());
  EXPECT_EQ(queue().fault, RingFault::kCallBlocked);
  EXPECT_FALSE(queue().running);
  expect_others_unharmed();
  // Started anew it works, without the descriptor.
  ASSERT_TRUE(session_->front_end().set_vring_fd(Request::kSetVringKick, 0, session_->ring(0).kick_fd()));
  session_->ring(0).enable_calls();
  expect_io_works(*session_, 0);
  EXPECT_EQ(queue().fault, RingFault::kNone);
}

// The second time nobody waits for it: the write is made in a way that cannot block, and the ring goes on.
TEST_P(VhostBlockingDescriptor, OfCallsBlocksOnceOnly) {
  for (const RingFault expected : {RingFault::kCallBlocked, RingFault::kNone, RingFault::kNone}) {
    if (expected == RingFault::kNone) {
      ASSERT_TRUE(session_->front_end().set_vring_fd(Request::kSetVringKick, 0, session_->ring(0).kick_fd()));
    }
    give(Request::kSetVringCall);
    ASSERT_FALSE(HasFailure());
    BlkDriver& blk = session_->blk(0);
    blk.poll_instead_of_calls(true);
    session_->ring(0).enable_calls();
    blk.submit(read_request(0, 512));
    ASSERT_TRUE(blk.complete());
    EXPECT_TRUE(eventually([&] { return queue().fault == expected; })) << to_string(queue().fault);
  }
  expect_others_unharmed();
  // Emptied, the descriptor tells of completions again.
  const int end = GetParam() ? reader_.get() : writer_.get();
  ASSERT_EQ(::fcntl(end, F_SETFL, O_NONBLOCK), 0);
  Bytes much(1 << 16);
  while (::read(end, much.data(), much.size()) > 0) {
  }
  session_->ring(0).enable_calls();
  session_->blk(0).submit(read_request(0, 512));
  ASSERT_TRUE(session_->blk(0).complete());
  EXPECT_NE(wait_for(end, POLLIN, Deadline(kTimeoutMs)), 0);
}

TEST_P(VhostBlockingDescriptor, OfErrorsBlocksNobody) {
  give(Request::kSetVringErr);
  ASSERT_FALSE(HasFailure());
  SKIP_UNLESS(!session_->has(vhost::kFeatureRingPacked));
  session_->ring(0).set_avail_idx(1000);
  session_->ring(0).kick_always();
  EXPECT_TRUE(eventually([&] { return queue().fault == RingFault::kAvailJump; }));
  expect_others_unharmed();
}

std::string kind_name(const testing::TestParamInfo<bool>& info) { return info.param ? "Pipe" : "Eventfd"; }
INSTANTIATE_TEST_SUITE_P(All, VhostBlockingDescriptor, testing::Bool(), kind_name);

// ---- Requests that are much larger inside than they look

// Memory regions may be as small as a byte, and a buffer may lie in as many of them as there are.
class VhostTinyRegions : public VhostResilience {
 public:
  static constexpr uint32_t kTiny = 400;  // regions, of a byte each, that adjoin
  static constexpr uint64_t kTinyGpa = uint64_t{1} << 40;

  void SetUp() override {
    VhostResilience::SetUp();
    if (IsSkipped()) return;
    session_ = running({.dialect = Dialect::kQemu9, .num_queues = 2, .queue_size = 1024});
    ASSERT_FALSE(HasFailure());
    const GuestMemory& memory = session_->memory();
    for (uint32_t i = 0; i < kTiny; i++) {
      const MemoryRegion region{
          .guest_address = kTinyGpa + i, .size = 1, .user_address = kTinyGpa + i, .mmap_offset = 0};
      ASSERT_EQ(session_->front_end().judge(Request::kAddMemReg, mem_reg_payload(region), repeat(memory.fd(), 1)),
                Verdict::kAccepted);
    }
  }
  // Adds a read with `buffers` buffers of all tiny regions, and then what is left to `size`. Returns its head.
  uint16_t add(uint32_t buffers, uint32_t size) {
    GuestMemory& memory = session_->memory();
    const uint64_t header = memory.allocate(kHigh, sizeof(vhost::BlkRequestHeader));
    memory.write(header, bytes_of(vhost::BlkRequestHeader{.type = 0}));
    std::vector<Segment> segments{{header, sizeof(vhost::BlkRequestHeader)}};
    for (uint32_t i = 0; i < buffers; i++) segments.push_back({kTinyGpa, kTiny, true});
    const uint32_t rest = size + 1 - buffers * kTiny;
    segments.push_back({memory.allocate(kHigh, rest), rest, true});
    return session_->ring(0).add_chain(segments);
  }
  void publish() {
    session_->ring(0).publish();
    session_->ring(0).kick_always();
  }

 protected:
  std::unique_ptr<Session> session_;
};

TEST_F(VhostTinyRegions, HoldBuffersWithinTheLimitOfPieces) {
  add(5, 2048);
  publish();
  static_assert(5 * kTiny + 2 <= vhost::kMaxSegments);
  EXPECT_TRUE(session_->ring(0).wait_used());
  EXPECT_EQ(session_info().queues.at(0).fault, RingFault::kNone);
}

TEST_F(VhostTinyRegions, StopTheRingBeyondTheLimitOfPieces) {
  static_assert(6 * kTiny > vhost::kMaxSegments);
  const uint64_t before = iostat().of(IoType::kRead).ops;
  SKIP_UNLESS(!session_->has(vhost::kFeatureRingPacked));
  // The largest a ring can hold, as often as the ring allows: gigabytes, if it were translated.
  const uint16_t head = add(1020, 1020 * kTiny);
  for (int i = 0; i < 1000; i++) session_->ring(0).publish_head(head);
  publish();
  EXPECT_TRUE(session_->ring(0).err_signalled());
  EXPECT_EQ(session_info().queues.at(0).fault, RingFault::kNotMapped);
  EXPECT_EQ(session_info().in_flight, 0U);
  EXPECT_EQ(session_->ring(0).used_idx(), 0);
  EXPECT_EQ(iostat().of(IoType::kRead).ops, before);
  expect_io_works(*session_, 1);
}

}  // namespace
}  // namespace sluice::test
