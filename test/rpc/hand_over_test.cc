#include "rpc/hand_over.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "lib/virtio/virtio.h"

namespace sluice::rpc {
namespace {

struct Pair {
  Pair() {
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    left.reset(fds[0]);
    right.reset(fds[1]);
    const timeval limit{.tv_sec = 5, .tv_usec = 0};
    ::setsockopt(right.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  }
  UniqueFd left, right;
};

UniqueFd memory_file() {
  UniqueFd fd(::memfd_create("guest", MFD_CLOEXEC));
  EXPECT_EQ(::ftruncate(fd.get(), 1 << 20), 0);
  return fd;
}

UniqueFd event() { return UniqueFd(::eventfd(0, EFD_CLOEXEC)); }

ino_t inode_of(int fd) {
  struct stat info{};
  EXPECT_EQ(::fstat(fd, &info), 0);
  return info.st_ino;
}

// Two ends of one eventfd: what is written to one is read from the other.
void expect_same_event(const UniqueFd& written, const UniqueFd& read) {
  EXPECT_EQ(::eventfd_write(written.get(), 7), 0);
  eventfd_t value = 0;
  EXPECT_EQ(::eventfd_read(read.get(), &value), 0);
  EXPECT_EQ(value, 7U);
}

vhost::SessionState session(const UniqueFd& memory, uint32_t rings) {
  vhost::SessionState state;
  state.socket = event();
  state.features = vhost::kFeatureVersion1 | uint64_t{1} << 63;
  state.protocol_features = vhost::kProtocolMq;
  state.rings_enabled = true;
  state.writeback = false;
  vhost::MemoryMap map;
  map = map.with({.guest_address = 0, .size = 1 << 16, .user_address = uint64_t{1} << 40, .mmap_offset = 4096}, memory,
                 {})
            .value();
  state.memory = std::make_shared<const vhost::MemoryMap>(std::move(map));
  state.status = 15;
  auto inflight = vhost::InflightRegion::make_file({.num_queues = 2, .queue_size = 64}, false).value();
  state.inflight = vhost::InflightRegion::map(inflight.description, false, inflight.fd).value();
  state.log = vhost::DirtyLog::map(memory, {.size = 4096, .mmap_offset = 8192}).value();
  for (uint32_t i = 0; i < rings; i++) {
    state.rings.push_back(
        {.index = i,
         .size = 256,
         .addresses = vhost::VringAddr{.index = i, .flags = 1, .desc = 2, .used = 3, .avail = 4, .log = 5},
         .base = i % 2 == 0 ? std::nullopt : std::optional<uint32_t>(UINT32_MAX),
         .enabled = i % 2 == 0 ? std::nullopt : std::optional(false),
         .started = true,
         .fault = vhost::RingFault::kTooMany,
         .kick = event(),
         .call = event(),
         .error = {}});
  }
  return state;
}

TEST(HandOver, ArrivesAsItWasSent) {
  const UniqueFd memory = memory_file();
  HandOver sent;
  sent.config["subsystems"] = Json::Value(Json::arrayValue);
  sent.vhost_directory = "/run/vhost";
  sent.rpc_path = "/run/rpc.sock";
  sent.rpc_listener = event();
  sent.state_path = "/var/lib/state";
  sent.state_directory = event();
  // More descriptors than one message takes.
  for (int i = 0; i < 3; i++) {
    sent.controllers.push_back({.name = "vm" + std::to_string(i), .listener = event(), .session = session(memory, 64)});
  }
  sent.controllers.push_back({.name = "alone", .listener = event(), .session = {}});

  Pair sockets;
  std::thread sending([&] { EXPECT_TRUE(send_hand_over(sockets.left.get(), sent)); });
  const auto got = receive_hand_over(sockets.right.get());
  sending.join();
  ASSERT_TRUE(got) << got.error();
  EXPECT_EQ(got->config, sent.config);
  EXPECT_EQ(got->vhost_directory, sent.vhost_directory);
  EXPECT_EQ(got->rpc_path, sent.rpc_path);
  expect_same_event(sent.rpc_listener, got->rpc_listener);
  EXPECT_EQ(got->state_path, sent.state_path);
  expect_same_event(sent.state_directory, got->state_directory);
  ASSERT_EQ(got->controllers.size(), 4U);
  EXPECT_EQ(got->controllers[3].name, "alone");
  EXPECT_FALSE(got->controllers[3].session);
  for (size_t i = 0; i < 3; i++) {
    EXPECT_EQ(got->controllers[i].name, sent.controllers[i].name);
    expect_same_event(sent.controllers[i].listener, got->controllers[i].listener);
    const vhost::SessionState& from = *sent.controllers[i].session;
    const vhost::SessionState& to = *got->controllers[i].session;
    expect_same_event(from.socket, to.socket);
    EXPECT_EQ(to.features, from.features);
    EXPECT_EQ(to.protocol_features, from.protocol_features);
    EXPECT_TRUE(to.rings_enabled);
    EXPECT_FALSE(to.writeback);
    EXPECT_FALSE(to.backend_channel);
    EXPECT_EQ(to.status, 15U);
    EXPECT_EQ(inode_of(to.inflight->file().get()), inode_of(from.inflight->file().get()));
    EXPECT_EQ(
        std::memcmp(&to.inflight->description(), &from.inflight->description(), sizeof(vhost::InflightDescription)), 0);
    EXPECT_EQ(inode_of(to.log->file().get()), inode_of(memory.get()));
    EXPECT_EQ(to.log->description().mmap_offset, 8192U);
    EXPECT_EQ(to.log->description().size, 4096U);
    ASSERT_EQ(to.memory->parts().size(), 1U);
    const auto part = to.memory->parts()[0];
    EXPECT_EQ(std::memcmp(&part.region, &from.memory->parts()[0].region, sizeof(part.region)), 0);
    EXPECT_EQ(inode_of(part.fd), inode_of(memory.get()));
    ASSERT_EQ(to.rings.size(), from.rings.size());
    for (size_t j = 0; j < to.rings.size(); j++) {
      EXPECT_EQ(to.rings[j].index, from.rings[j].index);
      EXPECT_EQ(to.rings[j].size, 256);
      EXPECT_EQ(std::memcmp(&*to.rings[j].addresses, &*from.rings[j].addresses, sizeof(vhost::VringAddr)), 0);
      EXPECT_EQ(to.rings[j].base, from.rings[j].base);
      EXPECT_EQ(to.rings[j].enabled, from.rings[j].enabled);
      EXPECT_TRUE(to.rings[j].started);
      EXPECT_EQ(to.rings[j].fault, vhost::RingFault::kTooMany);
      expect_same_event(from.rings[j].kick, to.rings[j].kick);
      expect_same_event(from.rings[j].call, to.rings[j].call);
      EXPECT_FALSE(to.rings[j].error);
    }
  }
}

TEST(HandOver, ThatEndsEarlyOrIsOfAnotherFormIsRefused) {
  struct Preamble {
    uint32_t format;
    uint32_t descriptors;
    uint64_t text_bytes;
  };
  struct Case {
    Preamble preamble;
    std::string text;
    const char* complaint;
  };
  for (const Case& test : {Case{{2, 0, 2}, "{}", "form"}, Case{{1, 0, 10}, "{}", "gone"},
                           Case{{1, 1, 2}, "{}", "missing"}, Case{{1, 0, 2}, "[]", "not JSON"},
                           Case{{1, 0, 2}, "{}", "'vhost_directory'"}, Case{{1, 0, UINT64_MAX}, "", "form"}}) {
    Pair sockets;
    EXPECT_EQ(::send(sockets.left.get(), &test.preamble, sizeof(test.preamble), 0), ssize_t{16});
    EXPECT_EQ(::send(sockets.left.get(), test.text.data(), test.text.size(), 0),
              static_cast<ssize_t>(test.text.size()));
    sockets.left.reset();
    const auto got = receive_hand_over(sockets.right.get());
    ASSERT_FALSE(got);
    EXPECT_NE(got.error().find(test.complaint), std::string::npos) << got.error();
  }
}

}  // namespace
}  // namespace sluice::rpc
