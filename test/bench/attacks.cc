#include "test/bench/attacks.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace sluice::test {
namespace {

using vhost::Header;
using vhost::kDescIndirect;
using vhost::kDescNext;
using vhost::kDescWrite;
using vhost::MemoryRegion;
using vhost::Request;
using vhost::SplitDesc;
using vhost::VringAddr;
using vhost::VringState;

constexpr uint32_t kDataBytes = 1 << 20;

Bytes header_of(Request request, size_t size, uint32_t flags = vhost::kVersion) {
  return bytes_of(Header{static_cast<uint32_t>(request), flags, static_cast<uint32_t>(size)});
}

UniqueFd sparse_file(uint64_t bytes) {
  UniqueFd fd(::memfd_create("sparse", MFD_CLOEXEC));
  if (fd) std::ignore = ::ftruncate(fd.get(), static_cast<off_t>(bytes));
  return fd;
}

}  // namespace

const std::vector<Attacker::Attack>& Attacker::attacks() {
  static const std::vector<Attack> all{
      {"half a message", &Attacker::half_a_message, false},
      {"reads nothing", &Attacker::reads_nothing, false},
      {"wrong sizes", &Attacker::wrong_sizes, false},
      {"too many descriptors", &Attacker::too_many_descriptors, false},
      {"no such ring", &Attacker::no_such_ring, false},
      {"misplaced rings", &Attacker::misplaced_rings, false},
      {"overlapping regions", &Attacker::overlapping_regions, false},
      {"huge region", &Attacker::huge_region, false},
      {"tiny regions", &Attacker::tiny_regions, false},
      {"memory tables", &Attacker::memory_tables, false},
      {"in-flight rubbish", &Attacker::inflight_rubbish, false},
      {"log rubbish", &Attacker::log_rubbish, false},
      {"many rings", &Attacker::many_rings, false},
      {"random bytes", &Attacker::random_bytes, false},
      {"random messages", &Attacker::random_messages, false},
      {"connects and goes", &Attacker::connects_and_goes, false},
      {"keeps its connection", &Attacker::keeps_its_connection, false},
      {"loop", &Attacker::loop, true},
      {"index jump", &Attacker::index_jump, true},
      {"bad address", &Attacker::bad_address, true},
      {"bad id", &Attacker::bad_id, true},
      {"nested table", &Attacker::nested_table, true},
      {"changing descriptors", &Attacker::changing_descriptors, true},
      {"large requests", &Attacker::large_requests, true},
      {"truncated memory", &Attacker::truncated_memory, true},
      {"blocking call", &Attacker::blocking_call, true},
      {"drained kicks", &Attacker::drained_kicks, true},
      {"dies with requests", &Attacker::dies_with_requests, true},
  };
  return all;
}

const std::vector<std::string_view>& Attacker::names() {
  static const auto all = [] {
    std::vector<std::string_view> names;
    for (const Attack& attack : attacks()) names.push_back(attack.name);
    return names;
  }();
  return all;
}

size_t Attacker::step() {
  const size_t number = below(attacks().size());
  const Attack& attack = attacks()[number];
  // Now and then from what the last attack has left.
  if (!connected() || below(4) != 0 || (attack.on_ring && !running_)) end();
  if (!connected() && !begin(attack.on_ring)) return number;
  (this->*attack.run)();
  return number;
}

bool Attacker::begin(bool running) {
  session_ = std::make_unique<Session>(SessionOptions{
      .dialect = Dialect::kQemu9,
      .num_queues = 2,
      .leave_features = below(2) == 0 ? vhost::kFeatureRingPacked : 0,
  });
  running_ = session_->open(path_) && (!running || session_->start()) && running;
  if (running != running_) {
    end();
    return false;
  }
  buffer_ = memory().allocate(kHigh, 8192);
  data_ = memory().allocate(kMiddle, kDataBytes);
  return true;
}

