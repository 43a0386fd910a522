#include "lib/base/fd_passing.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>

namespace sluice {
namespace {

struct FdPassing : ::testing::Test {
  FdPassing() {
    std::array<int, 2> ends{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    left.reset(ends[0]);
    right.reset(ends[1]);
  }
  UniqueFd left, right;
  UniqueFd event{::eventfd(0, EFD_CLOEXEC)};
  std::array<std::byte, 8> bytes{};
  std::vector<UniqueFd> fds;
  bool cut_off = false;
};

TEST_F(FdPassing, AsManyAsTheKernelLetsOneMessageCarry) {
  const std::vector<int> sent(kMaxPassedFds, event.get());
  ASSERT_EQ(send_with_fds(left.get(), bytes, sent), 8);
  // With the first of the bytes.
  ASSERT_EQ(receive_with_fds(right.get(), std::span(bytes).first(1), fds, kMaxPassedFds, cut_off), 1);
  EXPECT_FALSE(cut_off);
  ASSERT_EQ(fds.size(), kMaxPassedFds);
  EXPECT_EQ(::eventfd_write(fds.back().get(), 7), 0);
  eventfd_t value = 0;
  EXPECT_EQ(::eventfd_read(event.get(), &value), 0);
  EXPECT_EQ(value, 7U);
  EXPECT_EQ(::fcntl(fds.front().get(), F_GETFD), FD_CLOEXEC);
  EXPECT_EQ(receive_with_fds(right.get(), bytes, fds, kMaxPassedFds, cut_off), 7);
  EXPECT_EQ(fds.size(), kMaxPassedFds);
}

TEST_F(FdPassing, MoreThanAreWantedAreCutOff) {
  for (const size_t wanted : {size_t{0}, size_t{1}, size_t{2}}) {
    fds.clear();
    ASSERT_EQ(send_with_fds(left.get(), bytes, std::vector<int>(3, event.get())), 8);
    ASSERT_EQ(receive_with_fds(right.get(), bytes, fds, wanted, cut_off), 8);
    EXPECT_TRUE(cut_off);
    EXPECT_EQ(fds.size(), wanted);
  }
  ASSERT_EQ(send_with_fds(left.get(), bytes, {}), 8);
  ASSERT_EQ(receive_with_fds(right.get(), bytes, fds, 2, cut_off), 8);
  EXPECT_FALSE(cut_off);
}

TEST_F(FdPassing, ErrorsAreThoseOfTheSystem) {
  EXPECT_EQ(receive_with_fds(right.get(), bytes, fds, 1, cut_off, MSG_DONTWAIT), -1);
  EXPECT_EQ(errno, EAGAIN);
  right.reset();
  EXPECT_EQ(send_with_fds(left.get(), bytes, {}), -1);
  EXPECT_EQ(errno, EPIPE);
}

}  // namespace
}  // namespace sluice
