// The channel of a device state: a pipe or socket of the front end's, which is never trusted to be ready.
//
// A front end shares the flags of the open file with us, and can make it blocking at any moment. So a pipe is not read
// or written: its contents are moved from or to a pipe of our own by splice(2), which blocks or not as each call says.
//
// Thread:    a StateReader's functions on the lightweight thread that it is started on.
// Ownership: a StateReader owns its descriptors.
// Source:    Vhost-user Protocol, "Migrating back-end state": the writer closes at the end; splice(2), send(2).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"
#include "lib/thread/await.h"
#include "lib/thread/event_source.h"

namespace sluice::vhost {

// A state that is longer is none of ours.
inline constexpr size_t kMaxStateBytes = 1024;

// The open end of a channel, with what it takes to use it.
struct StateChannel {
  // Errors: EINVAL (neither a pipe nor a socket), those of pipe2.
  static Result<StateChannel> open(UniqueFd fd);

  // Whole, or not at all. Errors: EAGAIN (it does not take as much now), those of splice and send.
  Result<> write(std::span<const std::byte> bytes) const;
  // 0: the other side has closed it. Errors: EAGAIN (nothing is there), those of splice and recv.
  Result<size_t> read(std::span<std::byte> into) const;

  UniqueFd fd;
  bool is_socket = false;
  UniqueFd own_read;  // of our own pipe
  UniqueFd own_write;
};

// Reads a state as it arrives, so that its writer is not held up.
class StateReader final : public EventSource {
 public:
  explicit StateReader(StateChannel channel) : channel_(std::move(channel)) {}
  ~StateReader() override;

  // Errors: those of epoll_ctl.
  Result<> start(LwThread& thread);
  // Waits for the end of the state, at most until the deadline. Once. Errors: ETIMEDOUT, EMSGSIZE (it is too long),
  // those of reading.
  Task<Result<std::span<const std::byte>>> finish(uint64_t deadline_ns);

  void on_event(uint32_t events) override;

 private:
  void end(Result<> result);

  StateChannel channel_;
  std::array<std::byte, kMaxStateBytes + 1> bytes_{};
  size_t size_ = 0;
  std::optional<Result<>> result_;
  Event ended_;
};

}  // namespace sluice::vhost
