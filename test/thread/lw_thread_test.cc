#include "lib/thread/lw_thread.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <vector>

#include "lib/thread/await.h"
#include "test/support/manual_host.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Work that calls a function.
struct Call : Message {
  explicit Call(std::function<void()> fn) : function(std::move(fn)) {
    run = [](Work& work) { static_cast<Call&>(work).function(); };
  }
  std::function<void()> function;
};

class LwThreadTest : public testing::Test {
 protected:
  // Work that notes a number.
  Call& note(int number) {
    notes_.push_back(std::make_unique<Call>([this, number] { seen_.push_back(number); }));
    return *notes_.back();
  }

  ManualHosts hosts_{2};
  LwThread& here_ = hosts_.home(0);
  LwThread& there_ = hosts_.home(1);
  std::vector<int> seen_;
  std::vector<std::unique_ptr<Call>> notes_;
};

TEST_F(LwThreadTest, RunsMessagesOfOneSenderInOrder) {
  hosts_.on(here_, [&] {
    for (int i = 0; i < 3; ++i) here_.send(note(i));
    for (int i = 3; i < 6; ++i) there_.send(note(i));
  });
  hosts_.run_until_idle();
  EXPECT_THAT(seen_, ElementsAre(0, 1, 2, 3, 4, 5));
}

TEST_F(LwThreadTest, RunsMessagesFromOutsideInOrder) {
  for (int i = 0; i < 4; ++i) here_.send(note(i));
  hosts_.run_until_idle();
  EXPECT_THAT(seen_, ElementsAre(0, 1, 2, 3));
}

TEST_F(LwThreadTest, RunsNothingInsideSendOrDefer) {
  hosts_.on(here_, [&] {
    here_.send(note(1));
    here_.defer(note(2));
    there_.send(note(3));
    EXPECT_THAT(seen_, IsEmpty());
  });
  hosts_.run_until_idle();
  EXPECT_THAT(seen_, ElementsAre(1, 2, 3));
}

TEST_F(LwThreadTest, RunsWhatWorkSendsAfterTheWorkAndInTheSameTurn) {
  Call outer([&] {
    here_.send(note(2));
    here_.defer(note(3));
    seen_.push_back(1);
  });
  hosts_.on(here_, [&] { here_.send(outer); });
  hosts_[0].turn();
  EXPECT_THAT(seen_, ElementsAre(1, 2, 3));
}

TEST_F(LwThreadTest, MessageIsFreeAgainWhenItRuns) {
  int left = 3;
  Call ping([&] {
    seen_.push_back(left);
    if (--left > 0) (LwThread::current() == &here_ ? there_ : here_).send(ping);
  });
  here_.send(ping);
  hosts_.run_until_idle();
  EXPECT_THAT(seen_, ElementsAre(3, 2, 1));
}

TEST_F(LwThreadTest, MessageMayBeFreedWhenItRuns) {
  auto message = std::make_unique<Call>(nullptr);
  message->function = [&] {
    auto freed = std::move(message);
    seen_.push_back(1);
  };
  here_.send(*message);
  hosts_.run_until_idle();
  EXPECT_EQ(message, nullptr);
  EXPECT_THAT(seen_, ElementsAre(1));
}

TEST_F(LwThreadTest, KeepsTheOrderOfABacklogThatTakesManyTurns) {
  constexpr int kMany = 5000;
  hosts_.on(here_, [&] {
    for (int i = 0; i < kMany; ++i) here_.send(note(i));
  });
  hosts_[0].turn();
  EXPECT_GT(seen_.size(), 0U);
  EXPECT_LT(seen_.size(), kMany) << "one turn has a budget";
  EXPECT_TRUE(hosts_[0].runnable());
  hosts_.run_until_idle();
  ASSERT_EQ(seen_.size(), kMany);
  EXPECT_TRUE(std::ranges::is_sorted(seen_));
}

TEST_F(LwThreadTest, WorkThatNeverEndsStarvesNeitherTimersNorDescriptorsNorOtherThreads) {
  struct Source : EventSource {
    explicit Source(int& n) : events(n) {}
    void on_event(uint32_t) override { ++events; }
    int& events;
  };
  ThreadDirectory threads(hosts_);
  LwThread& other = **threads.create("other", here_.cpumask());
  int times = 0;
  bool stop = false;
  Call forever([&] {
    ++times;
    if (!stop) here_.defer(forever);
  });
  int fired = 0;
  int events = 0;
  Timer timer("test", [&] { ++fired; });
  const UniqueFd fd(::eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK));
  Source source(events);
  hosts_.on(here_, [&] {
    here_.defer(forever);
    timer.arm_at(here_, here_.now_ns());
    EXPECT_TRUE(here_.add_source(source, fd.get(), EPOLLIN | EPOLLET).has_value());
  });
  other.send(note(1));
  hosts_[0].turn();
  hosts_[0].turn();
  EXPECT_GT(times, 1);
  EXPECT_EQ(fired, 1);
  EXPECT_EQ(events, 1);
  EXPECT_THAT(seen_, ElementsAre(1));
  stop = true;
  hosts_.run_until_idle();
  hosts_.on(here_, [&] { here_.remove_source(source); });
  hosts_.await(here_, threads.destroy(other));
}

