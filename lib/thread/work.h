// Work and Message: what a lightweight thread runs. Both are embedded in the object they are about, so that handing
// over work never allocates and never fails.
#pragma once

namespace sluice {

class LwThread;

// One pending call. Belongs to its object; may be queued once at a time, and is free again when `run` is entered.
struct Work {
  Work* next = nullptr;
  void (*run)(Work&) = nullptr;
};

// Work for a given lightweight thread.
struct Message : Work {
  LwThread* target = nullptr;
};

}  // namespace sluice
