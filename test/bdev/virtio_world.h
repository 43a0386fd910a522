// What a test of the virtio bdev needs on the front end's side: reactors, a manager, the module, and users of a device
// on threads of their own.
// Thread: the test's own; calls wait until the reactors have done what was asked.
#pragma once

#include <future>
#include <memory>
#include <string>
#include <vector>

#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/virtio/virtio_bdev.h"
#include "lib/reactor/reactor_group.h"

namespace sluice::test {

// Runs a task on the thread, to its end.
template <typename T>
T await_on(LwThread& thread, Task<T> task) {
  std::promise<T> done;
  post_to(thread, [&] {
    if constexpr (std::is_void_v<T>) {
      start(std::move(task), [&done] { done.set_value(); });
    } else {
      start(std::move(task), [&done](T value) { done.set_value(std::move(value)); });
    }
  });
  return done.get_future().get();
}

template <typename Fn>
std::invoke_result_t<Fn&> call_and_wait(LwThread& thread, Fn fn) {
  using T = std::invoke_result_t<Fn&>;
  return await_on(thread, [](Fn& call) -> Task<T> { co_return call(); }(fn));
}

class VirtioWorld {
 public:
  explicit VirtioWorld(PollMode mode = PollMode::kInterrupt, CpuMask cpus = CpuMask::available());
  ~VirtioWorld();

  LwThread& app() { return *app_; }
  ReactorGroup& reactors() { return *reactors_; }
  BdevManager& bdevs() { return *bdevs_; }
  ThreadDirectory& threads() { return *threads_; }

  // With SLUICE_TEST_PACKED set, packed rings are asked for.
  Result<Bdev*> attach(VirtioBdevOptions options);
  Result<> detach(const std::string& name);
  VirtioBdevInfo info(const std::string& name);
  void set_mode(PollMode mode);

  // A lightweight thread on the reactor of this place among them.
  LwThread& add_thread(size_t reactor);
  void end_thread(LwThread& thread);

 private:
  std::unique_ptr<ReactorGroup> reactors_;
  std::unique_ptr<ThreadDirectory> threads_;
  std::unique_ptr<BdevManager> bdevs_;
  VirtioModule module_;
  LwThread* app_ = nullptr;
};

// A request that a task can wait for: co_await io.on(channel).
struct AwaitedIo : BlockIo {
  auto on(BdevChannel& to) {
    struct Awaiter {
      AwaitedIo& io;
      BdevChannel& channel;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> task) {
        io.waiter = task;
        io.run = [](Work& work) { static_cast<AwaitedIo&>(work).waiter.resume(); };
        channel.submit(io);
      }
      IoStatus await_resume() const noexcept { return io.status; }
    };
    return Awaiter{*this, to};
  }
  std::coroutine_handle<> waiter;
};

// An open device, and a channel to it on a thread of a given reactor.
class VirtioUser final : public BdevEvents {
 public:
  // Requires: the device can be opened (checked); the channel may fail.
  VirtioUser(VirtioWorld& world, const std::string& name, size_t reactor = 0);
  ~VirtioUser() override;

  bool has_channel() const { return static_cast<bool>(channel_); }
  Error channel_error() const { return channel_error_; }
  BdevChannel& channel() const { return static_cast<BdevChannel&>(*channel_.get()); }
  LwThread& thread() { return thread_; }
  Bdev& bdev() { return handle_->bdev(); }

  // Runs task(channel) on the thread.
  template <typename Fn>
  auto run(Fn make_task) {
    return await_on(thread_, make_task());
  }
  IoStatus read(uint64_t offset_bytes, std::span<std::byte> into);
  IoStatus write(uint64_t offset_bytes, std::span<std::byte> from);
  IoStatus other(IoType type, uint64_t offset_bytes = 0, uint64_t length_bytes = 0, bool may_unmap = false);
  // Gives channel and handle back.
  void close();

  void on_resize() override { ++resizes; }
  // As a good user does: no more requests, then everything is given back.
  void on_remove() override { removed = true; }
  std::atomic<int> resizes = 0;
  std::atomic<bool> removed = false;

 private:
  VirtioWorld& world_;
  LwThread& thread_;
  std::unique_ptr<BdevHandle> handle_;
  ChannelRef channel_;
  Error channel_error_;
};

// Waits until `reached()`, looking every millisecond. False after ten seconds.
bool wait_until(const std::function<bool()>& reached);

}  // namespace sluice::test
