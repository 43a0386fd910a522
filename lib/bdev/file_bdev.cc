#include "lib/bdev/file_bdev.h"

#include "lib/bdev/bdev_manager.h"

namespace sluice {
namespace {

constexpr IoTypes kWithDiscard = {IoType::kRead,    IoType::kWrite,       IoType::kFlush,
                                  IoType::kDiscard, IoType::kWriteZeroes, IoType::kReset};
constexpr IoTypes kWithoutDiscard = {IoType::kRead, IoType::kWrite, IoType::kFlush, IoType::kWriteZeroes,
                                     IoType::kReset};

}  // namespace

FileBdev::FileBdev(Identity identity, std::unique_ptr<FileBackend> file)
    : Bdev({
          .name = std::move(identity.name),
          .uuid = identity.uuid,
          .product_name = identity.product_name,
          .size_bytes = file->opened_size_bytes(),
          .limits = file->limits(),
          .io_types = file->can_discard() ? kWithDiscard : kWithoutDiscard,
          .readonly = identity.readonly,
      }),
      file_(std::move(file)) {}

Result<> FileBdev::rescan(BdevManager& bdevs) {
  const Result<uint64_t> size_bytes = file_->size_bytes();
  if (!size_bytes) return std::unexpected(size_bytes.error());
  bdevs.set_size(*this, *size_bytes);
  return {};
}

}  // namespace sluice
