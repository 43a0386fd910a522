#include "lib/bdev/file_bdev.h"

#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/file_queue.h"

namespace sluice {
namespace {

constexpr IoTypes kWithDiscard = {IoType::kRead,    IoType::kWrite,       IoType::kFlush,
                                  IoType::kDiscard, IoType::kWriteZeroes, IoType::kReset};
constexpr IoTypes kWithoutDiscard = {IoType::kRead, IoType::kWrite, IoType::kFlush, IoType::kWriteZeroes,
                                     IoType::kReset};

}  // namespace

FileBdev::FileBdev(const FileBdevOptions& options, const char* product_name, std::unique_ptr<FileBackend> file)
    : Bdev({
          .name = options.name,
          .uuid = options.uuid,
          .product_name = product_name,
          .size_bytes = file->opened_size_bytes(),
          .limits = file->limits(),
          .io_types = file->can_discard() ? kWithDiscard : kWithoutDiscard,
          .readonly = options.readonly,
      }),
      options_(options),
      file_(std::move(file)) {}

Result<> FileBdev::rescan(BdevManager& bdevs) {
  const Result<uint64_t> size_bytes = file_->size_bytes();
  if (!size_bytes) return std::unexpected(size_bytes.error());
  bdevs.set_size(*this, *size_bytes);
  return {};
}

void FileChannel::do_submit(BlockIo& io) {
  if (io.type == IoType::kReset) {
    complete(io, IoStatus::kOk);
  } else {
    queue_.submit(io);
  }
}

}  // namespace sluice
