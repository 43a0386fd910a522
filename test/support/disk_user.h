// What a test of a block device needs around it: hosts, a thread directory and a manager (BdevWorld), and somebody who
// opens the device and does I/O (DiskUser).
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/block_io.h"
#include "test/support/manual_host.h"

namespace sluice {

// Members in the order in which they must be made; the destructor removes all devices.
struct BdevWorld {
  explicit BdevWorld(size_t host_count = 1, PollMode mode = PollMode::kInterrupt);
  ~BdevWorld();

  LwThread& app() { return hosts.home(); }
  // Adds the device. Requires: there is one, of a new name (checked).
  Bdev& add(Result<std::unique_ptr<Bdev>> made);

  ManualHosts hosts;
  ThreadDirectory threads{hosts};
  BdevManager manager{threads};
};

// A request that tells when it is done.
struct TestIo : BlockIo {
  TestIo();
  // A read or write of these buffers.
  TestIo(IoType io_type, uint64_t offset, std::initializer_list<std::span<std::byte>> pieces);
  // Anything else.
  TestIo(IoType io_type, uint64_t offset, uint64_t length);

  bool done = false;
  std::vector<iovec> buffers;
};

// An open device and a channel to it on one thread.
class DiskUser final : public BdevEvents {
 public:
  // Requires: the device can be opened so (checked).
  DiskUser(BdevWorld& world, std::string_view name, LwThread& thread, bool writable = true);
  // On the application's thread.
  explicit DiskUser(BdevWorld& world, std::string_view name = "disk", bool writable = true);
  ~DiskUser() override { close(); }

  Bdev& bdev() const { return handle_->bdev(); }
  BdevChannel& channel() const { return static_cast<BdevChannel&>(*channel_.get()); }

  void submit(TestIo& io);
  // Waits for it, turning the hosts.
  IoStatus finish(const TestIo& io);

  IoStatus read(uint64_t offset_bytes, std::span<std::byte> into);
  IoStatus write(uint64_t offset_bytes, std::span<std::byte> from);
  IoStatus flush();
  IoStatus discard(uint64_t offset_bytes, uint64_t length_bytes);
  IoStatus write_zeroes(uint64_t offset_bytes, uint64_t length_bytes, bool may_unmap);
  IoStatus reset();

  // Closes channel and handle. Requires: nothing is in flight.
  void close();

  void on_resize() override { ++resizes; }
  void on_remove() override { removed = true; }
  int resizes = 0;
  bool removed = false;

 private:
  IoStatus run(TestIo& io);

  BdevWorld& world_;
  LwThread& thread_;
  std::unique_ptr<BdevHandle> handle_;
  ChannelRef channel_;
};

// Memory aligned to pages, as guests' usually is.
class PageBuffer {
 public:
  explicit PageBuffer(size_t size_bytes, uint32_t pattern = 0);
  std::span<std::byte> bytes() const { return {memory_.get(), size_}; }
  std::span<std::byte> bytes(size_t offset, size_t length) const { return bytes().subspan(offset, length); }
  bool operator==(const PageBuffer& other) const;

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  size_t size_;
  std::unique_ptr<std::byte[], Free> memory_;
};

// Bytes that differ from block to block and from pattern to pattern; zeroes for pattern 0.
void fill_pattern(std::span<std::byte> bytes, uint32_t pattern);
bool all_zero(std::span<const std::byte> bytes);

}  // namespace sluice
