// Simulation: the whole stack on one OS thread, in virtual time, from one seed: disks, a vhost target that exports
// them, front ends (the virtio bdev module) on its sockets, users who do I/O, and a scenario that interferes: see
// README.md.
//
// Thread:    one OS thread.
// Ownership: one that has failed must not be destroyed: requests may be stuck in it (run_simulation() sees to it).
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lib/bdev/virtio/virtio_bdev.h"
#include "lib/thread/gate.h"
#include "lib/vhost/target.h"
#include "test/sim/sim_context.h"
#include "test/sim/sim_user.h"

namespace sluice::sim {

struct Outcome {
  std::string failure;  // empty: none
  uint64_t trace_hash = 0;
  uint64_t trace_lines = 0;
  uint64_t virtual_ns = 0;
  uint64_t requests = 0;
  uint64_t errors = 0;
  uint64_t moves = 0;
  uint64_t reconnects = 0;
};

class Simulation {
 public:
  // Sockets are made in `directory`.
  Simulation(uint64_t seed, const std::string& directory, bool print);
  // Requires: run() has succeeded.
  ~Simulation();

  Outcome run();

 private:
  struct Operation {
    std::string name;
    uint64_t begin_ns;
  };

  LwThread& app() { return context_.world.app(); }
  uint64_t below(uint64_t n) { return context_.below(n); }
  bool chance(uint64_t percent) { return context_.chance(percent); }

  // Turning the hosts. Each ends early when something has failed.
  void step(uint64_t limit_ns);
  void run_events();
  void run_until(std::string_view what, const std::function<bool()>& reached, uint64_t bound_ns);
  void run_for(uint64_t ns);
  void finish(std::string_view what, Task<> task, uint64_t bound_ns);
  void check_nothing_is_stuck();

  // Phases.
  void set_up();
  void settle();
  void check_recovery(Export& through);
  void check_asleep();
  void tear_down();
  void check_stores();

  // Events.
  void one_event();
  void begin(std::string name, Task<> task);
  Task<> watch(std::string name, Task<> task);
  void add_user(Export& through);
  void switch_mode();
  void change_polling();
  void resize(DiskState& disk);
  void add_disk(DiskState& disk);
  Task<> create_controller(Export& through);
  Task<> remove_controller(Export& through);
  Task<> recreate_controller(Export& through);
  Task<> replace_disk(DiskState& disk);
  Task<> attach(Export& through);
  Task<> detach(Export& through);
  Task<> knock(Export& through);
  Task<> move_a_thread();
  Task<> look_around();

  const std::string directory_;
  Context context_;
  std::vector<std::unique_ptr<DiskState>> disks_;
  std::vector<std::unique_ptr<Export>> exports_;
  std::vector<std::unique_ptr<Export>> direct_;  // one for each disk
  VirtioModule module_;
  std::unique_ptr<vhost::Target> target_;
  std::vector<std::unique_ptr<SimUser>> users_;
  std::list<Operation> operations_;
  std::unique_ptr<Gate> gate_ = std::make_unique<Gate>();
  int vain_turns_ = 0;
  bool settling_ = false;  // nobody begins anything any more
  Outcome outcome_;
};

// A whole run; leaves a failed simulation in memory as it is.
Outcome run_simulation(uint64_t seed, const std::string& directory, bool print);

}  // namespace sluice::sim