TEST_F(LwThreadTest, CurrentIsTheThreadThatRuns) {
  EXPECT_EQ(LwThread::current(), nullptr);
  LwThread* at_message = nullptr;
  LwThread* at_work = nullptr;
  Call work([&] { at_work = LwThread::current(); });
  Call message([&] {
    at_message = LwThread::current();
    there_.send(work);
  });
  here_.send(message);
  hosts_.run_until_idle();
  EXPECT_EQ(at_message, &here_);
  EXPECT_EQ(at_work, &there_);
  EXPECT_EQ(LwThread::current(), nullptr);
}

TEST_F(LwThreadTest, SleepsWhenThereIsNothingToDo) {
  here_.send(note(1));
  hosts_.run_until_idle();
  EXPECT_FALSE(hosts_[0].runnable());
  EXPECT_FALSE(hosts_.turn());
}

TEST_F(LwThreadTest, WhatItNeitherWorkedNorPolledItWasAsleep) {
  ThreadDirectory threads(hosts_);
  LwThread& thread = **threads.create("sleeper", there_.cpumask());
  hosts_.advance(kNsPerMs);
  EXPECT_EQ(thread.asleep_ns(), 0U) << "it has not begun";
  post_to(thread, [] {});
  hosts_.run_until_idle();
  hosts_.advance(kNsPerMs);
  thread.account(kNsPerUs, true);
  thread.account(2 * kNsPerUs, false);
  EXPECT_EQ(thread.asleep_ns(), kNsPerMs - 3 * kNsPerUs);
  hosts_.await(here_, threads.destroy(thread));
}

TEST_F(LwThreadTest, PostedFunctionRunsOnceOnItsThread) {
  LwThread* ran_on = nullptr;
  auto token = std::make_unique<int>(7);
  post_to(there_, [&, token = std::move(token)] {
    ran_on = LwThread::current();
    seen_.push_back(*token);
  });
  hosts_.run_until_idle();
  EXPECT_EQ(ran_on, &there_);
  EXPECT_THAT(seen_, ElementsAre(7));
}

// --- Event sources ---

// An eventfd and what to do when it is readable.
class Source : public EventSource {
 public:
  explicit Source(std::function<void()> handler = [] {}) : handler_(std::move(handler)) {}
  // It owns its descriptor, which goes before the base could remove it.
  ~Source() override {
    if (thread() != nullptr) thread()->remove_source(*this);
  }
  void on_event(uint32_t events) override {
    ++count;
    last_events = events;
    handler_();
  }
  void signal() const {
    const uint64_t one = 1;
    ASSERT_EQ(::write(event_.get(), &one, sizeof(one)), sizeof(one));
  }
  int event_fd() const { return event_.get(); }

  int count = 0;
  uint32_t last_events = 0;

 private:
  const UniqueFd event_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::function<void()> handler_;
};

class EventSourceTest : public LwThreadTest {
 protected:
  void add(Source& source) {
    hosts_.on(here_, [&] {
      const Result<> added = here_.add_source(source, source.event_fd(), EPOLLIN | EPOLLET);
      ASSERT_TRUE(added.has_value());
    });
  }
  void remove(Source& source) {
    hosts_.on(here_, [&] { here_.remove_source(source); });
  }
};

TEST_F(EventSourceTest, TellsOfReadinessOnItsThread) {
  LwThread* ran_on = nullptr;
  Source source([&] { ran_on = LwThread::current(); });
  add(source);
  hosts_.run_until_idle();
  EXPECT_EQ(source.count, 0);
  source.signal();
  hosts_.run_until_idle();
  EXPECT_EQ(source.count, 1);
  EXPECT_EQ(source.last_events, EPOLLIN);
  EXPECT_EQ(ran_on, &here_);
  source.signal();
  hosts_.run_until_idle();
  EXPECT_EQ(source.count, 2);
  remove(source);
  source.signal();
  hosts_.run_until_idle();
  EXPECT_EQ(source.count, 2);
}

