// FakeBackEnd: a vhost-user-blk back end of a few lines, which tells the truth or, where it is asked to, lies. Written
// against the specifications, not with the library's code.
//
// It answers reads with bytes of kFill, and remembers the discards and write zeroes it was asked for.
// Thread: the test's own; it serves on one of its own.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "lib/base/unique_fd.h"
#include "lib/virtio/virtio.h"
#include "lib/virtio/wire.h"

namespace sluice::test {

// What it does to the next request.
enum class Lie : uint8_t {
  kNone,
  kIdOutOfRange,
  kIdNotInFlight,
  kUsedJump,
  kLongLength,
  kShortRead,
  kNoStatus,
  kStrangeStatus,
  kUnsupported,
  kSilence,  // from now on
  kHangUp,   // closes the connection, with the request in flight
};

// What it does to the set-up.
enum class SetUpLie : uint8_t {
  kNone,
  kSilent,
  kHangUp,
  kOtherAnswer,  // the answer to another question
  kUnasked,      // an answer too many
  kNotAReply,
  kHugePayload,
  kShortFeatures,  // an answer of the wrong size
  kNoConfig,       // the answer to GET_CONFIG is empty
  kRefusesMemory,
  kNoQueues,
};

class FakeBackEnd {
 public:
  static constexpr std::byte kFill{0xab};

  struct Options {
    vhost::BlkConfig config{.capacity = 2048,
                            .seg_max = 30,
                            .blk_size = 512,
                            .max_discard_sectors = 8,
                            .max_discard_seg = 1,
                            .max_write_zeroes_sectors = 16,
                            .max_write_zeroes_seg = 1,
                            .write_zeroes_may_unmap = 1};
    uint64_t features = vhost::kFeatureVersion1 | vhost::kFeatureProtocolFeatures | vhost::kFeatureEventIdx |
                        vhost::kFeatureIndirectDesc | vhost::kBlkFeatureSegMax | vhost::kBlkFeatureBlkSize |
                        vhost::kBlkFeatureFlush | vhost::kBlkFeatureDiscard | vhost::kBlkFeatureWriteZeroes;
    uint64_t protocol_features =
        vhost::kProtocolReplyAck | vhost::kProtocolConfig | vhost::kProtocolMq | vhost::kProtocolBackendReq;
    uint64_t num_queues = 1;
    SetUpLie set_up = SetUpLie::kNone;
  };

  FakeBackEnd(std::string path, const Options& options);
  explicit FakeBackEnd(std::string path) : FakeBackEnd(std::move(path), Options{}) {}
  ~FakeBackEnd();

  void lie(Lie lie) { lie_ = lie; }
  // Shows a new capacity, and tells the front end.
  void resize(uint64_t sectors);

  int connections() const { return connections_; }
  int requests() const { return requests_; }
  std::vector<vhost::BlkDiscardSegment> ranges() const;

 private:
  struct Ring {
    uint32_t size = 0;
    vhost::VringAddr addresses;
    bool enabled = false;
    UniqueFd kick;
    UniqueFd call;
    uint16_t next = 0;
    uint16_t used = 0;
  };
  struct Buffer {
    std::byte* data;
    uint32_t length;
    bool writable;
  };

  void run();
  void serve(int socket);
  bool handle(int socket);
  bool reply(int socket, uint32_t request, const void* payload, size_t bytes);
  // False: hang up.
  bool serve_ring();
  bool serve_request(uint16_t head);
  std::vector<Buffer> chain(uint16_t head);
  void use(uint32_t id, uint32_t length, uint16_t how_many = 1);
  std::byte* at(uint64_t address) const;

  const std::string path_;
  mutable std::mutex mutex_;
  Options options_;
  UniqueFd listener_;
  UniqueFd wake_;
  std::atomic<bool> stop_ = false;
  std::atomic<Lie> lie_ = Lie::kNone;
  std::atomic<int> connections_ = 0;
  std::atomic<int> requests_ = 0;
  std::vector<vhost::BlkDiscardSegment> ranges_;

  // Of the present connection.
  Options now_;
  bool acknowledge_ = false;
  vhost::MemoryRegion region_;
  std::byte* memory_ = nullptr;
  Ring ring_;
  UniqueFd channel_;
  std::thread thread_;
};

}  // namespace sluice::test
