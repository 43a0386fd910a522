#include "lib/bdev/aio/aio_bdev.h"

#include <cerrno>

#include "lib/bdev/aio/aio_channel.h"
#include "lib/bdev/aio/aio_file.h"
#include "lib/bdev/aio/aio_group.h"
#include "lib/bdev/bdev.h"
#include "lib/bdev/bdev_manager.h"

namespace sluice {

class AioBdev final : public Bdev {
 public:
  AioBdev(Options options, AioBdevOptions made_from, AioModule& module, std::unique_ptr<AioFile> file)
      : Bdev(std::move(options)), made_from_(std::move(made_from)), module_(module), file_(std::move(file)) {}

  const AioFile& file() const { return *file_; }
  const AioBdevOptions& made_from() const { return made_from_; }

 private:
  Result<std::unique_ptr<BdevChannel>> make_channel() override {
    ThreadHost& host = *ThreadHost::current();
    auto& group = host.local<AioGroup>(
        &module_, [&] { return std::make_unique<AioGroup>(host, module_.system_, module_.pool_); });
    return std::make_unique<AioChannel>(*this, *file_, group);
  }

  const AioBdevOptions made_from_;
  AioModule& module_;
  const std::unique_ptr<AioFile> file_;
};

AioModule::AioModule(const AioSystem* system) : system_(system != nullptr ? *system : AioSystem::kernel()) {}

Result<std::unique_ptr<Bdev>> AioModule::create(const AioBdevOptions& options) {
  auto file = AioFile::open(options.filename, options.block_size_bytes, options.readonly);
  if (!file) return std::unexpected(file.error());
  const Result<uint64_t> size_bytes = (*file)->size_bytes();
  if (!size_bytes) return std::unexpected(size_bytes.error());
  constexpr IoTypes kWithDiscard = {IoType::kRead,    IoType::kWrite,       IoType::kFlush,
                                    IoType::kDiscard, IoType::kWriteZeroes, IoType::kReset};
  constexpr IoTypes kWithoutDiscard = {IoType::kRead, IoType::kWrite, IoType::kFlush, IoType::kWriteZeroes,
                                       IoType::kReset};
  Bdev::Options bdev{
      .name = options.name,
      .uuid = options.uuid,
      .product_name = kAioProductName,
      .size_bytes = *size_bytes,
      .limits = (*file)->limits(),
      .io_types = (*file)->can_discard() ? kWithDiscard : kWithoutDiscard,
      .readonly = options.readonly,
  };
  return std::make_unique<AioBdev>(std::move(bdev), options, *this, std::move(*file));
}

Result<> AioModule::rescan(BdevManager& bdevs, Bdev& bdev) {
  const auto* aio = dynamic_cast<AioBdev*>(&bdev);
  if (aio == nullptr) return fail(ENODEV, "this is not an aio bdev");
  const Result<uint64_t> size_bytes = aio->file().size_bytes();
  if (!size_bytes) return std::unexpected(size_bytes.error());
  bdevs.set_size(bdev, *size_bytes);
  return {};
}

const AioBdevOptions* aio_options(const Bdev& bdev) {
  const auto* aio = dynamic_cast<const AioBdev*>(&bdev);
  return aio == nullptr ? nullptr : &aio->made_from();
}

}  // namespace sluice
