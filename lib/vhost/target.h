// Target: the vhost-user-blk controllers of a process.
// Thread:    all calls on the application's lightweight thread.
// Ownership: owns the controllers and their lightweight threads; borrows the directory and the bdevs.
#pragma once

#include <sys/types.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lib/bdev/bdev_manager.h"
#include "lib/thread/thread_directory.h"
#include "lib/vhost/controller.h"

namespace sluice::vhost {

class Target {
 public:
  struct Options {
    std::string socket_directory = ".";
    mode_t socket_mode = 0600;
  };
  struct ControllerOptions {
    std::string name;  // the socket's name within the directory
    std::string bdev_name;
    CpuMask cpumask;  // empty: any core
    bool readonly = false;
    bool packed_ring = false;  // packed virtqueues are offered, besides split ones
    // The guest's memory may be in any file, not only in one that the kernel keeps in memory: see MemoryMap.
    bool any_memory_file = false;
    AllowedPeers allowed;
    // Lightweight threads of their own that its queues are spread over; 0: the controller's serves them all.
    uint32_t queue_threads = 0;
  };

  // Ignores SIGPIPE in the whole process: a front end may close its end of a call pipe at any time.
  Target(ThreadDirectory& threads, BdevManager& bdevs, Options options);
  // Requires: remove_all() has completed, or nothing was created (checked).
  ~Target();

  // Errors: EINVAL (the name is empty or has a slash; the mask has no reactor; too many queue threads), EEXIST, ENODEV
  // (no such bdev), EROFS (the bdev is read-only and the controller is not), those of listen_unix(). Nothing is left of
  // a failed one.
  Task<Result<>> create_controller(ControllerOptions options);
  // Its front end is cut off; requests in flight complete first. Errors: ENODEV.
  Task<Result<>> remove_controller(std::string name);
  Task<> remove_all();
  // Another bdev behind it, while its guest goes on. Errors: ENODEV (no such controller), those of
  // Controller::set_bdev(); then nothing has changed.
  Task<Result<>> set_bdev(std::string name, std::string bdev_name);
  // Whether its calls may be held back. Errors: EINVAL (a delay beyond 10 ms; a threshold of 0), ENODEV.
  Task<Result<>> set_coalescing(std::string name, Coalescing coalescing);

  // Instead of remove_all(): all controllers end, but their front ends stay connected, and their sockets there, for
  // another Target, of this process or another one. First all messages that are being handled end, while requests go
  // on; then all queues pause. Requires: no other call is in progress (checked).
  Task<std::vector<ControllerState>> give_up();
  // Before anything is created: controllers of these names take over from those that another Target has given up. Until
  // go_on() they serve nobody, and if they end before it, nothing has happened to the front ends.
  void take_over(std::vector<ControllerState> states);
  Task<> go_on();

  // All controllers, by name, or the one of that name; empty if there is none.
  Task<std::vector<ControllerInfo>> list(std::string name = "");

 private:
  struct Entry {
    std::unique_ptr<Controller> controller;  // null while it is being created
    bool busy = false;                       // being created, removed or looked at
    uint32_t lookers = 0;
    Event idle;
  };

  Result<std::vector<LwThread*>> create_threads(const ControllerOptions& options);
  Task<> destroy_threads(std::vector<LwThread*> threads);
  Task<> destroy(std::unique_ptr<Controller> controller);

  ThreadDirectory& threads_;
  BdevManager& bdevs_;
  const Options options_;
  std::string absolute_directory_;  // to be shown
  std::map<std::string, std::unique_ptr<Entry>, std::less<>> entries_;
  std::map<std::string, ControllerState, std::less<>> inherited_;
};

}  // namespace sluice::vhost
