#include "lib/bdev/aio/aio_bdev.h"

#include <cerrno>

#include "lib/bdev/aio/aio_channel.h"
#include "lib/bdev/aio/aio_group.h"
#include "lib/bdev/file_bdev.h"

namespace sluice {

class AioBdev final : public FileBdev {
 public:
  AioBdev(const AioBdevOptions& options, AioModule& module, std::unique_ptr<FileBackend> file)
      : FileBdev(
            {.name = options.name, .uuid = options.uuid, .product_name = kAioProductName, .readonly = options.readonly},
            std::move(file)),
        made_from_(options),
        module_(module) {}

  const AioBdevOptions& made_from() const { return made_from_; }

 private:
  Result<std::unique_ptr<BdevChannel>> make_channel() override {
    ThreadHost& host = *ThreadHost::current();
    auto& group = host.local<AioGroup>(
        &module_, [&] { return std::make_unique<AioGroup>(host, module_.system_, module_.pool_); });
    return std::make_unique<AioChannel>(*this, group);
  }

  const AioBdevOptions made_from_;
  AioModule& module_;
};

AioModule::AioModule(const AioSystem* system) : system_(system != nullptr ? *system : AioSystem::kernel()) {}

Result<std::unique_ptr<Bdev>> AioModule::create(const AioBdevOptions& options) {
  auto file = FileBackend::open(options.filename, options.block_size_bytes, options.readonly);
  if (!file) return std::unexpected(file.error());
  return std::make_unique<AioBdev>(options, *this, std::move(*file));
}

Result<> AioModule::rescan(BdevManager& bdevs, Bdev& bdev) {
  auto* aio = dynamic_cast<AioBdev*>(&bdev);
  if (aio == nullptr) return fail(ENODEV, "this is not an aio bdev");
  return aio->rescan(bdevs);
}

const AioBdevOptions* aio_options(const Bdev& bdev) {
  const auto* aio = dynamic_cast<const AioBdev*>(&bdev);
  return aio == nullptr ? nullptr : &aio->made_from();
}

}  // namespace sluice
