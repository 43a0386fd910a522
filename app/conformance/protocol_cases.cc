// Framing, replies and acknowledgements: what every message has in common.
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>

#include "app/conformance/target_fixture.h"

namespace sluice::test {
namespace {

using ::testing::AnyOf;
using vhost::Header;
using vhost::Request;
using vhost::VringState;

constexpr uint32_t kNeedReply = vhost::kVersion | vhost::kNeedReplyFlag;

// A connection on which REPLY_ACK is agreed, nothing else done.
class VhostProtocol : public TargetFixture {
 public:
  void SetUp() override {
    TargetFixture::SetUp();
    if (IsSkipped()) return;
    session_ = std::make_unique<Session>(SessionOptions{.num_queues = 2});
    ASSERT_TRUE(session_->open(socket_path())) << session_->error();
    SKIP_UNLESS(session_->has_protocol(vhost::kProtocolReplyAck));
  }

  FrontEnd& fe() { return session_->front_end(); }
  // Opens a new session if the last message has ended the old one.
  void reopen() {
    session_ = std::make_unique<Session>(SessionOptions{.num_queues = 2});
    ASSERT_TRUE(session_->open(socket_path())) << session_->error();
  }
  // Refused, and then still in session; or the session was ended, and there is a new one.
  ::testing::AssertionResult refused(Request request, const Bytes& payload = {}, std::span<const int> fds = {}) {
    Verdict verdict = fe().judge(request, payload, fds);
    if (verdict == Verdict::kRefused && fe().fence()) return ::testing::AssertionSuccess();
    reopen();
    if (verdict == Verdict::kClosed) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << (verdict == Verdict::kRefused
                                                 ? "refused, and then nothing is answered any more"
                                                 : to_string(verdict));
  }

