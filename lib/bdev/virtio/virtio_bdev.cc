#include "lib/bdev/virtio/virtio_bdev.h"

#include <bit>
#include <cerrno>

#include "lib/bdev/bdev.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/virtio/controller.h"
#include "lib/bdev/virtio/limits.h"
#include "lib/bdev/virtio/virtio_channel.h"
#include "lib/thread/timer.h"

namespace sluice {

using virtio::Controller;
using virtio::DeviceInfo;

namespace {

IoTypes io_types_of(const DeviceInfo& device) {
  constexpr IoTypes kNeither = {IoType::kRead, IoType::kWrite, IoType::kFlush, IoType::kReset};
  constexpr IoTypes kDiscard = {IoType::kRead, IoType::kWrite, IoType::kFlush, IoType::kReset, IoType::kDiscard};
  constexpr IoTypes kZeroes = {IoType::kRead, IoType::kWrite, IoType::kFlush, IoType::kReset, IoType::kWriteZeroes};
  constexpr IoTypes kBoth = {IoType::kRead,  IoType::kWrite,   IoType::kFlush,
                             IoType::kReset, IoType::kDiscard, IoType::kWriteZeroes};
  const bool zeroes = device.max_write_zeroes_bytes > 0;
  if (device.max_discard_bytes > 0) return zeroes ? kBoth : kDiscard;
  return zeroes ? kZeroes : kNeither;
}

class VirtioBdev final : public Bdev {
 public:
  explicit VirtioBdev(Controller& controller)
      : Bdev({.name = controller.options().name,
              .uuid = {},
              .product_name = kVirtioProductName,
              .size_bytes = controller.device().size_bytes,
              .limits = controller.device().limits,
              .io_types = io_types_of(controller.device()),
              .readonly = controller.device().readonly()}),
        controller_(controller),
        memory_(controller.memory()) {}
  ~VirtioBdev() override { controller_.on_bdev_gone(); }

  const Controller& controller() const { return controller_; }

  Result<IoBuffer> allocate_buffer(size_t size_bytes) override {
    const auto bytes = memory_->allocate(size_bytes);
    if (!bytes) return IoBuffer::allocate(size_bytes);  // copied, but it works
    return IoBuffer(*bytes, std::shared_ptr<const void>(bytes->data(), [memory = memory_, taken = *bytes](const void*) {
      memory->free(taken);
    }));
  }

 private:
  Result<std::unique_ptr<BdevChannel>> make_channel() override {
    auto queue = controller_.open_queue();
    if (!queue) return std::unexpected(queue.error());
    return std::make_unique<virtio::VirtioChannel>(*this, **queue);
  }

  Controller& controller_;
  const std::shared_ptr<virtio::SharedMemory> memory_;
};

Result<> check(const VirtioBdevOptions& options) {
  if (options.name.empty()) return fail(EINVAL, "a bdev needs a name");
  if (!std::has_single_bit(options.vq_size) || options.vq_size < virtio::kMinQueueSize ||
      options.vq_size > virtio::kMaxQueueSize) {
    return fail(EINVAL, "vq_size is a power of two from 8 to 1024");
  }
  if (options.vq_count > virtio::kMaxQueues) return fail(EINVAL, "vq_count is 64 at most");
  return {};
}

}  // namespace

VirtioModule::VirtioModule() = default;

VirtioModule::~VirtioModule() { CHECK(entries_.empty()); }

Task<Result<Bdev*>> VirtioModule::attach(BdevManager& bdevs, VirtioBdevOptions options) {
  if (auto valid = check(options); !valid) co_return std::unexpected(valid.error());
  const std::string name = options.name;
  if (entries_.contains(name) || bdevs.find(name) != nullptr) co_return fail(EEXIST, "a bdev of this name exists");
  // The name is taken from here on: others may ask for it while this waits.
  Entry& entry = entries_[name];
  entry.controller = std::make_unique<Controller>(bdevs, std::move(options));
  Controller& controller = *entry.controller;
  const Result<> attached = co_await controller.attach();
  Result<Bdev*> added = nullptr;
  if (attached) {
    auto bdev = std::make_unique<VirtioBdev>(controller);
    controller.set_bdev(*bdev);
    added = bdevs.add(std::move(bdev));  // the name may be another module's by now
  } else {
    added = std::unexpected(attached.error());
  }
  if (added) {
    entry.busy = false;
  } else {
    co_await controller.close();
    entries_.erase(name);
  }
  co_return added;
}

Task<Result<>> VirtioModule::detach(BdevManager& bdevs, std::string name) {
  const auto found = entries_.find(name);
  if (found == entries_.end() || found->second.busy) co_return fail(ENODEV, "there is no virtio bdev of this name");
  found->second.busy = true;
  Controller& controller = *found->second.controller;
  {
    Timer patience("virtio_detach", [&controller] { controller.give_up(); });
    LwThread& thread = *LwThread::current();
    patience.arm_at(thread, thread.now_ns() + virtio::kDetachNs);
    if (Bdev* bdev = bdevs.find(name)) std::ignore = co_await bdevs.remove(*bdev, RemoveMode::kForce);
    co_await controller.bdev_gone();  // somebody else may have removed it before
  }
  co_await controller.close();
  entries_.erase(name);
  co_return Result<>{};
}

Task<> VirtioModule::detach_all(BdevManager& bdevs) {
  std::vector<std::string> names;
  for (const auto& [name, entry] : entries_) names.push_back(name);
  for (const std::string& name : names) std::ignore = co_await detach(bdevs, name);
}

std::optional<VirtioBdevInfo> VirtioModule::info(const Bdev& bdev) {
  const auto* virtio = dynamic_cast<const VirtioBdev*>(&bdev);
  if (virtio == nullptr) return std::nullopt;
  const Controller& controller = virtio->controller();
  const VirtioBdevOptions& options = controller.options();
  VirtioBdevInfo info{.name = options.name,
                      .socket_path = options.socket_path,
                      .vq_count = static_cast<uint32_t>(controller.queues().size()),
                      .vq_size = options.vq_size,
                      .vq_count_chosen = options.vq_count != 0,
                      .packed_ring_chosen = options.packed_ring,
                      .connected = controller.state() == virtio::State::kConnected,
                      .reconnects = controller.reconnects(),
                      .features = controller.device().features,
                      .queues = {}};
  for (const auto& queue : controller.queues()) {
    const virtio::VirtioQueueStats& stats = queue->stats();
    info.queues.push_back({.requests = stats.requests.load(std::memory_order_relaxed),
                           .bounced = stats.bounced.load(std::memory_order_relaxed),
                           .kicks = stats.kicks.load(std::memory_order_relaxed),
                           .calls = stats.calls.load(std::memory_order_relaxed)});
  }
  return info;
}

}  // namespace sluice
