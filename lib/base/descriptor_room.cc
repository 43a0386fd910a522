#include "lib/base/descriptor_room.h"

#include <fcntl.h>
#include <sys/resource.h>

#include "lib/base/check.h"
#include "lib/base/unique_fd.h"

namespace sluice {

DescriptorRoom descriptor_room(int fd) {
  rlimit limit{};
  CHECK(::getrlimit(RLIMIT_NOFILE, &limit) == 0);
  const auto number = static_cast<rlim_t>(fd);
  if (number >= limit.rlim_cur - limit.rlim_cur / 20) return DescriptorRoom::kReserve;
  return number >= limit.rlim_cur / 4 * 3 ? DescriptorRoom::kScarce : DescriptorRoom::kPlenty;
}

Result<DescriptorRoom> next_descriptor_room(int any_open_fd) {
  const UniqueFd next(::fcntl(any_open_fd, F_DUPFD_CLOEXEC, 0));
  if (!next) return fail_errno("no descriptor is free");
  return descriptor_room(next.get());
}

}  // namespace sluice
