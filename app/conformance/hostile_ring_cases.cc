// A guest that breaks its split ring (packed_queue_test.cc has the other kind): only that queue stops, and it can be
// set up anew.
#include <unistd.h>

#include <functional>

#include "app/conformance/target_fixture.h"

namespace sluice::test {
namespace {

using vhost::BlkStatus;
using vhost::kDescIndirect;
using vhost::kDescNext;
using vhost::kDescWrite;
using vhost::Request;
using vhost::SplitDesc;

// What a poison works with: a ring of its own, a good header, and room for data and status.
struct Poison {
  Session& session;
  RingDriver& ring;
  GuestMemory& memory;
  uint64_t header;  // 16 bytes, a read of sector 0
  uint64_t data;    // 4,096 bytes
  uint64_t status;  // 1 byte

  SplitDesc readable(uint64_t gpa, uint32_t len) const { return {.addr = gpa, .len = len}; }
  SplitDesc writable(uint64_t gpa, uint32_t len) const { return {.addr = gpa, .len = len, .flags = kDescWrite}; }
  // Descriptors 0, 1, 2, ... of the ring, linked in this order, and made available.
  void chain(std::vector<SplitDesc> descs) const {
    for (size_t i = 0; i < descs.size(); i++) {
      if (i + 1 < descs.size()) {
        descs[i].flags |= kDescNext;
        descs[i].next = static_cast<uint16_t>(i + 1);
      }
      ring.set_desc(static_cast<uint16_t>(i), descs[i]);
    }
    ring.publish_head(0);
    ring.publish();
  }
  // The same as an indirect table; `len` is what the descriptor says of its size.
  void table(const std::vector<SplitDesc>& descs, uint32_t len, uint16_t flags = kDescIndirect) const {
    uint64_t gpa = memory.allocate(kHigh, descs.size() * sizeof(SplitDesc) + 16);
    for (size_t i = 0; i < descs.size(); i++) memory.write(gpa + i * sizeof(SplitDesc), bytes_of(descs[i]));
    ring.set_desc(0, {.addr = gpa, .len = len, .flags = flags});
    ring.publish_head(0);
    ring.publish();
  }
  std::vector<SplitDesc> good_table() const {
    SplitDesc first = readable(header, 16), second = writable(data, 512), third = writable(status, 1);
    first.flags |= kDescNext;
    first.next = 1;
    second.flags |= kDescNext;
    second.next = 2;
    return {first, second, third};
  }
};

struct Attack {
  const char* name;
  const char* section;  // of virtio 1.2, that the driver breaks
  std::function<void(const Poison&)> act;
  bool indirect = false;     // needs INDIRECT_DESC
  bool may_succeed = false;  // the device may overlook it
};

constexpr uint64_t kNowhere = 0x7000'0000'0000;

const Attack kAttacks[] = {
    {"ChainLoopsToItself", "2.7.5.2: loops are forbidden",
     [](const Poison& p) {
       SplitDesc desc = p.readable(p.header, 16);
       desc.flags |= kDescNext;
       desc.next = 0;
       p.ring.set_desc(0, desc);
       p.ring.publish_head(0);
       p.ring.publish();
     }},
    {"ChainLoopsThroughWritableDescriptors", "2.7.5.2: loops are forbidden",
     [](const Poison& p) {
       std::vector<SplitDesc> descs = {p.readable(p.header, 16), p.writable(p.data, 512), p.writable(p.data, 512)};
       p.chain(descs);
       SplitDesc last = descs[2];
       last.flags |= kDescNext;
       last.next = 1;
       p.ring.set_desc(2, last);
     }},
    {"ChainIsLongerThanTheRing", "2.7.5.3.1: no chain is longer than the queue size",
     [](const Poison& p) {
       // A table as long as the ring and one more; the request would be a good one.
       std::vector<SplitDesc> descs = {p.readable(p.header, 16)};
       for (int i = 0; i < p.ring.size() - 1; i++) descs.push_back(p.writable(p.data, 512));
       descs.push_back(p.writable(p.status, 1));
       for (size_t i = 0; i + 1 < descs.size(); i++) {
         descs[i].flags |= kDescNext;
         descs[i].next = static_cast<uint16_t>(i + 1);
       }
       p.table(descs, static_cast<uint32_t>(descs.size() * sizeof(SplitDesc)));
     },
     true, true},
    {"NextOutOfRange", "2.7.5: next",
     [](const Poison& p) {
       SplitDesc desc = p.readable(p.header, 16);
       desc.flags |= kDescNext;
       desc.next = p.ring.size();
       p.ring.set_desc(0, desc);
       p.ring.publish_head(0);
       p.ring.publish();
     }},
    {"HeadOutOfRange", "2.7.6: an entry is the head of a chain",
     [](const Poison& p) {
       p.ring.publish_head(p.ring.size());
       p.ring.publish();
     }},
    {"HeadFarOutOfRange", "2.7.6: an entry is the head of a chain",
     [](const Poison& p) {
       p.ring.publish_head(0xffff);
       p.ring.publish();
     }},
    {"AvailIndexJumps", "2.7.6: no more than the ring holds",
     [](const Poison& p) { p.ring.set_avail_idx(static_cast<uint16_t>(p.ring.avail_idx() + p.ring.size() + 1)); }},
    {"AvailIndexGoesBack", "2.7.6.1: idx is not decremented",
     [](const Poison& p) { p.ring.set_avail_idx(static_cast<uint16_t>(p.ring.avail_idx() - 1)); }},
    {"HeaderAddressUnmapped", "2.7.5: addr",
     [](const Poison& p) { p.chain({p.readable(kNowhere, 16), p.writable(p.data, 512), p.writable(p.status, 1)}); }},
    {"DataAddressUnmapped", "2.7.5: addr",
     [](const Poison& p) { p.chain({p.readable(p.header, 16), p.writable(kNowhere, 512), p.writable(p.status, 1)}); }},
    {"StatusAddressUnmapped", "2.7.5: addr",
     [](const Poison& p) { p.chain({p.readable(p.header, 16), p.writable(p.data, 512), p.writable(kNowhere, 1)}); }},
    {"UserAddressInADescriptor", "2.7.5: addr is guest-physical",
     [](const Poison& p) {
       p.chain({p.readable(p.header, 16), p.writable(p.memory.user_address(p.data), 512), p.writable(p.status, 1)});
     }},
    {"DataRunsOverTheRegionsEnd", "2.7.5: addr and len",
     [](const Poison& p) {
       const auto& region = p.memory.regions()[kHigh];
       p.chain({p.readable(p.header, 16), p.writable(region.guest_address + region.size - 256, 512),
                p.writable(p.status, 1)});
     }},
    {"DataAddressWraps", "2.7.5: addr and len",
     [](const Poison& p) {
       p.chain({p.readable(p.header, 16), p.writable(~uint64_t{0} - 255, 512), p.writable(p.status, 1)});
     }},
    {"DataLengthIsHuge", "2.7.5: addr and len",
     [](const Poison& p) {
       p.chain({p.readable(p.header, 16), p.writable(p.data, 0xffff'fe00), p.writable(p.status, 1)});
     }},
    {"TotalLengthOverflows32Bits", "2.7.5.2: no chain is longer than 2^32 bytes",
     [](const Poison& p) {
       // All of it mapped, again and again: 1,024 times 8 MiB, and one sector more.
       const auto& region = p.memory.regions()[kHigh];
       std::vector<SplitDesc> descs = {p.readable(p.header, 16)};
       for (int i = 0; i < 120; i++)
         descs.push_back(p.writable(region.guest_address, static_cast<uint32_t>(region.size)));
       descs.push_back(p.writable(p.status, 1));
       p.chain(descs);
     }},
    {"ReadableAfterWritable", "2.7.4.2: writable after readable",
     [](const Poison& p) { p.chain({p.writable(p.data, 512), p.readable(p.header, 16), p.writable(p.status, 1)}); }},
    {"NoWritableDescriptor", "5.2.6: the status byte", [](const Poison& p) { p.chain({p.readable(p.header, 16)}); }},
    {"NoReadableDescriptor", "5.2.6: the header",
     [](const Poison& p) { p.chain({p.writable(p.data, 512), p.writable(p.status, 1)}); }},
    {"EmptyDescriptors", "5.2.6: header and status byte",
     [](const Poison& p) { p.chain({p.readable(p.header, 0), p.writable(p.data, 0), p.writable(p.status, 0)}); }},
    {"IndirectNested", "2.7.5.3.1: one table per descriptor",
     [](const Poison& p) {
       auto inner = p.good_table();
       uint64_t gpa = p.memory.allocate(kHigh, inner.size() * sizeof(SplitDesc));
       for (size_t i = 0; i < inner.size(); i++) p.memory.write(gpa + i * sizeof(SplitDesc), bytes_of(inner[i]));
       p.table({{.addr = gpa, .len = 48, .flags = kDescIndirect}}, 16);
     },
     true},
    {"IndirectTableIsItself", "2.7.5.3.1: one table per descriptor",
     [](const Poison& p) {
       uint64_t gpa = p.memory.allocate(kHigh, 16);
       SplitDesc self{.addr = gpa, .len = 16, .flags = kDescIndirect};
       p.memory.write(gpa, bytes_of(self));
       p.ring.set_desc(0, self);
       p.ring.publish_head(0);
       p.ring.publish();
     },
     true},
    {"IndirectWithNext", "2.7.5.3.1: INDIRECT without NEXT",
     [](const Poison& p) {
       p.table(p.good_table(), 48, kDescIndirect | kDescNext);  // next is 0, itself
     },
     true, true},
    {"IndirectTableIsEmpty", "2.7.5.3: len", [](const Poison& p) { p.table(p.good_table(), 0); }, true},
    {"IndirectTableHasHalfADescriptor", "2.7.5.3: len", [](const Poison& p) { p.table(p.good_table(), 40); }, true},
    {"IndirectTableIsShorterThanItsChain", "2.7.5.3: len", [](const Poison& p) { p.table(p.good_table(), 32); }, true},
    {"IndirectTableUnaligned", "2.7.5.3: no alignment is told",
     [](const Poison& p) {
       uint64_t gpa = p.memory.allocate(kHigh, 64) + 3;
       auto table = p.good_table();
       for (size_t i = 0; i < table.size(); i++) p.memory.write(gpa + i * sizeof(SplitDesc), bytes_of(table[i]));
       p.ring.set_desc(0, {.addr = gpa, .len = 48, .flags = kDescIndirect});
       p.ring.publish_head(0);
       p.ring.publish();
     },
     true, true},
    {"IndirectTableUnmapped", "2.7.5.3: addr",
     [](const Poison& p) {
       p.ring.set_desc(0, {.addr = kNowhere, .len = 48, .flags = kDescIndirect});
       p.ring.publish_head(0);
       p.ring.publish();
     },
     true},
    {"IndirectTableOverTheRegionsEnd", "2.7.5.3: addr and len",
     [](const Poison& p) {
       const auto& region = p.memory.regions()[kHigh];
       p.ring.set_desc(0, {.addr = region.guest_address + region.size - 32, .len = 4096, .flags = kDescIndirect});
       auto table = p.good_table();
       for (size_t i = 0; i < 2; i++)
         p.memory.write(region.guest_address + region.size - 32 + i * sizeof(SplitDesc), bytes_of(table[i]));
       p.ring.publish_head(0);
       p.ring.publish();
     },
     true},
    {"IndirectTableIsHuge", "2.7.5.3: len",
     [](const Poison& p) {
       p.ring.set_desc(0,
                       {.addr = p.memory.regions()[kHigh].guest_address, .len = 0xffff'fff0, .flags = kDescIndirect});
       p.ring.publish_head(0);
       p.ring.publish();
     },
     true},
    {"IndirectTableLoops", "2.7.5.2: loops are forbidden",
     [](const Poison& p) {
       auto table = p.good_table();
       table[1].next = 0;
       p.table(table, 48);
     },
     true},
    {"IndirectNextOutOfTable", "2.7.5.3: next",
     [](const Poison& p) {
       auto table = p.good_table();
       table[1].next = 3;
       p.table(table, 48);
     },
     true},
};

class VhostHostileRing : public TargetFixture, public ::testing::WithParamInterface<Attack> {
 public:
  void start() {
    session_ = running({.num_queues = 2, .leave_features = vhost::kFeatureRingPacked});
    ASSERT_FALSE(HasFailure());
  }
  // Descriptors 0, 1, ... are the attack's: the helpers of the driver are not used on this queue any more.
  Poison poison() {
    auto& memory = session_->memory();
    Poison poison{*session_,
                  session_->ring(0),
                  memory,
                  memory.allocate(kMiddle, 16),
                  memory.allocate(kMiddle, 4096),
                  memory.allocate(kMiddle, 1)};
    memory.write(poison.header, bytes_of(vhost::BlkRequestHeader{.type = 0}));
    memory.write(poison.status, Bytes{kUntouched});
    return poison;
  }

 protected:
  std::unique_ptr<Session> session_;
};

INSTANTIATE_TEST_SUITE_P(Attacks, VhostHostileRing, ::testing::ValuesIn(kAttacks),
                         [](const auto& info) { return std::string(info.param.name); });

const bool kAttacksQuoted = [] {
  for (const Attack& attack : kAttacks) {
    for (const char* suite : {"VhostHostileRing.CostsOnlyItsQueue/", "VhostHostileRing.EndsWithTheSession/"})
      Quote(std::string(suite) + attack.name,
            std::string("practice: a driver that breaks virtio 1.2, ") + attack.section);
  }
  return true;
}();

// VIRTIO, "Split Virtqueues": what a driver must not do. Such a request fails or its queue stops; the other queues, the
// session and the target go on, and the queue works again after it has been set up anew.
CASE_P(VhostHostileRing, CostsOnlyItsQueue, "practice: a driver that breaks virtio 1.2, 2.7 Split Virtqueues") {
  start();
  if (GetParam().indirect) SKIP_UNLESS(session_->has(vhost::kFeatureIndirectDesc));
  expect_io_works(*session_, 0, 1);
  expect_io_works(*session_, 1, 2);
  Poison bad = poison();
  GetParam().act(bad);
  bad.ring.kick_always();
  ::usleep(20'000);
  if (!GetParam().may_succeed)
    EXPECT_NE(bad.memory.read(bad.status, 1)[0], static_cast<uint8_t>(BlkStatus::kOk)) << "carried out";
  for (uint32_t i = 0; i < 3; i++) expect_io_works(*session_, 1, 10 + i);
  EXPECT_TRUE(session_->front_end().fence()) << session_->error();
  // The guest's driver resets the device.
  ASSERT_TRUE(session_->stop_ring(0)) << session_->error();
  session_->renew_ring();
  ASSERT_TRUE(session_->start_ring(0)) << session_->error();
  ASSERT_TRUE(session_->enable_all(true)) << session_->error();
  expect_io_works(*session_, 0, 3);
  expect_io_works(*session_, 1, 4);
}

// A session may end with its ring in that state.
CASE_P(VhostHostileRing, EndsWithTheSession, "practice: a driver that breaks virtio 1.2, 2.7 Split Virtqueues") {
  start();
  Poison bad = poison();
  GetParam().act(bad);
  bad.ring.kick_always();
  session_->close();
  session_.reset();
  expect_target_alive();
  if (!socket_path(1).empty()) expect_target_alive(1);
}

class VhostBrokenRing : public TargetFixture {};

// "VHOST_USER_SET_VRING_ERR": the descriptor "to signal when error occurs".
CASE(VhostBrokenRing, SignalsTheErrDescriptor, "vhost-user, VHOST_USER_SET_VRING_ERR: to signal when error occurs") {
  auto session = running({.num_queues = 2, .leave_features = vhost::kFeatureRingPacked});
  ASSERT_FALSE(HasFailure());
  session->ring(0).publish_head(0xffff);
  session->ring(0).publish();
  session->ring(0).kick_always();
  EXPECT_TRUE(session->ring(0).err_signalled());
  EXPECT_FALSE(session->ring(1).err_signalled(0));
  expect_io_works(*session, 1);
}

// "Indirect Descriptors": the flag is not to be used unless negotiated. What comes of it is open, but not to the
// others.
CASE(VhostBrokenRing, UnnegotiatedIndirectDescriptorsHurtNobodyElse,
     "practice: a driver that breaks virtio 1.2, 2.7.5.3.1: the feature was not negotiated") {
  auto session = running({.num_queues = 2, .leave_features = vhost::kFeatureIndirectDesc});
  ASSERT_FALSE(HasFailure());
  Exchange read = read_request(0, 512);
  read.indirect = true;
  session->blk(0).run(read, kQuietMs);
  expect_io_works(*session, 1);
}

// A guest that rewrites descriptors and the header all the time gets what it deserves and nobody else does.
CASE(VhostBrokenRing, SurvivesMemoryThatChangesMeanwhile,
     "practice: a driver that changes what it has made available") {
  auto session = running({.num_queues = 2, .leave_features = vhost::kFeatureRingPacked});
  ASSERT_FALSE(HasFailure());
  auto& memory = session->memory();
  auto& ring = session->ring(0);
  uint64_t header = memory.allocate(kMiddle, 16);
  uint64_t data = memory.allocate(kMiddle, 4096);
  uint32_t state = 12345;
  auto random = [&state] { return state = state * 1664525U + 1013904223U; };
  for (int round = 0; round < 300; round++) {
    for (uint16_t i = 0; i < 8; i++) {
      ring.set_desc(i, {.addr = i == 0 ? header : data,
                        .len = i == 0 ? 16U : 512U,
                        .flags = static_cast<uint16_t>(i == 0 ? kDescNext : kDescWrite | (i < 7 ? kDescNext : 0)),
                        .next = static_cast<uint16_t>(i + 1)});
    }
    ring.publish_head(0);
    ring.publish();
    ring.kick_always();
    for (int change = 0; change < 50; change++) {
      uint32_t r = random();
      ring.set_desc(static_cast<uint16_t>(r >> 8 & 7), {.addr = (r & 1) != 0 ? data : kNowhere + r,
                                                        .len = random(),
                                                        .flags = static_cast<uint16_t>(random() >> 16 & 7),
                                                        .next = static_cast<uint16_t>(random() >> 16)});
      memory.write(header, bytes_of(vhost::BlkRequestHeader{.type = random() >> 28, .sector = random()}));
    }
    if (round % 50 == 49) {
      expect_io_works(*session, 1, static_cast<uint32_t>(round));
      if (!session->stop_ring(0)) FAIL() << session->error();
      session->renew_ring();
      ASSERT_TRUE(session->start_ring(0)) << session->error();
    }
  }
  session.reset();
  expect_target_alive();
}

}  // namespace
}  // namespace sluice::test
