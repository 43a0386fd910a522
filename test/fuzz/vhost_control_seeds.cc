// vhost_control_seeds DIRECTORY: writes there what vhost_control_fuzz begins with: conversations of front ends that
// behave, with either kind of ring, and some that do not.
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "lib/virtio/virtio.h"
#include "lib/virtio/wire.h"
#include "test/fuzz/vhost_control_input.h"

namespace sluice::vhost {
namespace {

constexpr uint64_t kProtocol = kProtocolMq | kProtocolReplyAck | kProtocolConfig | kProtocolBackendReq |
                               kProtocolConfigureMemSlots | kProtocolResetDevice;
constexpr uint64_t kFeatures =
    kFeatureVersion1 | kFeatureIndirectDesc | kFeatureProtocolFeatures | kBlkFeatureFlush | kBlkFeatureConfigWce;
constexpr MemoryRegion kWhole{.size = kControlMemoryBytes, .user_address = kControlUser};

struct Fds {
  uint8_t count = 0;
  ControlFd first = ControlFd::kMemory;
};

class Input {
 public:
  template <typename... Parts>
  Input& send(Request request, Fds fds, const Parts&... parts) {
    std::vector<uint8_t> payload;
    (append(payload, parts), ...);
    bytes_.push_back(static_cast<uint8_t>(request));
    bytes_.push_back(kHowNeedReply);
    bytes_.push_back(static_cast<uint8_t>(fds.count + 8U * static_cast<unsigned>(fds.first)));
    bytes_.push_back(static_cast<uint8_t>(payload.size()));
    bytes_.insert(bytes_.end(), payload.begin(), payload.end());
    return *this;
  }
  Input& half(Request request) {
    for (const unsigned byte :
         {static_cast<unsigned>(request), unsigned{kHowHalf}, 0U, 8U, 0U, 0U, 0U, 0U, 0U, 0U, 0U, 0U})
      bytes_.push_back(static_cast<uint8_t>(byte));
    return *this;
  }
  Input& step(ControlStep what, uint8_t how = 0) {
    for (const unsigned byte : {static_cast<unsigned>(what), unsigned{how}, 0U, 0U})
      bytes_.push_back(static_cast<uint8_t>(byte));
    return *this;
  }

  Input& handshake(uint64_t features) {
    return send(Request::kGetFeatures, {})
        .send(Request::kSetOwner, {})
        .send(Request::kGetProtocolFeatures, {})
        .send(Request::kSetProtocolFeatures, {}, kProtocol)
        .send(Request::kGetQueueNum, {})
        .send(Request::kGetMaxMemSlots, {})
        .send(Request::kSetBackendReqFd, {1, ControlFd::kSocket})
        .send(Request::kGetConfig, {}, ConfigHeader{.offset = 0, .size = 60}, BlkConfig{})
        .send(Request::kSetFeatures, {}, features);
  }
  Input& table() {
    return send(Request::kSetMemTable, {1, ControlFd::kMemory}, MemTableHeader{.num_regions = 1}, kWhole);
  }
  Input& slot(ControlFd fd, uint64_t at, uint64_t size) {
    return send(Request::kAddMemReg, {1, fd},
                SingleMemoryRegion{.region = {.guest_address = at, .size = size, .user_address = kControlUser + at}});
  }
  Input& ring(uint32_t index, bool packed) {
    const uint64_t desc = kControlUser + (packed ? kControlPacked : kControlDescs);
    const uint64_t avail = kControlUser + (packed ? kControlDriverEvent : kControlAvail);
    const uint64_t used = kControlUser + (packed ? kControlDeviceEvent : kControlUsed);
    return send(Request::kSetVringNum, {}, VringState{index, kControlRingSize})
        .send(Request::kSetVringBase, {}, VringState{index, packed ? 0x80008000U : 0U})
        .send(Request::kSetVringAddr, {}, VringAddr{.index = index, .desc = desc, .used = used, .avail = avail})
        .send(Request::kSetVringErr, {1, ControlFd::kEvent}, uint64_t{index})
        .send(Request::kSetVringCall, {1, ControlFd::kPipe}, uint64_t{index})
        .send(Request::kSetVringKick, {1, ControlFd::kEvent}, uint64_t{index})
        .send(Request::kSetVringEnable, {}, VringState{index, 1})
        .step(ControlStep::kKick);
  }
  Input& stop(uint32_t index) { return send(Request::kGetVringBase, {}, VringState{index, 0}); }

