#include "lib/thread/thread_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "test/support/manual_host.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

class ThreadDirectoryTest : public testing::Test {
 protected:
  LwThread& create(const CpuMask& mask, const char* name = "thread") {
    const Result<LwThread*> made = hosts_.on(app_, [&] { return threads_.create(name, mask); });
    EXPECT_TRUE(made.has_value());
    return **made;
  }
  void destroy(LwThread& thread) { hosts_.await(app_, threads_.destroy(thread)); }

  ManualHosts hosts_{2};
  LwThread& app_ = hosts_.home(0);
  ThreadDirectory threads_{hosts_};
};

TEST_F(ThreadDirectoryTest, MakesThreadsWithinTheirMask) {
  LwThread& first = create(hosts_.home(0).cpumask(), "first");
  LwThread& second = create(hosts_.home(1).cpumask(), "second");
  EXPECT_EQ(&first.host(), &hosts_[0]);
  EXPECT_EQ(&second.host(), &hosts_[1]);
  EXPECT_EQ(second.name(), "second");
  EXPECT_EQ(second.cpumask(), hosts_.home(1).cpumask());
  EXPECT_NE(first.id(), second.id());
  EXPECT_EQ(threads_.find(first.id()), &first);
  destroy(first);
  destroy(second);
}

TEST_F(ThreadDirectoryTest, RefusesAMaskOfNoHost) {
  const Result<LwThread*> made = threads_.create("nowhere", *CpuMask::parse("0x4"));
  ASSERT_FALSE(made.has_value());
  EXPECT_EQ(made.error().code, EINVAL);
}

TEST_F(ThreadDirectoryTest, EndsThreadsOfThisHostAndOfOthers) {
  for (size_t host = 0; host < 2; ++host) {
    LwThread& thread = create(hosts_.home(host).cpumask());
    const uint64_t id = thread.id();
    int runs = 0;
    post_to(thread, [&runs] { ++runs; });
    destroy(thread);
    EXPECT_EQ(runs, 1) << "what was sent before runs before";
    EXPECT_EQ(threads_.find(id), nullptr);
    EXPECT_FALSE(hosts_[host].runnable());
  }
}

TEST_F(ThreadDirectoryTest, DoesNotUseAnIdTwice) {
  LwThread& first = create(hosts_.all_cpus());
  const uint64_t id = first.id();
  destroy(first);
  LwThread& second = create(hosts_.all_cpus());
  EXPECT_NE(second.id(), id);
  destroy(second);
}

TEST_F(ThreadDirectoryTest, OneThatIsEndingIsNotFound) {
  LwThread& thread = create(hosts_.home(1).cpumask());
  const uint64_t id = thread.id();
  bool gone = false;
  hosts_.on(app_, [&] { start(threads_.destroy(thread), [&gone] { gone = true; }); });
  EXPECT_EQ(threads_.find(id), nullptr);
  EXPECT_FALSE(gone);
  hosts_.run_until_idle();
  EXPECT_TRUE(gone);
}

TEST_F(ThreadDirectoryTest, ListsThreadsOfOthers) {
  threads_.list(app_);
  EXPECT_EQ(threads_.find(app_.id()), &app_);
  threads_.unlist(app_);
  EXPECT_EQ(threads_.find(app_.id()), nullptr);
}

TEST_F(ThreadDirectoryTest, ForEachRunsOnEveryThread) {
  threads_.list(app_);
  LwThread& first = create(hosts_.home(0).cpumask());
  LwThread& second = create(hosts_.home(1).cpumask());
  std::vector<uint64_t> visited;
  hosts_.await(app_, threads_.for_each([&visited](const LwThread& thread) {
    EXPECT_EQ(LwThread::current(), &thread);
    visited.push_back(thread.id());
  }));
  EXPECT_THAT(visited, UnorderedElementsAre(app_.id(), first.id(), second.id()));
  destroy(first);
  destroy(second);
}

// Host 1 does not turn until the threads there have been asked to end.
TEST_F(ThreadDirectoryTest, ForEachPassesOverThreadsThatEndMeanwhile) {
  std::vector<LwThread*> made;
  for (int i = 0; i < 4; ++i) made.push_back(&create(hosts_.home(1).cpumask()));
  const uint64_t first_id = made[0]->id();
  std::vector<uint64_t> visited;
  bool done = false;
  int ended = 0;
  hosts_.on(app_, [&] {
    // The visit of the first one is on its way; its end is sent after it.
    start(threads_.for_each([&visited](const LwThread& thread) { visited.push_back(thread.id()); }),
          [&done] { done = true; });
    start(threads_.destroy(*made[0]), [&ended] { ++ended; });
    start(threads_.destroy(*made[2]), [&ended] { ++ended; });
  });
  hosts_.run_until_idle();
  EXPECT_TRUE(done);
  EXPECT_EQ(ended, 2);
  EXPECT_THAT(visited, ElementsAre(first_id, made[1]->id(), made[3]->id()));
  destroy(*made[1]);
  destroy(*made[3]);
}

TEST_F(ThreadDirectoryTest, ForEachDoesNotVisitThreadsMadeMeanwhile) {
  LwThread& first = create(hosts_.home(1).cpumask());
  int visits = 0;
  bool done = false;
  LwThread* second = nullptr;
  hosts_.on(app_, [&] {
    start(threads_.for_each([&visits](const LwThread&) { ++visits; }), [&done] { done = true; });
    second = *threads_.create("late", hosts_.all_cpus());
  });
  hosts_.run_until_idle();
  EXPECT_TRUE(done);
  EXPECT_EQ(visits, 1);
  destroy(first);
  destroy(*second);
}

class Device : public IoDevice {
 public:
  std::string_view device_name() const override { return "device"; }
  Result<std::unique_ptr<Channel>> create_channel() override { return std::make_unique<Channel>(*this); }
};

TEST_F(ThreadDirectoryTest, ForEachChannelRunsWhereThereIsOne) {
  threads_.list(app_);
  Device device;
  LwThread& with = create(hosts_.home(1).cpumask());
  LwThread& without = create(hosts_.home(0).cpumask());
  ChannelRef channel = hosts_.on(with, [&] { return std::move(*with.get_channel(device)); });
  std::vector<const Channel*> visited;
  const auto visit = [&] {
    visited.clear();
    hosts_.await(app_, threads_.for_each_channel(device, [&](const Channel& seen) {
      EXPECT_EQ(LwThread::current(), &seen.thread());
      visited.push_back(&seen);
    }));
  };
  visit();
  EXPECT_THAT(visited, ElementsAre(channel.get()));
  hosts_.on(with, [&] { channel.reset(); });
  visit();
  EXPECT_TRUE(visited.empty());
  destroy(with);
  destroy(without);
}

TEST_F(ThreadDirectoryTest, ForEachChannelPassesOverOneThatClosesMeanwhile) {
  Device device;
  LwThread& with = create(hosts_.home(1).cpumask());
  ChannelRef channel = hosts_.on(with, [&] { return std::move(*with.get_channel(device)); });
  int visits = 0;
  bool done = false;
  hosts_.on(app_, [&] {
    start(threads_.for_each_channel(device, [&visits](Channel&) { ++visits; }), [&done] { done = true; });
  });
  hosts_.on(with, [&] { channel.reset(); });
  hosts_.run_until_idle();
  EXPECT_TRUE(done);
  EXPECT_EQ(visits, 0);
  destroy(with);
}

}  // namespace
}  // namespace sluice
