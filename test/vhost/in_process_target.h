// InProcessTarget: a vhost target in the test's own process: a reactor, and controllers vhost.0, vhost.1, ... each on a
// HeldBdev of its own.
//
// With SLUICE_TEST_PACKED set, packed rings are offered by all of them.
// With SLUICE_TEST_RESTLESS set there are two reactors if there are two cores, each controller's queues are spread over
// two threads, and all threads are moved about all the time.
// Thread: the test's own; calls wait until the target's threads have done what was asked.
#pragma once

#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "lib/reactor/reactor_group.h"
#include "lib/thread/gate.h"
#include "lib/vhost/target.h"
#include "test/vhost/held_bdev.h"

namespace sluice::test {

class InProcessTarget {
 public:
  struct Options {
    uint64_t size_bytes;
    uint32_t block_size;
    bool readonly;
    bool packed_ring = false;
    unsigned num_controllers;
    PollMode mode = PollMode::kInterrupt;
  };

  explicit InProcessTarget(const Options& options);
  ~InProcessTarget();

  std::string socket_path(unsigned controller) const;
  HeldBdev& bdev(unsigned controller) { return *bdevs_in_use_[controller]; }
  void resize_bdev(unsigned controller, uint64_t size_bytes);
  // Pulls the bdev out; it is gone when what is held has been released.
  void remove_bdev(unsigned controller);
  // One more, behind no controller yet.
  HeldBdev& add_bdev(const std::string& name, uint64_t size_bytes, uint32_t block_size = 512, bool discards = true);
  // Pulls it out; it is gone when what is held has been released, and its users have let go.
  void remove_bdev(HeldBdev& bdev);
  Result<> set_bdev(unsigned controller, const std::string& name);
  void release_io(HeldBdev& bdev) { await(bdev.release(*threads_)); }
  void release_io(unsigned controller);
  void release_oldest_io(unsigned controller, int count);
  vhost::ControllerInfo info(unsigned controller);
  IoStats iostat(unsigned controller);
  IoStats iostat(HeldBdev& bdev) { return await(bdevs_->iostat(bdev)); }
  BdevManager& bdevs() { return *bdevs_; }
  vhost::Target& target() { return *target_; }

  // Runs a task on the application's thread, to its end.
  template <typename T>
  T await(Task<T> task) {
    std::promise<T> done;
    post_to(*app_, [&] {
      if constexpr (std::is_void_v<T>) {
        start(std::move(task), [&done] { done.set_value(); });
      } else {
        start(std::move(task), [&done](T value) { done.set_value(std::move(value)); });
      }
    });
    return done.get_future().get();
  }

 private:
  Task<> set_up(const Options& options);
  Task<> move_about();
  Task<> tear_down();

  std::filesystem::path directory_;
  std::unique_ptr<ReactorGroup> reactors_;
  std::unique_ptr<ThreadDirectory> threads_;
  std::unique_ptr<BdevManager> bdevs_;
  std::unique_ptr<vhost::Target> target_;
  const bool restless_;
  Gate moving_;
  LwThread* app_ = nullptr;
  std::vector<HeldBdev*> bdevs_in_use_;  // at first, by controller
  std::vector<HeldBdev*> other_bdevs_;
};

}  // namespace sluice::test