  void write(const std::string& path) const {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes_.data()), static_cast<std::streamsize>(bytes_.size()));
  }

 private:
  template <typename Part>
  static void append(std::vector<uint8_t>& payload, const Part& part) {
    const size_t before = payload.size();
    payload.resize(before + sizeof(part));
    std::memcpy(payload.data() + before, &part, sizeof(part));
  }

  std::vector<uint8_t> bytes_;
};

void write_all(const std::string& directory) {
  const auto path = [&directory](const char* name) { return directory + "/" + name; };
  for (const bool packed : {false, true}) {
    const uint64_t features = kFeatures | (packed ? kFeatureRingPacked : 0);
    const std::string kind = packed ? "/packed_" : "/split_";
    Input().handshake(features).table().ring(0, packed).stop(0).ring(0, packed).write(directory + kind + "table");
    Input()
        .handshake(features)
        .slot(ControlFd::kMemory, 0, kControlMemoryBytes)
        .slot(ControlFd::kSealedMemory, 1 << 20, 4096)
        .ring(0, packed)
        .ring(1, packed)
        .send(Request::kRemMemReg, {1, ControlFd::kSealedMemory},
              SingleMemoryRegion{
                  .region = {.guest_address = 1 << 20, .size = 4096, .user_address = kControlUser + (1 << 20)}})
        .send(Request::kResetDevice, {})
        .write(directory + kind + "slots");
    Input()
        .handshake(features)
        .table()
        .ring(0, packed)
        .step(ControlStep::kTruncate, 2)
        .step(ControlStep::kKick)
        .stop(0)
        .write(directory + kind + "truncated");
    Input()
        .handshake(features)
        .table()
        .step(ControlStep::kFillEvent)
        .send(Request::kSetVringCall, {1, ControlFd::kEvent}, uint64_t{0})
        .step(ControlStep::kFillEvent)
        .ring(0, packed)
        .write(directory + kind + "blocks");
  }
  Input().handshake(kFeatures).half(Request::kSetFeatures).step(ControlStep::kPass, 33).write(path("half"));
  Input()
      .handshake(kFeatures)
      .send(Request::kSetConfig, {}, ConfigHeader{.offset = 32, .size = 1}, uint8_t{0})
      .step(ControlStep::kResize, 1)
      .step(ControlStep::kReadNothing)
      .send(Request::kGetConfig, {}, ConfigHeader{.offset = 0, .size = 60}, BlkConfig{})
      .write(path("config"));
  Input()
      .handshake(kFeatures)
      .table()
      .send(Request::kGetInflightFd, {}, InflightDescription{.num_queues = 1, .queue_size = kControlRingSize})
      .write(path("inflight"));
  Input()
      .handshake(kFeatures)
      .send(Request::kSetInflightFd, {1, ControlFd::kMemory},
            InflightDescription{.mmap_size = 4096, .num_queues = 1, .queue_size = kControlRingSize})
      .table()
      .ring(0, false)
      .write(path("inflight_set"));
  Input()
      .handshake(kFeatures | kFeatureLogAll)
      .send(Request::kSetLogBase, {1, ControlFd::kMemory}, LogDescription{.size = 4096})
      .table()
      .ring(0, false)
      .write(path("log"));
  Input().send(Request::kSetVringCall, {1, ControlFd::kOwnSocket}, uint64_t{0}).write(path("own_socket"));
  Input()
      .send(Request::kSetMemTable, {kTooManyFds, ControlFd::kMemory}, MemTableHeader{.num_regions = 7})
      .write(path("many"));
}

}  // namespace
}  // namespace sluice::vhost

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  sluice::vhost::write_all(argv[1]);
  return 0;
}
