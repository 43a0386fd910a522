#include "lib/vhost/guarded_write.h"

#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include <cstdint>
#include <filesystem>
#include <iterator>
#include <thread>

#include "lib/base/unique_fd.h"

namespace sluice::vhost {
namespace {

ptrdiff_t descriptors() { return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}); }

TEST(GuardedWrite, TakesNoDescriptorWhenAWriteHasBlocked) {
  const UniqueFd open(::eventfd(0, EFD_CLOEXEC));
  const UniqueFd full(::eventfd(0, EFD_CLOEXEC));
  const uint64_t most = UINT64_MAX - 1;
  ASSERT_EQ(::write(full.get(), &most, sizeof(most)), ssize_t{sizeof(most)});
  forget_blocked_writes();
  // A thread that has never written.
  std::jthread([&] {
    EXPECT_EQ(guarded_write(open.get()), GuardedWrite::kDone);
    const ptrdiff_t before = descriptors();
    EXPECT_EQ(guarded_write(full.get()), GuardedWrite::kBlocked);
    EXPECT_EQ(guarded_write(full.get()), GuardedWrite::kDone) << "from now on nothing blocks";
    EXPECT_EQ(guarded_write(open.get()), GuardedWrite::kDone);
    EXPECT_EQ(descriptors(), before);
  }).join();
  uint64_t written = 0;
  ASSERT_EQ(::read(open.get(), &written, sizeof(written)), ssize_t{sizeof(written)});
  EXPECT_EQ(written, 2U);
  forget_blocked_writes();
}

}  // namespace
}  // namespace sluice::vhost
