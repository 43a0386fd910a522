#include "lib/bdev/aio/aio_bdev.h"

#include "lib/bdev/aio/aio_group.h"

namespace sluice {

class AioBdev final : public FileBdev {
 public:
  AioBdev(const FileBdevOptions& options, AioModule& module, std::unique_ptr<FileBackend> file)
      : FileBdev(options, kAioProductName, std::move(file)), module_(module) {}

  FileQueue& queue_of(ThreadHost& host) override {
    return host.local<AioGroup>(&module_,
                                [&] { return std::make_unique<AioGroup>(host, module_.system_, module_.pool_); });
  }

 private:
  Result<std::unique_ptr<BdevChannel>> make_channel() override { return std::make_unique<FileChannel>(*this); }

  AioModule& module_;
};

AioModule::AioModule(const AioSystem* system) : system_(system != nullptr ? *system : AioSystem::kernel()) {}

Result<std::unique_ptr<Bdev>> AioModule::create(const FileBdevOptions& options) {
  auto file = FileBackend::open(options.filename, options.block_size_bytes, options.readonly);
  if (!file) return std::unexpected(file.error());
  return std::make_unique<AioBdev>(options, *this, std::move(*file));
}

}  // namespace sluice
