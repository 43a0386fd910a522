#include "test/support/disk_user.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "lib/base/check.h"
#include "lib/bdev/bdev.h"

namespace sluice {

BdevWorld::BdevWorld(size_t host_count, PollMode mode) : hosts(host_count, mode) {
  for (size_t i = 0; i < host_count; ++i) threads.list(hosts.home(i));
}

BdevWorld::~BdevWorld() { hosts.await(app(), manager.remove_all()); }

Bdev& BdevWorld::add(Result<std::unique_ptr<Bdev>> made) {
  CHECK(made.has_value());
  const Result<Bdev*> added = manager.add(std::move(*made));
  CHECK(added.has_value());
  return **added;
}

TestIo::TestIo() {
  run = [](Work& work) { static_cast<TestIo&>(work).done = true; };
}

TestIo::TestIo(IoType io_type, uint64_t offset, std::initializer_list<std::span<std::byte>> pieces) : TestIo() {
  type = io_type;
  offset_bytes = offset;
  for (const std::span<std::byte> piece : pieces) {
    buffers.push_back({.iov_base = piece.data(), .iov_len = piece.size()});
    length_bytes += piece.size();
  }
  iov = buffers.data();
  iov_count = static_cast<uint32_t>(buffers.size());
}

TestIo::TestIo(IoType io_type, uint64_t offset, uint64_t length) : TestIo() {
  type = io_type;
  offset_bytes = offset;
  length_bytes = length;
}

DiskUser::DiskUser(BdevWorld& world, std::string_view name, LwThread& thread, bool writable)
    : world_(world), thread_(thread) {
  auto handle = world.hosts.on(world.app(), [&] {
    return world.manager.open(name, writable ? BdevAccess::kWrite : BdevAccess::kRead, *this, "the test");
  });
  CHECK(handle.has_value());
  handle_ = std::move(*handle);
  auto channel = world.hosts.on(thread, [&] { return thread.get_channel(handle_->bdev()); });
  CHECK(channel.has_value());
  channel_ = std::move(*channel);
}

DiskUser::DiskUser(BdevWorld& world, std::string_view name, bool writable)
    : DiskUser(world, name, world.app(), writable) {}

void DiskUser::close() {
  if (handle_ == nullptr) return;
  world_.hosts.on(thread_, [&] { channel_.reset(); });
  world_.hosts.on(world_.app(), [&] { handle_.reset(); });
}

void DiskUser::submit(TestIo& io) {
  world_.hosts.on(thread_, [&] { channel().submit(io); });
  CHECK(!io.done);  // never inside submit
}

IoStatus DiskUser::finish(const TestIo& io) {
  CHECK(world_.hosts.run_until([&io] { return io.done; }));
  return io.status;
}

IoStatus DiskUser::run(TestIo& io) {
  submit(io);
  return finish(io);
}

IoStatus DiskUser::read(uint64_t offset_bytes, std::span<std::byte> into) {
  TestIo io(IoType::kRead, offset_bytes, {into});
  return run(io);
}

IoStatus DiskUser::write(uint64_t offset_bytes, std::span<std::byte> from) {
  TestIo io(IoType::kWrite, offset_bytes, {from});
  return run(io);
}

IoStatus DiskUser::flush() {
  TestIo io(IoType::kFlush, 0, uint64_t{0});
  return run(io);
}

IoStatus DiskUser::discard(uint64_t offset_bytes, uint64_t length_bytes) {
  TestIo io(IoType::kDiscard, offset_bytes, length_bytes);
  return run(io);
}

IoStatus DiskUser::write_zeroes(uint64_t offset_bytes, uint64_t length_bytes, bool may_unmap) {
  TestIo io(IoType::kWriteZeroes, offset_bytes, length_bytes);
  io.may_unmap = may_unmap;
  return run(io);
}

IoStatus DiskUser::reset() {
  TestIo io(IoType::kReset, 0, uint64_t{0});
  return run(io);
}

PageBuffer::PageBuffer(size_t size_bytes, uint32_t pattern)
    : size_(size_bytes), memory_(static_cast<std::byte*>(std::aligned_alloc(4096, (size_bytes + 4095) / 4096 * 4096))) {
  CHECK(memory_ != nullptr);
  fill_pattern(bytes(), pattern);
}

bool PageBuffer::operator==(const PageBuffer& other) const {
  return size_ == other.size_ && std::memcmp(memory_.get(), other.memory_.get(), size_) == 0;
}

void PageBuffer::Free::operator()(std::byte* memory) const { std::free(memory); }

void fill_pattern(std::span<std::byte> bytes, uint32_t pattern) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    const size_t mixed = pattern == 0 ? 0 : (i ^ (i / 512 * 131)) * 31 + pattern * 17 + 1;
    bytes[i] = static_cast<std::byte>(mixed);
  }
}

bool all_zero(std::span<const std::byte> bytes) {
  return std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; });
}

}  // namespace sluice
