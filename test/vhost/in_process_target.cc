#include "test/vhost/in_process_target.h"

#include <algorithm>
#include <cstdlib>
#include <random>

#include "lib/base/clock.h"

namespace sluice::test {
namespace {

// ThreadSanitizer does not see that the driver, which has the guest's memory at addresses of its own, orders what two
// of the target's threads do with the same bytes one after the other.
#if __has_feature(thread_sanitizer)
constexpr uint32_t kQueueThreads = 0;
#else
constexpr uint32_t kQueueThreads = 2;
#endif

CpuMask first_available_cpus(size_t count) {
  const CpuMask available = CpuMask::available();
  CpuMask mask;
  for (uint32_t cpu = 0; cpu < CpuMask::kMaxCpus && mask.count() < count; ++cpu) {
    if (available.test(cpu)) mask.set(cpu);
  }
  return mask;
}

std::string name_of(const char* what, unsigned number) { return std::string(what) + std::to_string(number); }

}  // namespace

InProcessTarget::InProcessTarget(const Options& options) : restless_(std::getenv("SLUICE_TEST_RESTLESS") != nullptr) {
  std::string name = (std::filesystem::temp_directory_path() / "sluice-vhost-XXXXXX").string();
  CHECK(::mkdtemp(name.data()) != nullptr);
  directory_ = name;
  reactors_ = ReactorGroup::create(first_available_cpus(restless_ ? 2 : 1), options.mode).value();
  threads_ = std::make_unique<ThreadDirectory>(*reactors_);
  bdevs_ = std::make_unique<BdevManager>(*threads_);
  target_ = std::make_unique<vhost::Target>(*threads_, *bdevs_,
                                            vhost::Target::Options{.socket_directory = directory_.string()});
  app_ = threads_->create("app_thread", reactors_->all_cpus()).value();
  reactors_->start();
  await(set_up(options));
}

InProcessTarget::~InProcessTarget() {
  await(tear_down());
  // The application's thread cannot end itself: the first reactor's home does it.
  std::promise<void> ended;
  post_to(reactors_->reactors().front()->home(),
          [&] { start(threads_->destroy(*app_), [&ended] { ended.set_value(); }); });
  ended.get_future().wait();
  reactors_->request_stop();
  reactors_->join();
  std::filesystem::remove_all(directory_);
}

Task<> InProcessTarget::set_up(const Options& options) {
  const bool packed = options.packed_ring || std::getenv("SLUICE_TEST_PACKED") != nullptr;
  for (unsigned i = 0; i < options.num_controllers; ++i) {
    auto bdev = std::make_unique<HeldBdev>(name_of("bdev", i), options.size_bytes, options.block_size);
    bdevs_in_use_.push_back(bdev.get());
    CHECK(bdevs_->add(std::move(bdev)).has_value());
    vhost::Target::ControllerOptions controller{.name = name_of("vhost.", i),
                                                .bdev_name = name_of("bdev", i),
                                                .cpumask = {},
                                                .readonly = options.readonly,
                                                .packed_ring = packed,
                                                .queue_threads = restless_ ? kQueueThreads : 0U};
    auto created = co_await target_->create_controller(std::move(controller));
    CHECK(created.has_value());
  }
  if (restless_) CHECK(moving_.spawn(move_about()));
}

// The application's own thread, on which this runs, as well.
Task<> InProcessTarget::move_about() {
  std::minstd_rand random;
  while (!moving_.closed()) {
    std::vector<uint64_t> ids;
    co_await threads_->for_each([&ids](LwThread& thread) { ids.push_back(thread.id()); });
    for (const uint64_t id : ids) {
      LwThread* thread = threads_->find(id);
      const auto& reactors = reactors_->reactors();
      if (thread != nullptr) std::ignore = co_await threads_->move(*thread, *reactors[random() % reactors.size()]);
    }
    // check-layers: allow sleep (nothing waits for it)
    co_await sleep_for(100 * kNsPerUs);
  }
}

Task<> InProcessTarget::tear_down() {
  co_await moving_.close();
  for (HeldBdev* bdev : bdevs_in_use_) {
    if (bdev != nullptr) co_await bdev->release(*threads_);
  }
  for (HeldBdev* bdev : other_bdevs_) co_await bdev->release(*threads_);
  co_await target_->remove_all();
  co_await bdevs_->remove_all();
}

std::string InProcessTarget::socket_path(unsigned controller) const {
  return (directory_ / name_of("vhost.", controller)).string();
}

void InProcessTarget::resize_bdev(unsigned controller, uint64_t size_bytes) {
  await([](InProcessTarget& self, unsigned number, uint64_t size) -> Task<> {
    self.bdevs_->set_size(self.bdev(number), size);
    co_return;
  }(*this, controller, size_bytes));
}

void InProcessTarget::remove_bdev(unsigned controller) { remove_bdev(bdev(controller)); }

HeldBdev& InProcessTarget::add_bdev(const std::string& name, uint64_t size_bytes, uint32_t block_size, bool discards) {
  auto made = std::make_unique<HeldBdev>(name, size_bytes, block_size, discards);
  HeldBdev& bdev = *made;
  await([](InProcessTarget& self, std::unique_ptr<HeldBdev> added) -> Task<> {
    CHECK(self.bdevs_->add(std::move(added)).has_value());
    co_return;
  }(*this, std::move(made)));
  other_bdevs_.push_back(&bdev);
  return bdev;
}

void InProcessTarget::remove_bdev(HeldBdev& bdev) {
  await([](InProcessTarget& self, HeldBdev& removed) -> Task<> {
    start(self.bdevs_->remove(removed, RemoveMode::kForce), [&self, &removed](Result<> result) {
      CHECK(result.has_value());
      std::erase(self.other_bdevs_, &removed);
      std::ranges::replace(self.bdevs_in_use_, &removed, nullptr);
    });
    co_return;
  }(*this, bdev));
}

Result<> InProcessTarget::set_bdev(unsigned controller, const std::string& name) {
  return await(target_->set_bdev(name_of("vhost.", controller), name));
}

void InProcessTarget::release_io(unsigned controller) { await(bdev(controller).release(*threads_)); }
void InProcessTarget::release_oldest_io(unsigned controller, int count) {
  await(bdev(controller).release_oldest(*threads_, count));
}

vhost::ControllerInfo InProcessTarget::info(unsigned controller) {
  return await(target_->list(name_of("vhost.", controller))).at(0);
}

IoStats InProcessTarget::iostat(unsigned controller) { return await(bdevs_->iostat(bdev(controller))); }

}  // namespace sluice::test
