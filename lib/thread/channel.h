// I/O devices and channels: a device is shared by all; a channel is one lightweight thread's own access to it, so that
// I/O needs no lock.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "lib/base/result.h"
#include "lib/thread/move_listener.h"

namespace sluice {

class Channel;
class LwThread;

// Something that lightweight threads open channels to.
// Ownership: must outlive its channels (checked).
class IoDevice {
 public:
  IoDevice() = default;
  IoDevice(const IoDevice&) = delete;
  IoDevice& operator=(const IoDevice&) = delete;
  virtual ~IoDevice();

  virtual std::string_view device_name() const = 0;
  // On the thread that opens the channel.
  virtual Result<std::unique_ptr<Channel>> create_channel() = 0;

  // The ids of the threads that have a channel now. Any thread.
  std::vector<uint64_t> channel_threads() const;

 private:
  friend class LwThread;
  void channel_opened(uint64_t thread_id);
  void channel_closed(uint64_t thread_id);

  mutable std::mutex mutex_;
  std::vector<uint64_t> threads_;
};

// Its listener's calls come as for any other: see MoveListener.
class Channel : public MoveListener {
 public:
  explicit Channel(IoDevice& device) : device_(device) {}
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;
  ~Channel() override = default;

  // Whether its thread may go to another host, with requests in flight.
  virtual bool can_move() const { return true; }

  IoDevice& device() const { return device_; }
  LwThread& thread() const { return *thread_; }
  uint32_t references() const { return references_; }

 private:
  friend class LwThread;
  friend class ChannelRef;
  IoDevice& device_;
  LwThread* thread_ = nullptr;
  uint32_t references_ = 0;
};

// One counted reference to a channel; released on the channel's thread.
class ChannelRef {
 public:
  ChannelRef() = default;
  explicit ChannelRef(Channel& channel) : channel_(&channel) { ++channel.references_; }
  ChannelRef(ChannelRef&& other) noexcept : channel_(std::exchange(other.channel_, nullptr)) {}
  ChannelRef& operator=(ChannelRef&& other) noexcept {
    if (this != &other) {
      reset();
      channel_ = std::exchange(other.channel_, nullptr);
    }
    return *this;
  }
  ~ChannelRef() { reset(); }

  Channel* get() const { return channel_; }
  explicit operator bool() const { return channel_ != nullptr; }
  void reset();

 private:
  Channel* channel_ = nullptr;
};

}  // namespace sluice