bool Attacker::send_now(std::span<const uint8_t> bytes) {
  return ::send(front_end().channel().fd(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL) ==
         static_cast<ssize_t>(bytes.size());
}

void Attacker::send_region(uint64_t address, uint64_t size, uint64_t offset, int fd) {
  front_end().send(
      Request::kAddMemReg,
      mem_reg_payload({.guest_address = address, .size = size, .user_address = address, .mmap_offset = offset}),
      {&fd, 1});
}

// A chain as it is, in either kind of ring.
void Attacker::offer(std::vector<SplitDesc> descs) {
  if (packed()) {
    std::vector<vhost::PackedDesc> raw;
    for (const SplitDesc& desc : descs) raw.push_back({desc.addr, desc.len, desc.next, desc.flags});
    ring().add_raw(raw);
  } else {
    for (size_t i = 0; i < descs.size(); ++i) ring().set_desc(static_cast<uint16_t>(i), descs[i]);
    ring().publish_head(0);
  }
  ring().publish();
  ring().kick_always();
}

// ---- On connections

void Attacker::half_a_message() {
  const Bytes whole = header_of(Request::kSetMemTable, 136) + Bytes(136);
  front_end().channel().send_bytes(std::span(whole).first(1 + below(whole.size() - 1)),
                                   repeat(memory().fd(), below(5)));
}

void Attacker::reads_nothing() {
  const Bytes request =
      header_of(Request::kGetConfig, 268) + bytes_of(vhost::ConfigHeader{.offset = 0, .size = 256}) + Bytes(256);
  for (int i = 0; i < 5000 && send_now(request); ++i) continue;
}

void Attacker::wrong_sizes() {
  const auto request = static_cast<Request>(1 + below(vhost::kMaxRequest));
  constexpr uint32_t kSizes[] = {0, 1, 7, 9, 39, 41, 4096, 4097, 0xffff'ffff};
  const uint32_t size = kSizes[below(std::size(kSizes))];
  send_now(header_of(request, size) + Bytes(std::min<uint32_t>(size, 4096)));
}

void Attacker::too_many_descriptors() {
  front_end().send(static_cast<Request>(1 + below(vhost::kMaxRequest)), Bytes(8),
                   repeat(memory().fd(), 1 + below(253)));
}

void Attacker::no_such_ring() {
  const uint32_t index = static_cast<uint32_t>(64 + below(1U << 31));
  constexpr Request kRequests[] = {Request::kSetVringNum, Request::kSetVringBase, Request::kGetVringBase,
                                   Request::kSetVringEnable};
  front_end().send(kRequests[below(4)], bytes_of(VringState{index, 1}));
}

void Attacker::misplaced_rings() {
  session_->send_memory();
  const uint64_t user = memory().regions()[0].user_address;
  front_end().send(Request::kSetVringNum, bytes_of(VringState{0, static_cast<uint32_t>(below(2048))}));
  front_end().send(
      Request::kSetVringAddr,
      bytes_of(
          VringAddr{.index = 0, .desc = user + below(16), .used = user + below(1U << 20), .avail = user - below(64)}));
  const UniqueFd kick(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  front_end().set_vring_fd(Request::kSetVringKick, 0, kick.get());
}

void Attacker::overlapping_regions() {
  for (int i = 0; i < 8; ++i) {
    const uint64_t address = below(2) == 0 ? below(1U << 20) : UINT64_MAX - below(1U << 20);
    send_region(address, 1 + below(1U << 20), below(4) == 0 ? UINT64_MAX - 4096 : below(1U << 20), memory().fd());
  }
}

void Attacker::huge_region() {
  const UniqueFd sparse = sparse_file(uint64_t{1} << 40);
  send_region(uint64_t{1} << 40, uint64_t{1} << 40, 0, sparse.get());
}

void Attacker::tiny_regions() {
  const uint64_t count = 1 + below(509);
  for (uint64_t i = 0; i < count; ++i) send_region((uint64_t{1} << 40) + i, 1, i, memory().fd());
}

void Attacker::memory_tables() {
  for (int i = 0; i < 16; ++i) session_->send_memory();
}

void Attacker::inflight_rubbish() {
  vhost::InflightDescription rubbish{.mmap_size = below(1U << 20),
                                     .mmap_offset = below(1U << 16),
                                     .num_queues = static_cast<uint16_t>(below(1U << 16)),
                                     .queue_size = static_cast<uint16_t>(below(1U << 16))};
  const UniqueFd file = sparse_file(below(1U << 20));
  const int fd = file.get();
  if (below(2) == 0) {
    front_end().send(Request::kSetInflightFd, bytes_of(rubbish), {&fd, 1});
  } else {
    front_end().send(Request::kGetInflightFd, bytes_of(rubbish));
  }
}

void Attacker::log_rubbish() {
  const UniqueFd file = sparse_file(below(1U << 16));
  const int fd = file.get();
  front_end().send(Request::kSetLogBase, bytes_of(vhost::LogDescription{.size = below(1U << 20), .mmap_offset = 0}),
                   {&fd, 1});
}

// As many as there are, without a kick: they have to be looked at.
void Attacker::many_rings() {
  session_->send_memory();
  const VringAddr addresses = session_->ring(0).vring_addr(0);
  for (uint32_t i = 0; i < session_->max_queues(); ++i) {
    VringAddr of_this = addresses;
    of_this.index = i;
    front_end().send(Request::kSetVringNum, bytes_of(VringState{i, ring().size()}));
    front_end().send(Request::kSetVringAddr, bytes_of(of_this));
    front_end().send(Request::kSetVringKick, bytes_of(uint64_t{i} | vhost::kVringNoFdFlag));
    front_end().send(Request::kSetVringEnable, bytes_of(VringState{i, 1}));
  }
}

void Attacker::random_bytes() {
  Bytes rubbish(1 + below(4000));
  for (uint8_t& byte : rubbish) byte = static_cast<uint8_t>(random_());
  send_now(rubbish);
}

void Attacker::random_messages() {
  for (int i = 0; i < 20; ++i) {
    constexpr uint32_t kSizes[] = {0, 8, 8, 8, 16, 24, 40, 40, 136, 268};
    Bytes payload(kSizes[below(std::size(kSizes))]);
    constexpr uint32_t kWords[] = {0, 1, 2, 3, 8, 64, 255, 256, 0x8000'0000, 0xffff'ffff};
    for (size_t at = 0; at + 4 <= payload.size(); at += 4) {
      const uint32_t word = kWords[below(std::size(kWords))];
      std::memcpy(payload.data() + at, &word, sizeof(word));
    }
    const uint32_t flags = vhost::kVersion | (below(2) == 0 ? vhost::kNeedReplyFlag : 0);
    if (!front_end().send(static_cast<Request>(below(vhost::kMaxRequest + 2)), payload, repeat(memory().fd(), below(3)),
                          flags)) {
      return end();
    }
  }
}

void Attacker::connects_and_goes() {
  end();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path_.copy(address.sun_path, sizeof(address.sun_path) - 1);
  for (int i = 0; i < 50; ++i) {
    const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    std::ignore = ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  }
}

// In the queue of a socket that the target keeps, so that it is never closed.
void Attacker::keeps_its_connection() {
  BackendChannel pair;
  const int own = front_end().channel().fd();
  const int end_of_pair = pair.remote.get();
  pair.local.send_bytes(Bytes(1), {&own, 1});
  front_end().send(Request::kSetVringCall, bytes_of(uint64_t{0}), {&end_of_pair, 1});
  front_end().send(Request::kSetVringErr, bytes_of(uint64_t{1}), {&own, 1});
  end();
}

// ---- On rings

void Attacker::loop() { offer({{buffer_, 16, kDescNext, 1}, {buffer_, 16, kDescNext, 0}}); }

void Attacker::index_jump() {
  if (packed()) return bad_id();
  ring().set_avail_idx(static_cast<uint16_t>(random_()));
  ring().kick_always();
}

void Attacker::bad_address() {
  const uint64_t wild[] = {random_(), UINT64_MAX - 8, buffer_ + (64 << 20)};
  offer({{buffer_, 16, kDescNext, 1},
         {wild[below(3)], static_cast<uint32_t>(random_()), kDescNext | kDescWrite, 2},
         {buffer_ + 16, 1, kDescWrite, 0}});
}

void Attacker::bad_id() {
  // In a split ring the last one's `next` means nothing.
  offer({{buffer_, 16, kDescNext, 1}, {buffer_ + 16, 1, kDescWrite, static_cast<uint16_t>(random_())}});
}

void Attacker::nested_table() {
  memory().write(buffer_, bytes_of(SplitDesc{buffer_, 16, kDescIndirect, 0}));
  offer({{buffer_, static_cast<uint32_t>(below(64)), kDescIndirect, 0}});
}

void Attacker::changing_descriptors() {
  const auto place = memory().as<SplitDesc>(ring().desc_gpa());
  for (int i = 0; i < 100; ++i) {
    offer({{buffer_, 16, kDescNext, 1}, {buffer_ + 4096, 512, kDescNext | kDescWrite, 2}, {buffer_, 1, kDescWrite, 0}});
    for (int j = 0; j < 50; ++j) {
      __atomic_fetch_xor(&place[1].addr, uint64_t{1} << below(64), __ATOMIC_RELAXED);
      __atomic_fetch_xor(&place[1].len, 1U << below(32), __ATOMIC_RELAXED);
      __atomic_fetch_xor(&place[below(3)].next, static_cast<uint16_t>(random_()), __ATOMIC_RELAXED);
    }
    for (int j = 0; j < 64 && ring().poll_used(); ++j) continue;
  }
}

void Attacker::large_requests() {
  memory().write(buffer_, bytes_of(vhost::BlkRequestHeader{.type = 0}));
  const std::vector<Segment> request{{buffer_, 16}, {data_, kDataBytes, true}, {buffer_ + 16, 1, true}};
  while (ring().free_descriptors() >= request.size()) ring().add_chain(request);
  ring().publish();
  ring().kick_always();
}

void Attacker::truncated_memory() {
  large_requests();
  std::ignore = ::ftruncate(memory().fd(), static_cast<off_t>(below(2) * (8 << 20)));
  for (int i = 0; i < 10; ++i) {
    const uint64_t one = 1;
    std::ignore = ::write(ring().kick_fd(), &one, sizeof(one));
  }
  // Nothing of it may be touched on this side either.
  end();
}

void Attacker::blocking_call() {
  const UniqueFd call(::eventfd(0, EFD_CLOEXEC));
  const uint64_t full = UINT64_MAX - 1;
  std::ignore = ::write(call.get(), &full, sizeof(full));
  front_end().set_vring_fd(Request::kSetVringCall, 0, call.get());
  front_end().fence();
  ::fcntl(call.get(), F_SETFL, 0);
  large_requests();
}

void Attacker::drained_kicks() {
  for (int i = 0; i < 1000; ++i) {
    uint64_t value = 1;
    std::ignore = ::write(ring().kick_fd(), &value, sizeof(value));
    ::fcntl(ring().kick_fd(), F_SETFL, i % 2 == 0 ? 0 : O_NONBLOCK);
    iovec iov{.iov_base = &value, .iov_len = sizeof(value)};
    std::ignore = ::preadv2(ring().kick_fd(), &iov, 1, -1, RWF_NOWAIT);
  }
}

void Attacker::dies_with_requests() {
  large_requests();
  end();
}

}  // namespace sluice::test
