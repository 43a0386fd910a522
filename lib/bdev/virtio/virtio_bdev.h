// The virtio bdev: a disk behind a vhost-user-blk socket, of another process or of our own target: the front end's side
// of lib/vhost.
//
// Each host that uses the device has a virtqueue of its own. Buffers got from Bdev::allocate_buffer() are shared with
// the back end; others are copied. When the back end goes, what is in flight fails, and so does what is submitted until
// it is back: connecting is tried again for as long as the device is attached.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lib/base/result.h"
#include "lib/thread/task.h"

namespace sluice {

class Bdev;
class BdevManager;
namespace virtio {
class Controller;
}

inline constexpr const char* kVirtioProductName = "VirtioBlk Disk";

struct VirtioBdevOptions {
  std::string name;  // of the bdev
  std::string socket_path;
  uint32_t vq_count = 0;     // 0: one for each host, as far as the back end has them
  uint32_t vq_size = 256;    // a power of two, 8 to 1024
  bool packed_ring = false;  // packed virtqueues, if the back end has them
};

// What is to be told of an attached device.
struct VirtioBdevInfo {
  std::string name;
  std::string socket_path;
  uint32_t vq_count = 0;
  uint32_t vq_size = 0;
  bool vq_count_chosen = false;  // it was asked for, not found
  bool packed_ring_chosen = false;
  bool connected = false;
  uint64_t reconnects = 0;
  uint64_t features = 0;
  struct Queue {
    uint64_t requests = 0;
    uint64_t bounced = 0;  // copied, as their buffers were not shared
    uint64_t kicks = 0;
    uint64_t calls = 0;
  };
  std::vector<Queue> queues;
};

// Attaches and detaches virtio bdevs.
// Thread:    the application's lightweight thread.
// Ownership: owns the controllers; the manager that is given owns their bdevs.
class VirtioModule {
 public:
  VirtioModule();
  VirtioModule(const VirtioModule&) = delete;
  VirtioModule& operator=(const VirtioModule&) = delete;
  // Requires: detach_all() has completed, or nothing was attached (checked).
  ~VirtioModule();

  // Connects to the back end, and adds the bdev.
  // Errors: EEXIST; EINVAL (options; more queues than the back end has); ETIMEDOUT; those of connect(2); ENOTSUP and
  // EPROTO (the back end lacks what we need, or talks nonsense). Nothing is left of a failed one.
  Task<Result<Bdev*>> attach(BdevManager& bdevs, VirtioBdevOptions options);
  // Removes the bdev, as BdevManager::remove() does by force, and ends the connection. A back end that does not
  // complete what is in flight is left to itself after a while. Errors: ENODEV.
  Task<Result<>> detach(BdevManager& bdevs, std::string name);
  Task<> detach_all(BdevManager& bdevs);

  // Of a bdev of this module; nothing for any other one.
  static std::optional<VirtioBdevInfo> info(const Bdev& bdev);

 private:
  struct Entry {
    std::unique_ptr<virtio::Controller> controller;
    bool busy = true;  // being attached or detached
  };

  std::map<std::string, Entry, std::less<>> entries_;
};

}  // namespace sluice