 protected:
  std::unique_ptr<Session> session_;
};

// "Communication": replies carry the version and the reply flag and nothing else, with the size of their payload.
CASE(VhostProtocol, RepliesCarryVersionAndReplyFlagOnly,
     "vhost-user, Header: flags of replies, which QEMU compares for equality") {
  std::vector<Request> requests = {Request::kGetFeatures, Request::kGetProtocolFeatures, Request::kGetQueueNum};
  if (session_->has_protocol(vhost::kProtocolConfigureMemSlots)) requests.push_back(Request::kGetMaxMemSlots);
  if (session_->has_protocol(vhost::kProtocolStatus)) requests.push_back(Request::kGetStatus);
  for (uint32_t flags : {vhost::kVersion, kNeedReply}) {
    for (Request request : requests) {
      ASSERT_TRUE(fe().send(request, {}, {}, flags));
      auto reply = fe().receive();
      ASSERT_TRUE(reply) << "request " << static_cast<uint32_t>(request);
      EXPECT_EQ(reply->header.request, static_cast<uint32_t>(request));
      EXPECT_EQ(reply->header.flags, 0x5U) << "request " << reply->header.request;
      EXPECT_EQ(reply->header.size, 8U) << "request " << reply->header.request;
    }
  }
}

// "VHOST_USER_PROTOCOL_F_REPLY_ACK": a message with a reply of its own gets that one only.
CASE(VhostProtocol, NeedReplyOnAQueryAddsNoSecondAnswer,
     "vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK: not for messages with a reply of their own") {
  ASSERT_TRUE(fe().get_u64(Request::kGetFeatures, kNeedReply)) << fe().error();
  EXPECT_TRUE(fe().channel().stays_silent());
  ASSERT_TRUE(fe().query(Request::kGetVringBase, bytes_of(VringState{0, 0}), {}, kNeedReply)) << fe().error();
  EXPECT_TRUE(fe().channel().stays_silent());
  Bytes config = bytes_of(vhost::ConfigHeader{0, 8, 0}) + Bytes(8);
  ASSERT_TRUE(fe().query(Request::kGetConfig, config, {}, kNeedReply)) << fe().error();
  EXPECT_TRUE(fe().channel().stays_silent());
}

// The same: need_reply means something only after the feature is agreed on.
CASE(VhostProtocol, NeedReplyIsIgnoredBeforeReplyAckIsNegotiated,
     "vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK: only once negotiated") {
  FrontEnd fresh;
  session_->close();
  ASSERT_TRUE(fresh.connect(socket_path()));
  ASSERT_TRUE(fresh.send(Request::kSetOwner, {}, {}, kNeedReply));
  EXPECT_TRUE(fresh.get_u64(Request::kGetFeatures)) << "something else was answered first: " << fresh.error();
}

// The same, with the one exception that User-Mode Linux makes: it waits for the ack of the very message that agrees.
CASE(VhostProtocol, AcksTheSetProtocolFeaturesThatNegotiatesReplyAck,
     "practice: vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK: User-Mode Linux waits for it") {
  session_->close();
  Session fresh({.dialect = Dialect::kUml});
  ASSERT_TRUE(fresh.open(socket_path())) << fresh.error();
  EXPECT_TRUE(fresh.front_end().channel().stays_silent());
}

CASE(VhostProtocol, DoesNotAckSetProtocolFeaturesWithoutReplyAck,
     "vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK: only once negotiated") {
  session_->close();
  FrontEnd fresh;
  ASSERT_TRUE(fresh.connect(socket_path()));
  ASSERT_TRUE(fresh.get_u64(Request::kGetFeatures)) << fresh.error();
  ASSERT_TRUE(fresh.get_u64(Request::kGetProtocolFeatures)) << fresh.error();
  ASSERT_TRUE(fresh.send(Request::kSetProtocolFeatures, bytes_of(vhost::kProtocolConfig), {}, kNeedReply));
  EXPECT_TRUE(fresh.fence()) << "something else was answered first: " << fresh.error();
}

// The same: every message without a reply is acked, with zero when it succeeded.
CASE(VhostProtocol, AcksEachSetMessageExactlyOnce, "vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK") {
  GuestMemory& memory = session_->memory();
  RingDriver& ring = session_->ring();
  EXPECT_EQ(fe().judge(Request::kSetOwner), Verdict::kAccepted);
  EXPECT_EQ(fe().judge(Request::kSetFeatures, bytes_of(session_->features())), Verdict::kAccepted);
  EXPECT_EQ(fe().judge(Request::kSetMemTable, mem_table_payload(memory.regions()),
                       repeat(memory.fd(), memory.regions().size())),
            Verdict::kAccepted);
  EXPECT_EQ(fe().judge(Request::kSetVringNum, bytes_of(VringState{0, ring.size()})), Verdict::kAccepted);
  EXPECT_EQ(fe().judge(Request::kSetVringBase, bytes_of(VringState{0, session_->base()})), Verdict::kAccepted);
  EXPECT_EQ(fe().judge(Request::kSetVringAddr, bytes_of(ring.vring_addr(0))), Verdict::kAccepted);
  for (auto [request, fd] : {std::pair{Request::kSetVringCall, ring.call_fd()},
                             {Request::kSetVringErr, ring.err_fd()},
                             {Request::kSetVringKick, ring.kick_fd()}})
    EXPECT_EQ(fe().judge(request, bytes_of(uint64_t{0}), repeat(fd, 1)), Verdict::kAccepted);
  EXPECT_EQ(fe().judge(Request::kSetVringEnable, bytes_of(VringState{0, 1})), Verdict::kAccepted);
  EXPECT_TRUE(fe().channel().stays_silent());
  expect_io_works(*session_);
}

// Without need_reply, a message that needs no reply gets none, whether it succeeds or not.
CASE(VhostProtocol, StaysSilentWithoutNeedReply, "vhost-user, Communication: most requests have no reply") {
  ASSERT_TRUE(fe().send(Request::kSetOwner));
  ASSERT_TRUE(fe().send(Request::kSetVringNum, bytes_of(VringState{0, 64})));
  ASSERT_TRUE(fe().send(Request::kSetVringEnable, bytes_of(VringState{0, 0})));
  EXPECT_TRUE(fe().channel().stays_silent());
  EXPECT_TRUE(fe().fence()) << fe().error();
}

// "VHOST_USER_SET_FEATURES", "VHOST_USER_SET_PROTOCOL_FEATURES": only what was offered can be agreed on.
CASE(VhostProtocol, RefusesFeaturesThatWereNotOffered,
     "practice: a front end that breaks vhost-user, VHOST_USER_SET_FEATURES") {
  EXPECT_TRUE(refused(Request::kSetFeatures, bytes_of(session_->features() | uint64_t{1} << 63)));
  EXPECT_TRUE(refused(Request::kSetFeatures, bytes_of(~uint64_t{0})));
  EXPECT_TRUE(refused(Request::kSetProtocolFeatures, bytes_of(session_->protocol() | uint64_t{1} << 62)));
}

// Unknown messages, and known ones that a block device has no use for, are refused and do no harm.
CASE(VhostProtocol, RefusesUnknownAndUnsupportedMessages,
     "practice: a front end that is newer than the back end; vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK") {
  for (uint32_t number : {0U, 46U, 100U, 0x7fff'ffffU, 0xffff'ffffU}) {
    EXPECT_TRUE(refused(Request{number}, Bytes(8))) << "request " << number;
  }
  for (Request request : {Request::kSendRarp, Request::kNetSetMtu, Request::kSetVringEndian,
                          Request::kCloseCryptoSession, Request::kGpuSetSocket}) {
    EXPECT_TRUE(refused(request, Bytes(8))) << "request " << static_cast<uint32_t>(request);
  }
}

CASE(VhostProtocol, IgnoresUnknownMessagesWithoutNeedReply, "practice: a front end that is newer than the back end") {
  for (uint32_t number : {0U, 46U, 100U, 0xffff'ffffU}) ASSERT_TRUE(fe().send(Request{number}, Bytes(24)));
  EXPECT_TRUE(fe().fence()) << fe().error();
}

// Descriptors that come with a message that has no use for them are closed, not kept.
CASE(VhostProtocol, ClosesDescriptorsItHasNoUseFor,
     "practice: descriptors that no message takes (CVE-2019-14818, CVE-2022-0669)") {
  struct Case {
    Request request;
    Bytes payload;
  };
  const Case cases[] = {{Request{100}, Bytes(8)},
                        {Request::kSetOwner, {}},
                        {Request::kSetVringNum, bytes_of(VringState{0, 64})},
                        {Request::kSetVringEnable, bytes_of(VringState{0, 0})},
                        {Request::kGpuSetSocket, {}},
                        {Request::kRemMemReg, mem_reg_payload(session_->memory().regions()[0])}};
  for (const auto& one : cases) {
    std::vector<FdProbe> probes(3);
    std::vector<int> fds;
    for (auto& probe : probes) fds.push_back(probe.fd());
    fe().judge(one.request, one.payload, fds);
    for (auto& probe : probes) probe.forget();
    for (auto& probe : probes) EXPECT_TRUE(probe.closed_by_peer()) << static_cast<uint32_t>(one.request);
    if (!fe().fence()) reopen();
  }
  std::array<FdProbe, 2> probes;
  fe().send(Request::kGetFeatures, {}, std::array{probes[0].fd(), probes[1].fd()});
  for (auto& probe : probes) {
    probe.forget();
    EXPECT_TRUE(probe.closed_by_peer());
  }
}

// "VHOST_USER_RESET_OWNER" is deprecated: ignored, or all rings are disabled; the session stays.
CASE(VhostProtocol, ResetOwnerKeepsTheSession, "vhost-user, VHOST_USER_RESET_OWNER: ignored, or disables all rings") {
  ASSERT_TRUE(fe().send(Request::kResetOwner));
  EXPECT_TRUE(fe().fence()) << fe().error();
}

// "Header": another version is another protocol, so that nothing after it can be understood.
CASE(VhostProtocol, WrongVersionEndsTheSession,
     "practice: a front end that breaks vhost-user, Header: the version is 1") {
  for (uint32_t version : {0U, 2U, 3U}) {
    ASSERT_TRUE(fe().send(Request::kSetOwner, {}, {}, version));
    EXPECT_TRUE(fe().channel().wait_closed()) << "version " << version;
    reopen();
  }
  session_->close();
  expect_target_alive();
}

// An announced size beyond every message ends the session at once: nobody waits for that payload.
CASE(VhostProtocol, OversizeHeaderEndsTheSession, "practice: a front end that breaks vhost-user, Header: size") {
  for (uint32_t size : {vhost::kMaxPayloadSize + 1, 1U << 20, 0x7fff'ffffU, 0xffff'ffffU}) {
    Header header{static_cast<uint32_t>(Request::kSetMemTable), vhost::kVersion, size};
    ASSERT_TRUE(fe().channel().send_message(header));
    EXPECT_TRUE(fe().channel().wait_closed()) << "size " << size;
    reopen();
  }
}

// "Message Specification": a stream may be cut anywhere; the descriptors belong to a message's first byte.
CASE(VhostProtocol, AcceptsMessagesByteByByte, "vhost-user, Message Specification: a stream of bytes") {
  GuestMemory& memory = session_->memory();
  auto drip = [&](Request request, const Bytes& payload, std::span<const int> fds) {
    Bytes bytes = bytes_of(Header{static_cast<uint32_t>(request), kNeedReply, static_cast<uint32_t>(payload.size())});
    bytes = bytes + payload;
    for (size_t i = 0; i < bytes.size(); i++) {
      if (!fe().channel().send_bytes(std::span(bytes).subspan(i, 1), i == 0 ? fds : std::span<const int>()))
        return false;
      if (i % 8 == 0) ::usleep(300);
    }
    return true;
  };
  ASSERT_TRUE(drip(Request::kGetFeatures, {}, {}));
  auto features = fe().receive();
  ASSERT_TRUE(features);
  EXPECT_EQ(features->as<uint64_t>(), session_->offered());
  ASSERT_TRUE(
      drip(Request::kSetMemTable, mem_table_payload(memory.regions()), repeat(memory.fd(), memory.regions().size())));
  EXPECT_EQ(fe().judge_ack(Request::kSetMemTable), Verdict::kAccepted);
  ASSERT_TRUE(drip(Request::kSetVringNum, bytes_of(VringState{0, 64}), {}));
  EXPECT_EQ(fe().judge_ack(Request::kSetVringNum), Verdict::kAccepted);
  ASSERT_TRUE(drip(Request::kSetVringKick, bytes_of(uint64_t{0}), repeat(session_->ring().kick_fd(), 1)));
  // Nothing is set up for it to run, but the message itself must have arrived whole.
  EXPECT_THAT(fe().judge_ack(Request::kSetVringKick), AnyOf(Verdict::kAccepted, Verdict::kRefused));
}

CASE(VhostProtocol, AcceptsManyMessagesInOneWrite, "vhost-user, Message Specification: a stream of bytes") {
  Bytes bytes;
  for (uint32_t i = 0; i < 100; i++) {
    bytes = bytes + bytes_of(Header{static_cast<uint32_t>(Request::kSetVringNum), vhost::kVersion, 8});
    bytes = bytes + bytes_of(VringState{i % 2, 64});
  }
  for (int i = 0; i < 20; i++)
    bytes = bytes + bytes_of(Header{static_cast<uint32_t>(Request::kGetFeatures), vhost::kVersion, 0});
  ASSERT_TRUE(fe().channel().send_bytes(bytes));
  for (int i = 0; i < 20; i++) {
    auto reply = fe().receive();
    ASSERT_TRUE(reply) << "reply " << i;
    EXPECT_EQ(reply->as<uint64_t>(), session_->offered());
  }
}

// A front end that sends queries and reads no answers must not make the target grow or stall; it may be cut off.
CASE(VhostProtocol, FrontEndThatReadsNoRepliesHurtsOnlyItself, "practice: a front end that reads nothing") {
  Bytes bytes;
  for (int i = 0; i < 1000; i++)
    bytes = bytes + bytes_of(Header{static_cast<uint32_t>(Request::kGetFeatures), vhost::kVersion, 0});
  for (int i = 0; i < 100; i++) {
    ssize_t n = ::send(fe().channel().fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) break;
  }
  if (!socket_path(1).empty()) expect_target_alive(1);
  fe().channel().close();
  expect_target_alive();
}

// "Message Specification": each message has its size. One byte less or more is not that message.
CASE(VhostProtocol, RefusesWrongSizes, "practice: a front end that breaks vhost-user, Payload") {
  // Not the session's: that ends with each refusal.
  GuestMemory memory;
  RingDriver ring(memory, {});
  const auto& region = memory.regions()[0];
  int fd = memory.fd();
  struct Case {
    Request request;
    Bytes payload;
    size_t fds = 0;
    int fd = -1;
  };
  const Case cases[] = {
      {Request::kSetFeatures, bytes_of(session_->features())},
      {Request::kSetProtocolFeatures, bytes_of(session_->protocol())},
      {Request::kSetVringNum, bytes_of(VringState{0, 64})},
      {Request::kSetVringBase, bytes_of(VringState{0, 0})},
      {Request::kSetVringEnable, bytes_of(VringState{0, 0})},
      {Request::kSetVringAddr, bytes_of(ring.vring_addr(0))},
      {Request::kSetVringKick, bytes_of(uint64_t{0}), 1, ring.kick_fd()},
      {Request::kSetVringCall, bytes_of(uint64_t{0}), 1, ring.call_fd()},
      {Request::kSetVringErr, bytes_of(uint64_t{0}), 1, ring.err_fd()},
      {Request::kAddMemReg, mem_reg_payload(region), 1, fd},
      {Request::kRemMemReg, mem_reg_payload(region)},
  };
  for (const auto& one : cases) {
    for (bool longer : {false, true}) {
      Bytes payload = one.payload;
      payload.resize(longer ? payload.size() + 1 : payload.size() - 1);
      EXPECT_TRUE(refused(one.request, payload, repeat(one.fd, one.fds)))
          << "request " << static_cast<uint32_t>(one.request) << " of " << payload.size() << " bytes";
    }
    EXPECT_TRUE(refused(one.request, {}, repeat(one.fd, one.fds)))
        << "request " << static_cast<uint32_t>(one.request) << " without payload";
  }
  // SET_MEM_TABLE may be longer than its regions, never shorter.
  Bytes table = mem_table_payload(std::span(&region, 1));
  table.pop_back();
  EXPECT_TRUE(refused(Request::kSetMemTable, table, repeat(fd, 1)));
  EXPECT_TRUE(refused(Request::kSetMemTable, Bytes(7), repeat(fd, 1)));
  EXPECT_TRUE(refused(Request::kSetMemTable, {}, {}));
}

// Queries of the wrong size may be answered or not; they never confuse what comes next.
CASE(VhostProtocol, SurvivesQueriesOfWrongSize, "practice: a front end that breaks vhost-user, Payload") {
  for (Request request : {Request::kGetFeatures, Request::kGetProtocolFeatures, Request::kGetQueueNum,
                          Request::kGetVringBase, Request::kGetConfig, Request::kGetInflightFd, Request::kSetOwner}) {
    for (size_t size : {size_t{0}, size_t{1}, size_t{7}, size_t{9}, size_t{11}, size_t{25}, size_t{4096}}) {
      fe().send(request, Bytes(size));
      auto reply = fe().receive(kQuietMs);
      if (!reply && fe().channel().wait_closed(0)) reopen();
    }
  }
  session_->close();
  expect_target_alive();
}

// "Front-end message types" tells how many descriptors each message carries.
CASE(VhostProtocol, RefusesWrongNumberOfDescriptors,
     "practice: a front end that breaks vhost-user, Front-end message types") {
  const auto& regions = session_->memory().regions();
  struct Case {
    Request request;
    Bytes payload;
    size_t wrong_counts[3];
  };
  std::vector<Case> cases = {
      {Request::kSetVringKick, bytes_of(uint64_t{0}), {0, 2, 8}},
      {Request::kSetVringCall, bytes_of(uint64_t{0}), {0, 2, 8}},
      {Request::kSetVringErr, bytes_of(uint64_t{0}), {0, 2, 8}},
      {Request::kSetMemTable, mem_table_payload(regions), {0, regions.size() - 1, regions.size() + 1}},
  };
  if (session_->has_protocol(vhost::kProtocolConfigureMemSlots))
    cases.push_back({Request::kAddMemReg, mem_reg_payload(regions[0]), {0, 2, 8}});
  if (session_->has_protocol(vhost::kProtocolBackendReq)) cases.push_back({Request::kSetBackendReqFd, {}, {0, 2, 8}});
  for (const auto& one : cases) {
    for (size_t count : one.wrong_counts) {
      UniqueFd event(::eventfd(0, EFD_NONBLOCK));
      bool memory = one.request == Request::kSetMemTable || one.request == Request::kAddMemReg;
      EXPECT_TRUE(refused(one.request, one.payload, repeat(memory ? session_->memory().fd() : event.get(), count)))
          << "request " << static_cast<uint32_t>(one.request) << " with " << count << " descriptors";
    }
  }
}

// "VHOST_USER_SET_VRING_KICK": bit 8 says that there is no descriptor, so one that comes nevertheless is an error.
CASE(VhostProtocol, RefusesADescriptorTogetherWithTheNoDescriptorBit,
     "practice: a front end that breaks vhost-user, VHOST_USER_SET_VRING_KICK: bit 8") {
  for (Request request : {Request::kSetVringKick, Request::kSetVringCall, Request::kSetVringErr}) {
    FdProbe probe;
    EXPECT_TRUE(refused(request, bytes_of(vhost::kVringNoFdFlag), repeat(probe.fd(), 1)));
    probe.forget();
    EXPECT_TRUE(probe.closed_by_peer());
  }
}

// Ancillary data that did not fit was cut off by the kernel: which descriptors are missing cannot be known.
CASE(VhostProtocol, TooManyDescriptorsEndTheSessionAndAreClosed,
     "practice: a front end that breaks vhost-user, Communication") {
  FdProbe probe;
  fe().judge(Request::kSetMemTable, mem_table_payload(session_->memory().regions()), repeat(probe.fd(), 253));
  probe.forget();
  EXPECT_TRUE(fe().channel().wait_closed());
  EXPECT_TRUE(probe.closed_by_peer());
  reopen();
}

// Descriptors are looked for at a message's first byte; those that come later are not used, and are not kept.
CASE(VhostProtocol, DescriptorsBehindTheHeaderAreNotKept,
     "practice: a front end that breaks vhost-user, Communication") {
  FdProbe probe;
  ASSERT_TRUE(fe().channel().send_message({static_cast<uint32_t>(Request::kSetVringCall), kNeedReply, 8}));
  ::usleep(10'000);
  fe().channel().send_bytes(bytes_of(uint64_t{0}), repeat(probe.fd(), 1));
  probe.forget();
  EXPECT_THAT(fe().judge_ack(Request::kSetVringCall), AnyOf(Verdict::kRefused, Verdict::kClosed));
  session_->close();
  EXPECT_TRUE(probe.closed_by_peer());
  expect_target_alive();
}

// Ring indices are 32 bits wide in most messages and 8 in the others; the target has few rings.
CASE(VhostProtocol, RefusesRingIndicesOutOfRange,
     "practice: a front end that breaks vhost-user, VHOST_USER_GET_QUEUE_NUM (CVE-2020-10723)") {
  const uint32_t first = session_->max_queues();
  for (uint32_t index : {first, 255U, 256U, 0x10000U, 0x8000'0000U, 0xffff'ffffU}) {
    for (Request request : {Request::kSetVringNum, Request::kSetVringBase, Request::kSetVringEnable})
      EXPECT_TRUE(refused(request, bytes_of(VringState{index, 1})))
          << "request " << static_cast<uint32_t>(request) << ", index " << index;
    vhost::VringAddr addr = session_->ring().vring_addr(index);
    EXPECT_TRUE(refused(Request::kSetVringAddr, bytes_of(addr))) << "index " << index;
  }
  for (uint64_t index : {uint64_t{first}, uint64_t{255}, uint64_t{512}, uint64_t{1} << 32, ~uint64_t{0} - 256}) {
    for (Request request : {Request::kSetVringKick, Request::kSetVringCall, Request::kSetVringErr})
      EXPECT_TRUE(refused(request, bytes_of(index), repeat(session_->ring().kick_fd(), 1)))
          << "request " << static_cast<uint32_t>(request) << ", value " << index;
  }
}

CASE(VhostProtocol, SurvivesGetVringBaseOfARingItDoesNotHave,
     "practice: a front end that breaks vhost-user, VHOST_USER_GET_QUEUE_NUM") {
  for (uint32_t index : {session_->max_queues(), 256U, 0x8000'0000U, 0xffff'ffffU}) {
    fe().send(Request::kGetVringBase, bytes_of(VringState{index, 0}));
    fe().receive(kQuietMs);
    if (!fe().fence()) reopen();
  }
  session_->close();
  expect_target_alive();
}

}  // namespace
}  // namespace sluice::test
