#include "lib/bdev/uring/uring_bdev.h"

#include <cerrno>

#include "lib/bdev/file_bdev.h"
#include "lib/bdev/uring/uring_channel.h"
#include "lib/bdev/uring/uring_group.h"
#include "lib/bdev/uring/uring_ring.h"

namespace sluice {

class UringBdev final : public FileBdev {
 public:
  UringBdev(const UringBdevOptions& options, UringModule& module, std::unique_ptr<FileBackend> file)
      : FileBdev({.name = options.name,
                  .uuid = options.uuid,
                  .product_name = kUringProductName,
                  .readonly = options.readonly},
                 std::move(file)),
        made_from_(options),
        module_(module) {}

  const UringBdevOptions& made_from() const { return made_from_; }

 private:
  Result<std::unique_ptr<BdevChannel>> make_channel() override {
    ThreadHost& host = *ThreadHost::current();
    auto& group = host.local<UringGroup>(
        &module_, [&] { return std::make_unique<UringGroup>(host, module_.system_, module_.pool_); });
    return std::make_unique<UringChannel>(*this, group);
  }

  const UringBdevOptions made_from_;
  UringModule& module_;
};

UringModule::UringModule(const UringSystem* system) : system_(system != nullptr ? *system : UringSystem::kernel()) {}

Result<std::unique_ptr<Bdev>> UringModule::create(const UringBdevOptions& options) {
  // Each reactor makes its own with its first request: better to learn here that it cannot.
  UringRing trial(system_);
  if (auto opened = trial.open(1); !opened) return std::unexpected(opened.error());
  auto file = FileBackend::open(options.filename, options.block_size_bytes, options.readonly);
  if (!file) return std::unexpected(file.error());
  return std::make_unique<UringBdev>(options, *this, std::move(*file));
}

Result<> UringModule::rescan(BdevManager& bdevs, Bdev& bdev) {
  auto* uring = dynamic_cast<UringBdev*>(&bdev);
  if (uring == nullptr) return fail(ENODEV, "this is not a uring bdev");
  return uring->rescan(bdevs);
}

const UringBdevOptions* uring_options(const Bdev& bdev) {
  const auto* uring = dynamic_cast<const UringBdev*>(&bdev);
  return uring == nullptr ? nullptr : &uring->made_from();
}

}  // namespace sluice
