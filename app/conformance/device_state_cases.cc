// Moving a guest to another host: the state that the back end hands over ("Migrating back-end state").
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "app/conformance/target_fixture.h"

namespace sluice::test {
namespace {

using vhost::Request;

constexpr uint32_t kSave = 0;
constexpr uint32_t kLoad = 1;

struct Pipe {
  Pipe() {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    read.reset(ends[0]);
    write.reset(ends[1]);
  }
  UniqueFd read;
  UniqueFd write;
};

class VhostDeviceState : public TargetFixture {
 public:
  void SetUp() override {
    TargetFixture::SetUp();
    if (!IsSkipped()) open();
  }
  // As the front end has it before the guest runs.
  void open() {
    session_.reset();
    session_ = opened({.dialect = Dialect::kQemu9});
    ASSERT_FALSE(HasFailure());
    SKIP_UNLESS(session_->has_protocol(vhost::kProtocolDeviceState));
  }
  FrontEnd& fe() { return session_->front_end(); }
  // Accepted, and with what is to be used from here on: the back end may have a channel of its own.
  bool transfer(uint32_t direction, uint32_t phase, std::span<const int> fds, UniqueFd* channel = nullptr) {
    auto reply = fe().query(Request::kSetDeviceStateFd, bytes_of(vhost::DeviceStateTransfer{direction, phase}), fds);
    if (!reply || !reply->as<uint64_t>()) return false;
    const uint64_t value = *reply->as<uint64_t>();
    const bool has_fd = (value & vhost::kVringNoFdFlag) == 0;
    EXPECT_EQ(reply->fds.size(), has_fd ? 1U : 0U) << "value " << value;
    if ((value & 0xff) != 0) {
      EXPECT_FALSE(has_fd) << "an error, and a descriptor";
      return false;
    }
    if (has_fd && channel != nullptr) *channel = std::move(reply->fds[0]);
    return true;
  }
  bool check() { return fe().get_u64(Request::kCheckDeviceState) == 0; }
  // Empty: refused. What the source's front end would read, to the end.
  std::optional<Bytes> save() {
    Pipe pipe;
    UniqueFd from = std::move(pipe.read);
    if (!transfer(kSave, 0, repeat(pipe.write.get(), 1), &from)) return std::nullopt;
    pipe.write.reset();
    Bytes state;
    for (const Deadline deadline(kTimeoutMs);;) {
      if (wait_for(from.get(), POLLIN, deadline) == 0) return std::nullopt;
      Bytes part(4096);
      const ssize_t got = ::read(from.get(), part.data(), part.size());
      if (got <= 0) break;
      state.insert(state.end(), part.begin(), part.begin() + got);
    }
    from.reset();
    return check() ? std::optional(state) : std::nullopt;
  }
  // Whether the back end says that it has taken it over.
  bool load(const Bytes& state) {
    Pipe pipe;
    UniqueFd to = std::move(pipe.write);
    if (!transfer(kLoad, 0, repeat(pipe.read.get(), 1), &to)) return false;
    pipe.read.reset();
    // A back end that does not take it all may close its end.
    ::fcntl(to.get(), F_SETFL, O_NONBLOCK);
    size_t done = 0;
    for (const Deadline deadline(kTimeoutMs); done < state.size();) {
      if ((wait_for(to.get(), POLLOUT, deadline) & POLLOUT) == 0) break;
      const ssize_t wrote = ::write(to.get(), state.data() + done, state.size() - done);
      if (wrote <= 0) break;
      done += static_cast<size_t>(wrote);
    }
    to.reset();
    return check();
  }
  void set_writeback(bool on) {
    ASSERT_TRUE(fe().set_config(offsetof(vhost::BlkConfig, writeback), {static_cast<uint8_t>(on ? 1 : 0)}));
    ASSERT_EQ(config_of(*session_).writeback, on ? 1 : 0);
  }

