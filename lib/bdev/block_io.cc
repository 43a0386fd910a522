#include "lib/bdev/block_io.h"

#include <array>
#include <cerrno>

namespace sluice {

const char* to_string(IoType type) {
  static constexpr std::array<const char*, kIoTypes> kNames = {"read",  "write",        "flush",
                                                               "unmap", "write_zeroes", "reset"};
  return kNames[static_cast<size_t>(type)];
}

const char* to_string(IoStatus status) {
  static constexpr std::array<const char*, kIoStatuses> kNames = {"ok",      "failed",    "no_space", "unsupported",
                                                                  "invalid", "read_only", "removed",  "no_memory"};
  return kNames[static_cast<size_t>(status)];
}

IoStatus io_status_from_errno(int code) {
  switch (code) {
    case 0:
      return IoStatus::kOk;
    case ENOSPC:
    case EDQUOT:
      return IoStatus::kNoSpace;
    case EOPNOTSUPP:
    case ENOSYS:
      return IoStatus::kUnsupported;
    case EINVAL:
      return IoStatus::kInvalid;
    case EROFS:
    case EBADF:
    case EPERM:
      return IoStatus::kReadOnly;
    case ENODEV:
    case ENXIO:
      return IoStatus::kRemoved;
    case ENOMEM:
    case EAGAIN:
      return IoStatus::kNoMemory;
    default:
      return IoStatus::kFailed;
  }
}

}  // namespace sluice
