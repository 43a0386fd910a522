// The smallest complete program on Sluice's libraries: one reactor, one block device in memory, one write and one read,
// as a coroutine that reads from top to bottom.
//
//   build/release/examples/first_bdev
#include <cstdio>
#include <cstring>
#include <vector>

#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/malloc/malloc_bdev.h"
#include "lib/reactor/reactor_group.h"

namespace {

using namespace sluice;

// A request that a task can wait for.
struct AwaitableIo : BlockIo {
  Event done;
  AwaitableIo() {
    run = [](Work& work) { static_cast<AwaitableIo&>(work).done.set(); };
  }
};

Task<IoStatus> transfer(BdevChannel& channel, IoType type, std::vector<char>& buffer) {
  iovec iov{.iov_base = buffer.data(), .iov_len = buffer.size()};
  AwaitableIo io;
  io.type = type;
  io.iov = &iov;
  io.iov_count = 1;
  io.offset_bytes = 0;
  io.length_bytes = buffer.size();
  channel.submit(io);
  co_await io.done.wait();
  co_return io.status;
}

struct IgnoreEvents : BdevEvents {
  void on_resize() override {}
  void on_remove() override {}
};

Task<int> write_and_read(BdevManager& bdevs) {
  auto made = create_malloc_bdev({.name = "Malloc0", .num_blocks = 2048, .block_size_bytes = 512});
  if (!made) co_return 1;
  Bdev& bdev = *bdevs.add(std::move(*made)).value();

  std::vector<char> written(4096, 's');
  std::vector<char> read(4096);
  {
    IgnoreEvents events;
    auto handle = bdevs.open("Malloc0", BdevAccess::kWrite, events, "example");
    auto channel = LwThread::current()->get_channel(bdev);
    auto& access = static_cast<BdevChannel&>(*channel->get());
    if (co_await transfer(access, IoType::kWrite, written) != IoStatus::kOk) co_return 1;
    if (co_await transfer(access, IoType::kRead, read) != IoStatus::kOk) co_return 1;
    channel->reset();
  }
  std::ignore = co_await bdevs.remove(bdev, RemoveMode::kIfUnused);
  co_return written == read ? 0 : 1;
}

}  // namespace

int main() {
  auto reactors = ReactorGroup::create(CpuMask::parse("0x1").value(), PollMode::kInterrupt);
  if (!reactors) {
    std::fprintf(stderr, "cannot create a reactor: %s: %s\n", reactors.error().what,
                 std::strerror(reactors.error().code));
    return 1;
  }
  ThreadDirectory threads(**reactors);
  BdevManager bdevs(threads);
  LwThread& reactor_thread = (*reactors)->reactors().front()->home();
  int result = 1;
  post_to(reactor_thread, [&] {
    start(write_and_read(bdevs), [&](int code) {
      result = code;
      (*reactors)->request_stop();
    });
  });
  (*reactors)->start();
  (*reactors)->join();
  std::puts(result == 0 ? "4096 bytes written and read back" : "failed");
  return result;
}
