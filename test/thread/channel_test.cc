#include "lib/thread/channel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "lib/thread/lw_thread.h"
#include "test/support/manual_host.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class Device : public IoDevice {
 public:
  struct Line : Channel {
    explicit Line(Device& device) : Channel(device), open_(device.open) { ++open_; }
    ~Line() override { --open_; }
    int& open_;
  };
  std::string_view device_name() const override { return "device"; }
  Result<std::unique_ptr<Channel>> create_channel() override {
    made_on = LwThread::current();
    if (broken) return fail(EIO, "broken");
    return std::make_unique<Line>(*this);
  }

  bool broken = false;
  int open = 0;
  LwThread* made_on = nullptr;
};

class ChannelTest : public testing::Test {
 protected:
  ChannelRef get(LwThread& thread) {
    return hosts_.on(thread, [&] {
      auto channel = thread.get_channel(device_);
      EXPECT_TRUE(channel.has_value());
      return std::move(*channel);
    });
  }
  void release(LwThread& thread, ChannelRef& channel) {
    hosts_.on(thread, [&] { channel.reset(); });
  }

  ManualHosts hosts_{2};
  LwThread& here_ = hosts_.home(0);
  LwThread& there_ = hosts_.home(1);
  Device device_;
};

TEST_F(ChannelTest, IsSharedByTheUsersOfOneThread) {
  ChannelRef first = get(here_);
  ChannelRef second = get(here_);
  EXPECT_EQ(first.get(), second.get());
  EXPECT_EQ(first.get()->references(), 2U);
  EXPECT_EQ(device_.open, 1);
  EXPECT_EQ(device_.made_on, &here_);
  EXPECT_EQ(&first.get()->thread(), &here_);
  EXPECT_EQ(&first.get()->device(), &device_);
  release(here_, first);
  EXPECT_EQ(device_.open, 1);
  release(here_, second);
  EXPECT_EQ(device_.open, 0) << "freed with its last reference";
}

TEST_F(ChannelTest, IsEachThreadsOwn) {
  ChannelRef mine = get(here_);
  ChannelRef theirs = get(there_);
  EXPECT_NE(mine.get(), theirs.get());
  EXPECT_THAT(device_.channel_threads(), UnorderedElementsAre(here_.id(), there_.id()));
  release(here_, mine);
  EXPECT_THAT(device_.channel_threads(), ElementsAre(there_.id()));
  release(there_, theirs);
  EXPECT_THAT(device_.channel_threads(), IsEmpty());
}

TEST_F(ChannelTest, IsMadeAnewAfterItWasFreed) {
  for (int i = 0; i < 3; ++i) {
    ChannelRef channel = get(here_);
    EXPECT_EQ(device_.open, 1);
    release(here_, channel);
    EXPECT_EQ(device_.open, 0);
  }
}

TEST_F(ChannelTest, CanBeFound) {
  Device other;
  EXPECT_EQ(here_.find_channel(device_), nullptr);
  ChannelRef channel = get(here_);
  EXPECT_EQ(here_.find_channel(device_), channel.get());
  EXPECT_EQ(here_.find_channel(other), nullptr);
  EXPECT_THAT(here_.channels(), ElementsAre(channel.get()));
  release(here_, channel);
  EXPECT_EQ(here_.find_channel(device_), nullptr);
}

TEST_F(ChannelTest, ErrorOfTheDeviceIsPassedOnAndLeavesNothing) {
  device_.broken = true;
  const int code = hosts_.on(here_, [&] { return here_.get_channel(device_).error().code; });
  EXPECT_EQ(code, EIO);
  EXPECT_THAT(device_.channel_threads(), IsEmpty());
  device_.broken = false;
  ChannelRef channel = get(here_);
  release(here_, channel);
}

TEST_F(ChannelTest, ReferenceMovesWithoutCounting) {
  ChannelRef first = get(here_);
  Channel* channel = first.get();
  ChannelRef second = std::move(first);
  EXPECT_FALSE(first);  // NOLINT(bugprone-use-after-move): a moved-from reference is empty
  EXPECT_EQ(second.get(), channel);
  EXPECT_EQ(channel->references(), 1U);
  ChannelRef third = get(here_);
  hosts_.on(here_, [&] { third = std::move(second); });
  EXPECT_EQ(channel->references(), 1U);
  release(here_, third);
  EXPECT_EQ(device_.open, 0);
}

TEST(ChannelDeathTest, MustNotOutliveItsDevice) {
  ManualHosts hosts;
  auto device = std::make_unique<Device>();
  ChannelRef channel = hosts.on(hosts.home(), [&] { return std::move(*hosts.home().get_channel(*device)); });
  EXPECT_DEATH(device.reset(), "CHECK failed");
  hosts.on(hosts.home(), [&] { channel.reset(); });
}

}  // namespace
}  // namespace sluice