TEST_F(EventSourceTest, TellsWhyADescriptorCannotBeWatched) {
  const UniqueFd regular(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  Source source;
  hosts_.on(here_, [&] {
    const Result<> added = here_.add_source(source, regular.get(), EPOLLIN);
    ASSERT_FALSE(added.has_value());
    EXPECT_EQ(added.error().code, EPERM);
    EXPECT_EQ(source.thread(), nullptr);
  });
  add(source);  // may be tried again
  remove(source);
}

TEST_F(EventSourceTest, MayRemoveItselfAndComeBack) {
  Source source([&] { here_.remove_source(source); });
  add(source);
  source.signal();
  hosts_.run_until_idle();
  EXPECT_EQ(source.count, 1);
  EXPECT_EQ(source.thread(), nullptr);
  add(source);  // still readable, so that adding it is an edge
  hosts_.run_until_idle();
  EXPECT_EQ(source.count, 2);
}

TEST_F(EventSourceTest, MayDestroyItself) {
  int count = 0;
  std::unique_ptr<Source> source;
  source = std::make_unique<Source>([&] {
    ++count;
    auto gone = std::move(source);
  });
  add(*source);
  source->signal();
  hosts_.run_until_idle();
  EXPECT_EQ(count, 1);
  EXPECT_EQ(source, nullptr);
}

// Both descriptors are ready, so that both events are in the batch that is being dispatched.
TEST_F(EventSourceTest, RemovedOneIsNotToldOfAnEventOfTheSameBatch) {
  std::unique_ptr<Source> sources[2];
  int calls = 0;
  for (int i = 0; i < 2; ++i) {
    sources[i] = std::make_unique<Source>([&, i] {
      ++calls;
      here_.remove_source(*sources[1 - i]);
    });
    add(*sources[i]);
  }
  sources[0]->signal();
  sources[1]->signal();
  hosts_.run_until_idle();
  EXPECT_EQ(calls, 1);
  for (const auto& source : sources) {
    if (source->thread() != nullptr) remove(*source);
  }
}

TEST_F(EventSourceTest, DestroyedOneIsNotToldOfAnEventOfTheSameBatch) {
  constexpr int kSources = 8;
  std::vector<std::unique_ptr<Source>> sources;
  int calls = 0;
  for (int i = 0; i < kSources; ++i) {
    sources.push_back(std::make_unique<Source>([&, i] {
      ++calls;
      for (int other = 0; other < kSources; ++other) {
        if (other != i) sources[static_cast<size_t>(other)].reset();
      }
    }));
    add(*sources.back());
  }
  for (const auto& source : sources) source->signal();
  hosts_.run_until_idle();
  EXPECT_EQ(calls, 1);
  hosts_.on(here_, [&] { sources.clear(); });
}

// A new source may be where the old one was, and must not get its event.
TEST_F(EventSourceTest, SuccessorOfARemovedOneIsNotToldOfItsEvent) {
  const UniqueFd quiet(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  std::unique_ptr<Source> sources[2];
  int calls = 0;
  for (int i = 0; i < 2; ++i) {
    sources[i] = std::make_unique<Source>([&, i] {
      ++calls;
      Source& other = *sources[1 - i];
      here_.remove_source(other);
      EXPECT_TRUE(here_.add_source(other, quiet.get(), EPOLLIN).has_value());
    });
    add(*sources[i]);
  }
  for (const auto& source : sources) source->signal();
  hosts_.run_until_idle();
  EXPECT_EQ(calls, 1);
  for (const auto& source : sources) remove(*source);
}

// --- Ending ---

TEST_F(LwThreadTest, RunsWhatWasSentBeforeItsEnd) {
  ThreadDirectory threads(hosts_);
  LwThread& thread = **threads.create("brief", there_.cpumask());
  hosts_.on(here_, [&] {
    for (int i = 0; i < 1000; ++i) thread.send(note(i));
  });
  hosts_.await(here_, threads.destroy(thread));
  EXPECT_EQ(seen_.size(), 1000U);
}

TEST(LwThreadDeathTest, RefusesToEndWhileItHoldsATimer) {
  ManualHosts hosts;
  Timer timer("test", [] {});
  Message done;
  hosts.on(hosts.home(), [&] {
    timer.arm_at(hosts.home(), hosts.now_ns() + 1);
    EXPECT_DEATH(hosts.home().exit(done), "CHECK failed: timers_.empty");
    timer.cancel();
  });
}

TEST(LwThreadDeathTest, RefusesToEndWhileItHoldsASource) {
  ManualHosts hosts;
  Source source;
  Message done;
  hosts.on(hosts.home(), [&] {
    ASSERT_TRUE(hosts.home().add_source(source, source.event_fd(), EPOLLIN).has_value());
    EXPECT_DEATH(hosts.home().exit(done), "CHECK failed: sources_.empty");
    hosts.home().remove_source(source);
  });
}

}  // namespace
}  // namespace sluice
