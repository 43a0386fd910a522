// A front end that is slow, silent, dying or malicious: it costs its own session and nothing else.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>

#include "app/conformance/target_fixture.h"

namespace sluice::test {
namespace {

using ::testing::AnyOf;
using vhost::BlkStatus;
using vhost::Header;
using vhost::Request;
using vhost::VringState;

class VhostHostile : public TargetFixture {
 public:
  // The other controller must not notice; if there is only one socket, the next front end must not.
  void expect_others_unharmed() { expect_target_alive(socket_path(1).empty() ? 0 : 1); }
};

// ---- Dying

// "Communication": a front end may close its connection at any message, or in the middle of one.
CASE(VhostHostile, FrontEndMayDieAtAnyMessage, "vhost-user, Communication: the front-end may close the connection") {
  for (Dialect dialect : {Dialect::kQemu9, Dialect::kLibblkio, Dialect::kCloudHypervisor}) {
    int messages = 0;
    {
      Session whole({.dialect = dialect, .num_queues = 2});
      ASSERT_TRUE(whole.open_and_start(socket_path())) << whole.error();
      whole.stop();
      messages = whole.front_end().messages_sent();
    }
    for (bool half : {false, true}) {
      for (int i = 0; i < messages; i++) {
        Session dying({.dialect = dialect, .num_queues = 2});
        // A target that has not yet noticed the last death may turn this one away; that is a death at message 0.
        dying.front_end().die_after(i, half);
        if (dying.open_and_start(socket_path())) dying.stop();
        EXPECT_FALSE(dying.front_end().channel().connected() && dying.front_end().dead());
      }
      SCOPED_TRACE(std::string(to_string(dialect)) + (half ? ", in the middle of messages" : ", between messages"));
      expect_target_alive();
      if (HasFailure()) return;
    }
  }
}

CASE(VhostHostile, FrontEndMayDieWithRequestsInFlight,
     "vhost-user, Communication: the front-end may close the connection") {
  for (int round = 0; round < 20; round++) {
    Session session({.num_queues = 2});
    ASSERT_TRUE(session.open_and_start(socket_path())) << "round " << round << ": " << session.error();
    for (uint32_t q = 0; q < session.num_queues(); q++) {
      for (int i = 0; i < 30; i++)
        session.blk(q).add(i % 2 == 0 ? read_request(0, 65536) : write_request(128, Bytes(65536)));
      session.ring(q).publish();
      session.ring(q).kick_always();
    }
    if (round % 2 == 0) ::usleep(static_cast<useconds_t>(50 * round));
    session.close();
  }
  expect_target_alive();
}

// Sessions that come and go leave nothing behind.
CASE(VhostHostile, ManySessionsLeakNoDescriptors, "practice: sessions come and go for months") {
  FrontEnd probe;
  ASSERT_TRUE(probe.connect(socket_path())) << probe.error();
  ucred peer{};
  socklen_t size = sizeof(peer);
  ASSERT_EQ(::getsockopt(probe.channel().fd(), SOL_SOCKET, SO_PEERCRED, &peer, &size), 0);
  probe.channel().close();
  const std::string path = "/proc/" + std::to_string(peer.pid) + "/fd";
  std::error_code error;
  const auto count = [&] {
    return std::distance(std::filesystem::directory_iterator(path, error), std::filesystem::directory_iterator());
  };
  count();
  if (error)
    GTEST_SKIP() << "the descriptors of the target's process cannot be counted: " << path << ": " << error.message();
  expect_target_alive();
  ::usleep(kQuietMs * 1000);
  const auto before = count();
  for (int i = 0; i < 100; i++) {
    Session session({.dialect = kAllDialects[static_cast<size_t>(i) % std::size(kAllDialects)], .num_queues = 4});
    ASSERT_TRUE(session.open_and_start(socket_path())) << i << ": " << session.error();
  }
  Deadline deadline(kTimeoutMs);
  while (count() > before && !deadline.passed()) ::usleep(1000);
  EXPECT_LE(count(), before);
  expect_target_alive();
}

// ---- Slow and silent ones

CASE(VhostHostile, PartialMessageDelaysNobodyElse, "practice: a front end that is slow") {
  Session slow;
  ASSERT_TRUE(slow.open(socket_path(0))) << slow.error();
  Bytes header = bytes_of(Header{static_cast<uint32_t>(Request::kSetMemTable), vhost::kVersion, 136});
  ASSERT_TRUE(slow.front_end().channel().send_bytes(header, repeat(slow.memory().fd(), 4)));
  if (!socket_path(1).empty()) expect_target_alive(1);
  Session slower;
  slow.close();
  ASSERT_TRUE(slower.open(socket_path(0))) << slower.error();
  ASSERT_TRUE(slower.front_end().channel().send_bytes(std::span(header).first(5)));
  if (!socket_path(1).empty()) expect_target_alive(1);
  slower.close();
  expect_target_alive();
}

CASE(VhostHostile, SilentConnectionDelaysNobodyElse, "practice: a front end that is silent") {
  FrontEnd silent[4];
  ASSERT_TRUE(silent[0].connect(socket_path(0))) << silent[0].error();
  for (auto& front_end : std::span(silent).subspan(1)) front_end.connect(socket_path(0));  // or is turned away
  if (!socket_path(1).empty()) expect_target_alive(1);
  for (auto& front_end : silent) front_end.channel().close();
  expect_target_alive(0);
}

// One front end per socket: whatever becomes of a second one, the first goes on.
CASE(VhostHostile, SecondFrontEndDoesNotDisturbTheFirst, "practice: two front ends on one socket") {
  auto first = running({.num_queues = 2});
  ASSERT_FALSE(HasFailure());
  expect_io_works(*first);
  FrontEnd second;
  if (second.connect(socket_path())) {
    second.send(Request::kSetOwner);
    second.send(Request::kSetFeatures, bytes_of(uint64_t{0}));
    second.send(Request::kSetVringEnable, bytes_of(VringState{0, 0}));
    second.receive(kQuietMs);
  }
  for (uint32_t i = 0; i < 3; i++) expect_io_works(*first, i % 2, i);
  EXPECT_TRUE(first->front_end().fence()) << first->error();
  second.channel().close();
  expect_io_works(*first);
  first.reset();
  expect_target_alive();
}

// ---- Rubbish

// Seeded, so that a failure can be repeated.
CASE(VhostHostile, SurvivesRandomBytes, "practice: a front end that breaks vhost-user, Message Specification") {
  for (uint32_t seed = 1; seed <= 100; seed++) {
    FrontEnd front_end;
    ASSERT_TRUE(front_end.connect(socket_path())) << "seed " << seed;
    FdProbe probe;
    front_end.channel().send_bytes(pattern(1 + seed * 37 % 4000, seed), repeat(probe.fd(), seed % 5));
    front_end.receive(1);
  }
  expect_target_alive();
}

// Whole messages with proper headers, and with payloads that are random or have extreme values, in random order.
CASE(VhostHostile, SurvivesRandomMessages, "practice: a front end that breaks vhost-user, Message Specification") {
  uint32_t state = 1;
  auto random = [&state](size_t limit) {
    state = state * 1664525U + 1013904223U;
    return (state >> 8) % limit;
  };
  for (uint32_t seed = 1; seed <= 60; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    state = seed;
    Session session({.num_queues = 2});
    bool opened = session.open(socket_path());
    ASSERT_TRUE(opened) << session.error();
    if (seed % 3 == 0) session.start();
    UniqueFd event(::eventfd(0, EFD_NONBLOCK));
    for (int i = 0; i < 40; i++) {
      auto request = static_cast<Request>(random(vhost::kMaxRequest + 2));
      constexpr uint32_t kSizes[] = {0, 4, 8, 8, 8, 16, 24, 40, 40, 136, 268, 1032};
      Bytes payload = pattern(kSizes[random(std::size(kSizes))], state);
      // Small numbers in the first words, where indices and counts are, make deeper code run.
      constexpr uint32_t kWords[] = {0, 1, 2, 3, 4, 8, 64, 255, 256, 0x8000'0000, 0xffff'ffff};
      for (size_t at = 0; at + 4 <= payload.size() && at < 16; at += 4) {
        uint32_t word = kWords[random(std::size(kWords))];
        if (random(4) != 0) std::memcpy(payload.data() + at, &word, sizeof(word));
      }
      int fd = random(2) == 0 ? event.get() : session.memory().fd();
      uint32_t flags = vhost::kVersion | (random(2) == 0 ? vhost::kNeedReplyFlag : 0);
      if (!session.front_end().send(request, payload, repeat(fd, random(4)), flags)) break;
      while (session.front_end().receive(0)) {
      }
    }
    session.close();
  }
  expect_target_alive();
  expect_others_unharmed();
}

// ---- Descriptors

// A kick descriptor that no event loop takes, or that is something else than an eventfd.
CASE(VhostHostile, RefusesAKickDescriptorThatIsNoEventfd,
     "practice: a front end that breaks vhost-user, VHOST_USER_SET_VRING_KICK") {
  auto session = running({.num_queues = 2});
  ASSERT_FALSE(HasFailure());
  auto& fe = session->front_end();
  EXPECT_THAT(fe.judge(Request::kSetVringKick, bytes_of(uint64_t{1}), repeat(session->memory().fd(), 1)),
              AnyOf(Verdict::kRefused, Verdict::kClosed))
      << "a file";
  if (!fe.fence()) {
    session.reset();
    session = running({.num_queues = 2});
  }
  FdProbe pipe;
  Verdict verdict = session->front_end().judge(Request::kSetVringKick, bytes_of(uint64_t{1}), repeat(pipe.fd(), 1));
  EXPECT_NE(verdict, Verdict::kSilent) << "a pipe";
  if (session->front_end().fence()) expect_io_works(*session, 0);
  session.reset();
  pipe.forget();
  EXPECT_TRUE(pipe.closed_by_peer());
  expect_target_alive();
}

// Its front end reads the kick descriptor itself, and makes it blocking: nobody may wait in a read of it.
CASE(VhostHostile, DrainedKickDescriptorBlocksNobody, "practice: a front end that reads what it gave away") {
  auto session = running({.num_queues = 2});
  ASSERT_FALSE(HasFailure());
  UniqueFd kick(::eventfd(0, 0));
  ASSERT_TRUE(session->stop_ring(0));
  ASSERT_TRUE(session->set_up_ring(0));
  ASSERT_TRUE(session->front_end().set_vring_fd(Request::kSetVringKick, 0, kick.get()));
  ASSERT_TRUE(session->front_end().fence());
  for (int i = 0; i < 2000; i++) {
    // The flag belongs to the open file, which both sides share: what the target has set is gone.
    ::fcntl(kick.get(), F_SETFL, ::fcntl(kick.get(), F_GETFL) & ~O_NONBLOCK);
    uint64_t value = 1;
    ASSERT_EQ(::write(kick.get(), &value, sizeof(value)), static_cast<ssize_t>(sizeof(value)));
    iovec iov{.iov_base = &value, .iov_len = sizeof(value)};
    [[maybe_unused]] ssize_t n = ::preadv2(kick.get(), &iov, 1, -1, RWF_NOWAIT);
  }
  expect_io_works(*session, 1);
  EXPECT_TRUE(session->front_end().fence()) << session->error();
  session.reset();
  expect_others_unharmed();
}

// A call descriptor whose counter is full: a write to it must not wait, whatever flags the front end gave it.
CASE(VhostHostile, FullCallDescriptorBlocksNobody, "practice: a front end that never reads its calls") {
  auto session = running({.num_queues = 2});
  ASSERT_FALSE(HasFailure());
  UniqueFd call(::eventfd(0, 0));
  uint64_t full = 0xffff'ffff'ffff'fffe;
  ASSERT_EQ(::write(call.get(), &full, sizeof(full)), static_cast<ssize_t>(sizeof(full)));
  ASSERT_TRUE(session->front_end().set_vring_fd(Request::kSetVringCall, 0, call.get()));
  session->blk(0).poll_instead_of_calls(true);
  session->ring(0).enable_calls();
  for (uint32_t i = 0; i < 3; i++) {
    session->ring(0).enable_calls();
    expect_io_works(*session, 0, i);
    expect_io_works(*session, 1, i);
  }
  EXPECT_TRUE(session->front_end().fence()) << session->error();
}

// ---- Memory that vanishes

// "Memory access" says nothing of files that shrink; touching what is gone raises SIGBUS in the process that does.
CASE(VhostHostile, TruncatedMemoryCostsOnlyItsSession, "practice: a front end that breaks vhost-user, Memory access") {
  // Of the same process, if there is one.
  auto other = socket_path(1).empty() ? nullptr : running({}, 1);
  ASSERT_FALSE(HasFailure());
  for (int round = 0; round < 3; round++) {
    auto session = running({.num_queues = 2});
    ASSERT_FALSE(HasFailure());
    expect_io_works(*session);
    if (round == 1) {
      // With a request published, whose ring and buffers are about to go.
      session->blk().add(read_request(0, 65536));
      session->ring().publish();
    }
    ASSERT_EQ(::ftruncate(session->memory().fd(), 0), 0);
    // From here on the test must not touch this memory either: it is the same file.
    uint64_t one = 1;
    for (int i = 0; i < 3; i++) {
      EXPECT_EQ(::write(session->ring().kick_fd(), &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
      ::usleep(5000);
    }
    session->front_end().fence();  // answered, or the session has ended
    if (other != nullptr) expect_io_works(*other);
    session->close();
  }
  expect_target_alive();
}

// Shrunk before it is mapped: the regions reach beyond the end.
CASE(VhostHostile, RefusesMemoryBeyondTheEndOfItsFile,
     "practice: a front end that breaks vhost-user, VHOST_USER_SET_MEM_TABLE") {
  Session session;
  ASSERT_TRUE(session.open(socket_path())) << session.error();
  ASSERT_EQ(::ftruncate(session.memory().fd(), 4 << 20), 0);
  const auto& regions = session.memory().regions();
  EXPECT_NE(session.front_end().judge(Request::kSetMemTable, mem_table_payload(regions),
                                      repeat(session.memory().fd(), regions.size())),
            Verdict::kAccepted);
  session.close();
  expect_target_alive();
}

}  // namespace
}  // namespace sluice::test
