#include "lib/bdev/uring/uring_bdev.h"

#include "lib/bdev/uring/uring_channel.h"
#include "lib/bdev/uring/uring_group.h"
#include "lib/bdev/uring/uring_ring.h"

namespace sluice {

class UringBdev final : public FileBdev {
 public:
  UringBdev(const FileBdevOptions& options, UringModule& module, std::unique_ptr<FileBackend> file)
      : FileBdev(options, kUringProductName, std::move(file)), module_(module) {}

  UringGroup& queue_of(ThreadHost& host) override {
    return host.local<UringGroup>(&module_,
                                  [&] { return std::make_unique<UringGroup>(host, module_.system_, module_.pool_); });
  }

 private:
  Result<std::unique_ptr<BdevChannel>> make_channel() override { return std::make_unique<UringChannel>(*this); }

  UringModule& module_;
};

UringModule::UringModule(const UringSystem* system) : system_(system != nullptr ? *system : UringSystem::kernel()) {}

Result<std::unique_ptr<Bdev>> UringModule::create(const FileBdevOptions& options) {
  // Each reactor makes its own with its first request: better to learn here that it cannot.
  UringRing trial(system_);
  if (auto opened = trial.open(1); !opened) return std::unexpected(opened.error());
  auto file = FileBackend::open(options.filename, options.block_size_bytes, options.readonly);
  if (!file) return std::unexpected(file.error());
  return std::make_unique<UringBdev>(options, *this, std::move(*file));
}

}  // namespace sluice
