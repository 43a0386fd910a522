#include "lib/lvol/meta_io.h"

#include <sys/uio.h>

#include "lib/base/check.h"
#include "lib/bdev/bdev.h"
#include "lib/thread/await.h"

namespace sluice::lvol {
namespace {

// A request that a task waits for.
struct MetaRequest : BlockIo {
  MetaRequest() {
    run = [](Work& work) { static_cast<MetaRequest&>(work).done.set(); };
  }
  Event done;
};

Result<> to_result(IoStatus status) {
  switch (status) {
    case IoStatus::kOk:
      return {};
    case IoStatus::kFailed:
      break;
    case IoStatus::kNoSpace:
      return fail(ENOSPC, "the base device's backing store is full");
    case IoStatus::kUnsupported:
      return fail(ENOTSUP, "the base device cannot do this kind of I/O");
    case IoStatus::kInvalid:
      return fail(EINVAL, "metadata are beyond the end of the base device");
    case IoStatus::kReadOnly:
      return fail(EROFS, "the base device is read-only");
    case IoStatus::kRemoved:
      return fail(ENODEV, "the base device has gone");
    case IoStatus::kNoMemory:
      return fail(ENOMEM, "no memory for I/O to the base device");
  }
  return fail(EIO, "I/O error of the base device");
}

void check_whole_pages(std::span<const std::byte> bytes) {
  CHECK(!bytes.empty());
  CHECK(bytes.size() % kPageBytes == 0);
  CHECK(reinterpret_cast<uintptr_t>(bytes.data()) % kPageBytes == 0);
}

}  // namespace

Task<Result<>> MetaIo::read(PageNumber first, std::span<std::byte> bytes) {
  check_whole_pages(bytes);
  return run(IoType::kRead, first * kPageBytes, bytes);
}

Task<Result<>> MetaIo::write(PageNumber first, std::span<const std::byte> bytes) {
  check_whole_pages(bytes);
  // An iovec has no const; the device does not change what it writes.
  return run(IoType::kWrite, first * kPageBytes, {const_cast<std::byte*>(bytes.data()), bytes.size()});
}

Task<Result<>> MetaIo::flush() {
  if (!channel_.bdev().supports(IoType::kFlush)) co_return Result<>{};
  co_return co_await run(IoType::kFlush, 0, {});
}

Task<Result<>> MetaIo::run(IoType type, uint64_t offset_bytes, std::span<std::byte> bytes) {
  MetaRequest request;
  const iovec buffer{.iov_base = bytes.data(), .iov_len = bytes.size()};
  request.type = type;
  request.offset_bytes = offset_bytes;
  request.length_bytes = bytes.size();
  if (!bytes.empty()) {
    request.iov = &buffer;
    request.iov_count = 1;
  }
  channel_.submit(request);
  co_await request.done.wait();
  co_return to_result(request.status);
}

}  // namespace sluice::lvol
