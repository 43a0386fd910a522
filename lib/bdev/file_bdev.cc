#include "lib/bdev/file_bdev.h"

#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/file_queue.h"
#include "lib/thread/await.h"

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

FileChannel::FileChannel(FileBdev& bdev)
    : BdevChannel(bdev), bdev_(bdev), queue_(&bdev.queue_of(*ThreadHost::current())) {}

void FileChannel::do_submit(BlockIo& io) {
  if (io.type == IoType::kReset) {
    complete(io, IoStatus::kOk);
  } else {
    queue_->submit(io);
  }
}

void FileChannel::finish(BlockIo& io, IoStatus status) {
  if (io.target->runs_here()) {
    complete(io, status);
  } else {
    post_to(*io.target, [&io, status] { complete(io, status); });
  }
}

void FileChannel::resubmit(BlockIo& io) {
  post_to(*io.target, [&io] { static_cast<FileChannel*>(io.channel)->do_submit(io); });
}

// What waits for the kernel goes along; the rest completes where it was.
void FileChannel::on_leave() { queue_->withdraw(*this, withdrawn_); }

void FileChannel::on_arrive() {
  queue_ = &bdev_.queue_of(*ThreadHost::current());
  while (Work* work = withdrawn_.pop_front()) queue_->submit(static_cast<BlockIo&>(*work));
}

}  // namespace sluice