 protected:
  std::unique_ptr<Session> session_;
};

CASE(VhostDeviceState, WhatWasSavedIsLoaded, "vhost-user, Migrating back-end state") {
  for (const bool writeback : {false, true}) {
    open();
    if (IsSkipped() || HasFailure()) return;
    SKIP_UNLESS((session_->offered() & vhost::kBlkFeatureConfigWce) != 0);
    set_writeback(writeback);
    const auto state = save();
    ASSERT_TRUE(state) << session_->error();
    open();
    set_writeback(!writeback);
    ASSERT_TRUE(load(*state)) << session_->error();
    EXPECT_EQ(config_of(*session_).writeback, writeback ? 1 : 0);
    ASSERT_TRUE(session_->start()) << session_->error();
    EXPECT_EQ(config_of(*session_).writeback, writeback ? 1 : 0) << "once the rings run";
    expect_io_works(*session_);
  }
}

// "If the migration fails, then the source can transparently resume operation."
CASE(VhostDeviceState, SourceGoesOnAfterSaving, "vhost-user, Migrating back-end state: a migration that fails") {
  ASSERT_TRUE(session_->start()) << session_->error();
  for (uint32_t i = 0; i < 3; i++) {
    expect_io_works(*session_, 0, i);
    ASSERT_TRUE(session_->stop()) << session_->error();
    ASSERT_TRUE(save()) << session_->error();
    ASSERT_TRUE(session_->start()) << session_->error();
  }
  expect_io_works(*session_);
}

CASE(VhostDeviceState, RefusesWhileRingsRun, "vhost-user, Migrating back-end state: both devices are suspended") {
  ASSERT_TRUE(session_->start()) << session_->error();
  expect_io_works(*session_);
  Pipe pipe;
  EXPECT_FALSE(transfer(kSave, 0, repeat(pipe.write.get(), 1)));
  EXPECT_FALSE(transfer(kLoad, 0, repeat(pipe.read.get(), 1)));
  expect_io_works(*session_);
}

CASE(VhostDeviceState, RefusesUnknownDirectionsAndPhases,
     "practice: a front end that breaks vhost-user, Device state transfer parameters") {
  for (const auto& [direction, phase] : {std::pair{2U, 0U}, {~0U, 0U}, {kSave, 1U}, {kLoad, ~0U}}) {
    Pipe pipe;
    EXPECT_FALSE(transfer(direction, phase, repeat(pipe.write.get(), 1))) << direction << ", " << phase;
    if (!fe().fence()) open();
  }
  EXPECT_TRUE(save()) << session_->error();
}

CASE(VhostDeviceState, RefusesOtherThanOneChannel,
     "practice: a front end that breaks vhost-user, VHOST_USER_SET_DEVICE_STATE_FD: the descriptor") {
  Pipe pipe;
  const UniqueFd eventfd(::eventfd(0, EFD_CLOEXEC));
  for (const std::vector<int>& fds :
       {std::vector<int>{}, repeat(pipe.write.get(), 2), repeat(pipe.read.get(), 1), repeat(eventfd.get(), 1)}) {
    const bool accepted = transfer(kSave, 0, fds) && check();
    EXPECT_FALSE(accepted) << fds.size() << " descriptors";
    if (!fe().fence()) open();
  }
  EXPECT_FALSE(transfer(kLoad, 0, repeat(pipe.write.get(), 1)) && check()) << "the end to write to";
  session_->close();
  expect_target_alive();
}

CASE(VhostDeviceState, CheckWithoutATransferIsAnError,
     "practice: a front end that breaks vhost-user, VHOST_USER_CHECK_DEVICE_STATE") {
  EXPECT_FALSE(check());
  if (!fe().fence()) open();
  ASSERT_TRUE(save()) << session_->error();
  EXPECT_FALSE(check()) << "once more";
}

CASE(VhostDeviceState, RefusesAStateThatIsNone,
     "vhost-user, VHOST_USER_CHECK_DEVICE_STATE: whether the state could be processed") {
  const auto good = save();
  ASSERT_TRUE(good) << session_->error();
  std::vector<Bytes> states = {{}, pattern(1, 1), pattern(good->size(), 2), pattern(100'000, 3), *good + pattern(1, 4)};
  if (!good->empty()) states.emplace_back(good->begin(), good->end() - 1);
  for (const Bytes& state : states) {
    EXPECT_FALSE(load(state)) << state.size() << " bytes";
    if (!fe().fence()) open();
  }
  EXPECT_TRUE(load(*good)) << session_->error();
}

// The end of the state never comes. Whoever waits, it is not the other front ends.
CASE(VhostDeviceState, WriterThatNeverEndsHoldsUpNobodyElse,
     "practice: a front end that breaks vhost-user, Migrating back-end state: the writer closes") {
  Pipe pipe;
  ASSERT_TRUE(transfer(kLoad, 0, repeat(pipe.read.get(), 1))) << session_->error();
  ASSERT_EQ(::write(pipe.write.get(), "x", 1), 1);
  ASSERT_TRUE(fe().send(Request::kCheckDeviceState));
  if (!socket_path(1).empty()) expect_target_alive(1);
  const auto reply = fe().receive(5 * kTimeoutMs);
  EXPECT_TRUE(!reply || reply->as<uint64_t>() != 0U) << "half a state was taken for a whole one";
  pipe.write.reset();
  session_->close();
  expect_target_alive();
}

CASE(VhostDeviceState, ReaderThatTakesNothingHoldsUpNobodyElse,
     "practice: a front end that breaks vhost-user, Migrating back-end state: a pipe that is full") {
  Pipe pipe;
  ::fcntl(pipe.write.get(), F_SETFL, O_NONBLOCK);
  while (::write(pipe.write.get(), "x", 1) == 1 || ::write(pipe.write.get(), Bytes(4096).data(), 4096) > 0) {
  }
  ::fcntl(pipe.write.get(), F_SETFL, 0);
  ASSERT_TRUE(fe().send(Request::kSetDeviceStateFd, bytes_of(vhost::DeviceStateTransfer{kSave, 0}),
                        repeat(pipe.write.get(), 1)));
  if (!socket_path(1).empty()) expect_target_alive(1);
  session_->close();
  pipe.read.reset();
  expect_target_alive();
}

}  // namespace
}  // namespace sluice::test
