// What a run of power_failure.h consists of: rounds (power_failure.cc), requests of users (power_failure_requests.cc)
// and operations on volumes (power_failure_operations.cc).
#pragma once

#include <fmt/format.h>

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "lib/bdev/bdev.h"
#include "test/lvol/crash_model.h"
#include "test/lvol/lvol_world.h"
#include "test/lvol/power_failure.h"

namespace sluice::lvol::power_failure {

// What is known of a volume.
struct ModelVolume {
  std::string name;
  std::string maybe_name;  // it has been renamed so, perhaps
  uint64_t size_bytes = 0;
  uint64_t maybe_size_bytes = 0;  // 0: it is as large as it is
  bool readonly = false;
  bool maybe_readonly = false;
  bool maybe_absent = false;  // not made, or deleted, perhaps
  CrashModel content;
  std::vector<uint64_t> spots;  // clusters where things happen

  uint32_t operations = 0;  // under way
  bool unsure = false;      // of one that has failed: left alone until the store is loaded again
  bool quiet = false;       // no requests: it is being resized, closed, or deleted
};

struct Request : TestIo {
  using TestIo::TestIo;
  ModelVolume* volume = nullptr;
  BlockRange range;
  uint32_t version = 0;
  uint64_t number = 0;
  uint64_t submitted = 0;  // by events
  uint64_t begin_ns = 0;
  std::unique_ptr<PageBuffer> memory;

  bool changes() const { return type != IoType::kRead && type != IoType::kFlush; }
};

struct Operation {
  std::string text;
  uint64_t begin_ns = 0;
  bool done = false;
  Result<> result;
  std::function<void(const Operation&)> finish;
  // Of a snapshot: what it is of, and what it will be.
  ModelVolume* source = nullptr;
  ModelVolume* snapshot = nullptr;
};

// Thread: one OS thread; the store's and users' threads are those of `world_`.
class Run {
 public:
  Run(uint64_t seed, bool print);
  PowerFailureOutcome run();

 private:
  bool ok() const { return failure_.empty(); }
  uint64_t below(uint64_t n) { return n == 0 ? 0 : random_() % n; }
  bool chance(uint64_t percent) { return below(100) < percent; }
  uint64_t block_bytes() const { return options_.block_bytes; }
  uint64_t cluster_bytes() const { return options_.cluster_bytes; }
  bool trouble() const { return trouble_ || world_->disk().cut(); }
  ManualHosts& hosts() { return world_->hosts(); }

  template <typename... Args>
  void fail(fmt::format_string<Args...> text, Args&&... args) {
    if (!ok()) return;
    failure_ = fmt::format(text, std::forward<Args>(args)...);
    note("{}", failure_);
  }
  template <typename... Args>
  void note(fmt::format_string<Args...> text, Args&&... args) {
    const std::string line = fmt::format(text, std::forward<Args>(args)...);
    for (const char c : line) outcome_.trace_hash = (outcome_.trace_hash ^ static_cast<uint8_t>(c)) * 0x100000001b3U;
    ++outcome_.trace_lines;
    if (print_) fmt::print("{:>12} {}\n", world_ != nullptr && world_->has_hosts() ? hosts().now_ns() : 0, line);
  }

  void cut();

  // --- Rounds ---

  void open();
  // Which volumes there are, and of what size.
  void reconcile();
  // Reads what may hold something, and a cluster that does not.
  void verify(CrashModel::When when);
  void check_store();
  // What is free is kept for metadata: for each page there is, and a few more.
  void check_that_it_is_full();
  void act();
  void end_round();
  void check_that_all_space_comes_back();

  // --- Turns ---

  void turn(uint64_t limit_ns = UINT64_MAX);
  void check_error(const Operation& operation);

  // --- Requests ---

  ModelVolume* pick(const std::function<bool(const ModelVolume&)>& fits);
  bool has_requests(const ModelVolume& model) const;
  BlockRange pick_range(const ModelVolume& model, IoType type);
  void submit_one();
  BlockRange changed_by(const Request& request) const;
  void finish(Request& request);
  void check_status(const Request& request);

  // --- Operations ---

  void act_once();

  template <typename T>
  Operation& begin(std::string text, Task<Result<T>> task, std::function<void(const Operation&)> finish) {
    note("{} begins", text);
    ++events_;
    Operation& operation = operations_.emplace_back();
    operation.text = std::move(text);
    operation.begin_ns = hosts().now_ns();
    operation.finish = std::move(finish);
    hosts().on(world_->store_thread(), [&] {
      start(std::move(task), [&operation](Result<T> result) {
        operation.done = true;
        if (!result) operation.result = std::unexpected(result.error());
      });
    });
    return operation;
  }

  // It has failed: whether it has had an effect is not known before the store has been loaded again.
  static bool is_unsure(const Operation& operation) {
    return !operation.result && operation.result.error().code != ENOSPC && operation.result.error().code != EROFS;
  }

  static bool idle(const ModelVolume& model) { return !model.unsure && !model.quiet && model.operations == 0; }

  std::string new_name() { return fmt::format("v{}", ++names_); }

  VolumeId id_of(const ModelVolume& model) { return world_->id(model.name); }

  ModelVolume& add_volume(std::string name, uint64_t size_bytes, const CrashModel& content);
  void pick_spots(ModelVolume& model);
  // Of one that was to be made.
  void made(ModelVolume& model, const Operation& operation);
  void create();
  void snapshot();
  void clone();
  // One on which nothing is going on, without its bdev.
  ModelVolume* pick_closed(const std::function<bool(const ModelVolume&)>& fits);
  void remove();
  void rename();
  void resize();
  // Its content stays the same, whatever comes of it.
  void own();
  void other();

  std::mt19937_64 random_;
  const bool print_;
  WorldOptions options_;
  std::unique_ptr<LvolWorld> world_;
  std::list<ModelVolume> volumes_;
  std::list<Request> requests_;
  std::list<Operation> operations_;
  std::map<uint64_t, BlockRange> discarded_;  // by request: what goes
  uint64_t events_ = 0;
  uint32_t versions_ = 0;
  uint64_t names_ = 0;
  uint64_t cut_at_request_ = 0;
  bool trouble_ = false;  // a request of the disk fails in this round
  std::string failure_;
  PowerFailureOutcome outcome_;
};

}  // namespace sluice::lvol::power_failure
