// Traveller: a lightweight thread with an open device, which a test moves from host to host while requests are in
// flight; and requests that know where they have completed.
// Thread: the test's.
#pragma once

#include <initializer_list>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "test/support/disk_user.h"

namespace sluice {

// A request that counts how often it completes, and tells where it did.
struct PlacedIo : TestIo {
  PlacedIo(IoType io_type, uint64_t offset, std::initializer_list<std::span<std::byte>> pieces);
  PlacedIo(IoType io_type, uint64_t offset, uint64_t length);

  int completions = 0;
  LwThread* thread = nullptr;
  ThreadHost* host = nullptr;

 private:
  void note_place();
};

class Traveller final {
 public:
  // Opens the device on a thread of its own, which begins on the host of this index.
  Traveller(BdevWorld& world, size_t host, std::string_view disk = "disk");
  Traveller(const Traveller&) = delete;
  Traveller& operator=(const Traveller&) = delete;
  // Requires: nothing is in flight.
  ~Traveller();

  LwThread& thread() { return thread_; }
  DiskUser& disk() { return *disk_; }

  // Moves it, turning the hosts. Requires: it can move (checked).
  void move(size_t host);
  // Begins a move. While it is moving(), nothing may be submitted.
  void begin_move(size_t host);
  bool moving() const { return moving_; }

 private:
  BdevWorld& world_;
  LwThread& thread_;
  std::unique_ptr<DiskUser> disk_;
  bool moving_ = false;
};

}  // namespace sluice
