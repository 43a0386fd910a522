#include "test/bdev/virtio_world.h"

#include <chrono>
#include <cstdlib>
#include <thread>

namespace sluice::test {

VirtioWorld::VirtioWorld(PollMode mode, CpuMask cpus) {
  reactors_ = ReactorGroup::create(cpus, mode).value();
  threads_ = std::make_unique<ThreadDirectory>(*reactors_);
  for (const auto& reactor : reactors_->reactors()) threads_->list(reactor->home());
  bdevs_ = std::make_unique<BdevManager>(*threads_);
  app_ = &reactors_->reactors().front()->home();
  reactors_->start();
}

VirtioWorld::~VirtioWorld() {
  await_on(*app_, module_.detach_all(*bdevs_));
  await_on(*app_, bdevs_->remove_all());
  reactors_->request_stop();
  reactors_->join();
}

Result<Bdev*> VirtioWorld::attach(VirtioBdevOptions options) {
  if (std::getenv("SLUICE_TEST_PACKED") != nullptr) options.packed_ring = true;
  return await_on(*app_, module_.attach(*bdevs_, std::move(options)));
}

Result<> VirtioWorld::detach(const std::string& name) { return await_on(*app_, module_.detach(*bdevs_, name)); }

VirtioBdevInfo VirtioWorld::info(const std::string& name) {
  return call_and_wait(*app_, [&] { return VirtioModule::info(*bdevs_->find(name)).value(); });
}

void VirtioWorld::set_mode(PollMode mode) {
  for (const auto& reactor : reactors_->reactors()) {
    call_and_wait(reactor->home(), [&] { reactor->set_mode(mode); });
  }
}

LwThread& VirtioWorld::add_thread(size_t reactor) {
  CpuMask mask;
  mask.set(reactors_->reactors()[reactor]->lcore());
  return *call_and_wait(*app_, [&] { return threads_->create("user", mask).value(); });
}

void VirtioWorld::end_thread(LwThread& thread) { await_on(*app_, threads_->destroy(thread)); }

VirtioUser::VirtioUser(VirtioWorld& world, const std::string& name, size_t reactor)
    : world_(world), thread_(world.add_thread(reactor)) {
  handle_ = call_and_wait(world.app(),
                          [&] { return world_.bdevs().open(name, BdevAccess::kRead, *this, "the test").value(); });
  auto channel = call_and_wait(thread_, [&] { return thread_.get_channel(handle_->bdev()); });
  if (channel) {
    channel_ = std::move(*channel);
  } else {
    channel_error_ = channel.error();
  }
}

VirtioUser::~VirtioUser() {
  close();
  world_.end_thread(thread_);
}

void VirtioUser::close() {
  if (handle_ == nullptr) return;
  call_and_wait(thread_, [&] { channel_.reset(); });
  call_and_wait(world_.app(), [&] { handle_.reset(); });
}

namespace {

Task<IoStatus> transfer(BdevChannel& channel, IoType type, uint64_t offset_bytes, std::span<std::byte> bytes) {
  AwaitedIo io;
  const iovec buffer{.iov_base = bytes.data(), .iov_len = bytes.size()};
  io.type = type;
  io.iov = &buffer;
  io.iov_count = 1;
  io.offset_bytes = offset_bytes;
  io.length_bytes = bytes.size();
  co_return co_await io.on(channel);
}

}  // namespace

IoStatus VirtioUser::read(uint64_t offset_bytes, std::span<std::byte> into) {
  return await_on(thread_, transfer(channel(), IoType::kRead, offset_bytes, into));
}

IoStatus VirtioUser::write(uint64_t offset_bytes, std::span<std::byte> from) {
  return await_on(thread_, transfer(channel(), IoType::kWrite, offset_bytes, from));
}

IoStatus VirtioUser::other(IoType type, uint64_t offset_bytes, uint64_t length_bytes, bool may_unmap) {
  return await_on(thread_,
                  [](BdevChannel& to, IoType io_type, uint64_t offset, uint64_t length, bool unmap) -> Task<IoStatus> {
                    AwaitedIo io;
                    io.type = io_type;
                    io.offset_bytes = offset;
                    io.length_bytes = length;
                    io.may_unmap = unmap;
                    co_return co_await io.on(to);
                  }(channel(), type, offset_bytes, length_bytes, may_unmap));
}

bool wait_until(const std::function<bool()>& reached) {
  using std::chrono::steady_clock;
  for (const auto end = steady_clock::now() + std::chrono::seconds(10); steady_clock::now() < end;) {
    if (reached()) return true;
    // check-layers: allow sleep (the back end is on other threads, or in another process, in real time)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return reached();
}

}  // namespace sluice::test
