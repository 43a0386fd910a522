#include "lib/thread/gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "test/support/manual_host.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;

class GateTest : public testing::Test {
 protected:
  // Begins closing, without turning the hosts.
  void begin_close() {
    hosts_.on(app_, [this] { start(gate_.close(), [this] { closed_ = true; }); });
  }

  ManualHosts hosts_;
  LwThread& app_ = hosts_.home();
  Gate gate_;
  bool closed_ = false;
};

Task<> wait_for(Event& event, bool& done) {
  co_await event.wait();
  done = true;
}

TEST_F(GateTest, ClosesAtOnceWhenNobodyIsInside) {
  begin_close();
  EXPECT_TRUE(closed_);
  EXPECT_TRUE(gate_.closed());
}

TEST_F(GateTest, CloseWaitsForEveryTask) {
  Event events[2];
  bool done[2] = {};
  hosts_.on(app_, [&] {
    for (int i = 0; i < 2; ++i) EXPECT_TRUE(gate_.spawn(wait_for(events[i], done[i])));
  });
  EXPECT_EQ(gate_.inside(), 2U);
  begin_close();
  hosts_.run_until_idle();
  EXPECT_FALSE(closed_);
  hosts_.on(app_, [&] { events[1].set(); });
  hosts_.run_until_idle();
  EXPECT_TRUE(done[1]);
  EXPECT_FALSE(closed_);
  hosts_.on(app_, [&] { events[0].set(); });
  hosts_.run_until_idle();
  EXPECT_TRUE(done[0]);
  EXPECT_TRUE(closed_);
  EXPECT_EQ(gate_.inside(), 0U);
}

TEST_F(GateTest, ATaskMayEndAtOnce) {
  std::vector<int> seen;
  const auto note = [](std::vector<int>& numbers) -> Task<> {
    numbers.push_back(1);
    co_return;
  };
  hosts_.on(app_, [&] {
    EXPECT_TRUE(gate_.spawn(note(seen)));
    EXPECT_EQ(gate_.inside(), 0U);
  });
  EXPECT_THAT(seen, ElementsAre(1));
}

TEST_F(GateTest, LetsNothingInOnceItCloses) {
  Event event;
  bool done = false;
  bool late = false;
  hosts_.on(app_, [&] { EXPECT_TRUE(gate_.enter()); });
  begin_close();
  hosts_.on(app_, [&] {
    EXPECT_FALSE(gate_.enter());
    EXPECT_FALSE(gate_.spawn(wait_for(event, late)));
    gate_.leave();
  });
  hosts_.run_until_idle();
  EXPECT_TRUE(closed_);
  EXPECT_FALSE(done || late);
}

TEST_F(GateTest, MayBeDestroyedWhenItHasClosed) {
  const auto close_and_free = [](std::unique_ptr<Gate> gate) -> Task<> {
    co_await gate->close();
    gate.reset();
  };
  Event event;
  bool done = false;
  bool freed = false;
  auto gate = std::make_unique<Gate>();
  hosts_.on(app_, [&] {
    EXPECT_TRUE(gate->spawn(wait_for(event, done)));
    start(close_and_free(std::move(gate)), [&freed] { freed = true; });
    event.set();
  });
  hosts_.run_until_idle();
  EXPECT_TRUE(done && freed);
}

TEST(GateDeathTest, MustNotBeDestroyedWhileATaskIsInside) {
  EXPECT_DEATH(
      {
        Gate gate;
        (void)gate.enter();
      },
      "CHECK failed");
}

}  // namespace
}  // namespace sluice
