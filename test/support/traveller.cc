#include "test/support/traveller.h"

#include "lib/base/check.h"
#include "lib/base/cpu_mask.h"

namespace sluice {
namespace {

LwThread& make_thread(BdevWorld& world, size_t host) {
  CpuMask mask;
  mask.set(static_cast<uint32_t>(host));
  const Result<LwThread*> made = world.hosts.on(world.app(), [&] { return world.threads.create("traveller", mask); });
  CHECK(made.has_value());
  return **made;
}

}  // namespace

PlacedIo::PlacedIo(IoType io_type, uint64_t offset, std::initializer_list<std::span<std::byte>> pieces)
    : TestIo(io_type, offset, pieces) {
  note_place();
}

PlacedIo::PlacedIo(IoType io_type, uint64_t offset, uint64_t length) : TestIo(io_type, offset, length) { note_place(); }

void PlacedIo::note_place() {
  run = [](Work& work) {
    auto& self = static_cast<PlacedIo&>(work);
    ++self.completions;
    self.done = true;
    self.thread = LwThread::current();
    self.host = ThreadHost::current();
  };
}

Traveller::Traveller(BdevWorld& world, size_t host, std::string_view disk)
    : world_(world), thread_(make_thread(world, host)), disk_(std::make_unique<DiskUser>(world, disk, thread_)) {}

Traveller::~Traveller() {
  CHECK(!moving_);
  disk_.reset();
  world_.hosts.await(world_.app(), world_.threads.destroy(thread_));
}

void Traveller::move(size_t host) {
  begin_move(host);
  CHECK(world_.hosts.run_until([this] { return !moving_; }));
}

void Traveller::begin_move(size_t host) {
  CHECK(!moving_);
  moving_ = true;
  world_.hosts.on(world_.app(), [&] {
    start(world_.threads.move(thread_, world_.hosts[host]), [this, host](Result<> moved) {
      CHECK(moved.has_value());
      CHECK(&thread_.host() == &world_.hosts[host]);
      moving_ = false;
    });
  });
}

}  // namespace sluice
