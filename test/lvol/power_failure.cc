#include <algorithm>
#include <set>

#include "test/lvol/power_failure_run.h"

namespace sluice::lvol {
namespace power_failure {
namespace {

constexpr uint64_t kStuckNs = 300 * kNsPerSec;

}  // namespace

Run::Run(uint64_t seed, bool print) : random_(seed), print_(print) {
  options_.seed = seed;
  options_.shuffled = true;
  options_.cluster_bytes = 64ULL << (10 + below(5));
  options_.block_bytes = chance(50) ? 512 : 4096;
  const uint64_t least = std::max<uint64_t>(8U << 20, 24 * options_.cluster_bytes);
  options_.size_bytes = least + below(4) * (8U << 20);
  if (chance(30)) options_.disk_bytes = least;
  world_ = std::make_unique<LvolWorld>(options_);
  world_->on_step = [this] {
    if (cut_at_request_ != 0 && world_->disk().requests() >= cut_at_request_ && !world_->disk().cut()) cut();
  };
  world_->when_full = [this] { check_that_it_is_full(); };
  note("{} KiB clusters, blocks of {}, {} MiB", options_.cluster_bytes >> 10, options_.block_bytes,
       options_.size_bytes >> 20);
}

PowerFailureOutcome Run::run() {
  const uint64_t rounds = 2 + below(4);
  world_->close();
  for (uint64_t round = 0; round < rounds && ok(); ++round) {
    note("round {}", round);
    open();
    if (ok()) verify(CrashModel::When::kAfterCrash);
    if (ok() && !world_->disk().cut()) check_store();
    if (ok()) act();
    if (ok()) end_round();
  }
  if (ok()) check_that_all_space_comes_back();
  outcome_.failure = failure_;
  return outcome_;
}

void Run::cut() {
  const auto mode = static_cast<CutMode>(below(kCutModes));
  note("the power fails, mode {}", static_cast<int>(mode));
  world_->disk().power_cut(mode);
}

void Run::open() {
  trouble_ = false;
  cut_at_request_ = 0;
  if (chance(20)) {
    cut_at_request_ = world_->disk().requests() + 1 + below(chance(50) ? 8 : 60);
    const Result<> opened = world_->open();
    if (!opened) {
      ++outcome_.cuts_at_load;
      note("load: {}", opened.error().what);
      cut_at_request_ = 0;
    }
  }
  if (!world_->is_open()) {
    const Result<> opened = world_->open();
    if (!opened) {
      fail("the store cannot be loaded: {}", opened.error().what);
      return;
    }
  }
  const std::string damage = hosts().on(world_->store_thread(), [this] { return world_->store().damage(); });
  if (!damage.empty() && !world_->disk().cut()) fail("the store is damaged: {}", damage);
  reconcile();
  const bool hold = chance(30);
  hosts().on(world_->store_thread(), [&] { world_->store().set_hold_when_full(hold); });
}

void Run::reconcile() {
  std::set<std::string> known;
  for (auto at = volumes_.begin(); at != volumes_.end();) {
    ModelVolume& model = *at;
    Volume* volume = world_->find(model.name);
    if (volume == nullptr && !model.maybe_name.empty()) {
      volume = world_->find(model.maybe_name);
      if (volume != nullptr) model.name = model.maybe_name;
    }
    if (volume == nullptr) {
      if (!model.maybe_absent) fail("volume {} is missing", model.name);
      at = volumes_.erase(at);
      continue;
    }
    known.insert(model.name);
    const VolumeRecord& record = *volume->record;
    if (record.size_bytes != model.size_bytes && record.size_bytes != model.maybe_size_bytes) {
      fail("volume {} has {} bytes instead of {} or {}", model.name, record.size_bytes, model.size_bytes,
           model.maybe_size_bytes);
    }
    if (record.size_bytes < model.size_bytes) model.content.truncate(record.size_bytes / block_bytes());
    model.size_bytes = record.size_bytes;
    const bool readonly = record.snapshot || record.readonly;
    if (readonly != model.readonly && readonly != model.maybe_readonly) fail("{} is read-only or not", model.name);
    model.readonly = model.maybe_readonly = readonly;
    model.maybe_name.clear();
    model.maybe_size_bytes = 0;
    model.maybe_absent = model.unsure = model.quiet = false;
    CHECK(model.operations == 0);
    ++at;
  }
  for (const auto& [id, volume] : world_->store().volumes().all()) {
    if (!known.contains(volume->record->name)) fail("there is a volume {} again", volume->record->name);
  }
}

void Run::verify(CrashModel::When when) {
  for (ModelVolume& model : volumes_) {
    if (model.unsure || model.quiet) continue;
    std::vector<uint64_t> clusters = model.content.clusters();
    clusters.push_back(below(model.size_bytes / cluster_bytes()));
    PageBuffer memory(cluster_bytes());
    for (const uint64_t cluster : clusters) {
      fill_pattern(memory.bytes(), 77);
      const IoStatus status = world_->read(model.name, cluster * cluster_bytes(), memory.bytes(), below(2));
      if (status != IoStatus::kOk) {
        if (!trouble()) fail("cluster {} of {} cannot be read: {}", cluster, model.name, to_string(status));
        if (world_->disk().cut()) return;
        continue;
      }
      const uint64_t first = cluster * cluster_bytes() / block_bytes();
      const std::string found = model.content.check(memory.bytes(), first, when, ++events_);
      if (!found.empty()) {
        fail("{}, cluster {}: {}", model.name, cluster, found);
        return;
      }
      outcome_.blocks += memory.bytes().size() / block_bytes();
    }
  }
}

void Run::check_store() {
  const std::vector<std::string> findings = world_->findings();
  if (!findings.empty() && !trouble()) fail("check: {}", fmt::join(findings, "; "));
}

void Run::check_that_it_is_full() {
  const StoreUsage usage = world_->store().usage();
  const uint64_t kept_pages = 2 * usage.map_pages + 200;
  if (usage.free_clusters > kept_pages * kPageBytes / cluster_bytes() + 1) {
    fail("a write finds no space, but {} clusters are free", usage.free_clusters);
  }
}

void Run::act() {
  if (chance(60)) {
    world_->disk().cut_at(world_->disk().changes() + 1 + below(chance(50) ? 40 : 300),
                          static_cast<CutMode>(below(kCutModes)));
  } else if (chance(40)) {
    cut_at_request_ = world_->disk().requests() + 1 + below(300);
  }
  if (chance(20)) {
    trouble_ = true;
    world_->disk().fail_at(world_->disk().requests() + 1 + below(150));
  }
  const uint64_t actions = 20 + below(150);
  const uint64_t pace = 1 + below(30);
  for (uint64_t i = 0; i < actions && ok() && !world_->disk().cut(); ++i) {
    act_once();
    for (uint64_t turns = below(pace); turns > 0 && ok() && !world_->disk().cut(); --turns) turn();
    if (chance(3)) {
      const uint64_t limit_ns = hosts().now_ns() + below(3 * kNsPerSec);
      while (hosts().now_ns() < limit_ns && ok() && !world_->disk().cut()) turn(limit_ns);
    }
  }
}

void Run::end_round() {
  if (!world_->disk().cut() && chance(70)) cut();
  // What waits for space goes on, or fails.
  hosts().on(world_->store_thread(), [&] { world_->store().set_hold_when_full(false); });
  while (ok() && (!requests_.empty() || !operations_.empty())) turn();
  if (!ok()) return;
  outcome_.failures += static_cast<uint64_t>(std::exchange(world_->failures, 0));
  if (world_->disk().cut()) {
    ++outcome_.cuts;
    world_->close();
    return;
  }
  verify(CrashModel::When::kRunning);
  if (ok() && !world_->disk().cut()) check_store();
  if (!ok()) return;
  note("close");
  const bool failed = !hosts().on(world_->store_thread(), [this] { return world_->store().damage(); }).empty();
  world_->close();
  if (failed && !trouble_ && !world_->was_cut()) fail("the store has failed without a reason");
  if (!failed && !world_->was_cut()) {
    for (ModelVolume& model : volumes_) model.content.flushed(++events_);
  }
}

void Run::check_that_all_space_comes_back() {
  cut_at_request_ = 0;
  trouble_ = false;
  const Result<> opened = world_->open();
  if (!opened) {
    fail("the store cannot be loaded in the end: {}", opened.error().what);
    return;
  }
  reconcile();
  verify(CrashModel::When::kAfterCrash);
  if (!ok()) return;
  while (!volumes_.empty()) {
    const auto at = std::next(volumes_.begin(), static_cast<std::ptrdiff_t>(below(volumes_.size())));
    if (const Result<> removed = world_->remove(at->name); !removed) {
      fail("{} cannot be deleted: {}", at->name, removed.error().what);
      return;
    }
    volumes_.erase(at);
  }
  world_->settle();
  if (const Result<> done = world_->await(world_->store().checkpoint()); !done) {
    fail("an empty store cannot write a checkpoint: {}", done.error().what);
    return;
  }
  check_store();
  const StoreUsage usage = hosts().on(world_->store_thread(), [this] { return world_->store().usage(); });
  if (usage.free_clusters != usage.total_clusters) {
    fail("{} of {} clusters are free in the end", usage.free_clusters, usage.total_clusters);
  }
  world_->close();
}

void Run::turn(uint64_t limit_ns) {
  if (!world_->step(std::min(limit_ns, hosts().now_ns() + kNsPerSec))) fail("nothing will ever happen");
  for (auto at = requests_.begin(); at != requests_.end();) {
    Request& request = *at;
    if (request.done) {
      finish(request);
      at = requests_.erase(at);
      continue;
    }
    if (hosts().now_ns() > request.begin_ns + kStuckNs) {
      // Writes may be held for as long as there is no space.
      const bool held = hosts().on(world_->store_thread(), [this] { return world_->store().hold_when_full(); });
      if (!held) fail("request {} does not complete", request.number);
      hosts().on(world_->store_thread(), [this] { world_->store().set_hold_when_full(false); });
      request.begin_ns = hosts().now_ns();
    }
    ++at;
  }
  for (auto at = operations_.begin(); at != operations_.end();) {
    if (at->done) {
      Operation done = std::move(*at);
      at = operations_.erase(at);
      note("{}: {}", done.text, done.result ? "ok" : done.result.error().what);
      ++events_;
      if (done.result) ++outcome_.operations;
      check_error(done);
      done.finish(done);
      continue;
    }
    if (hosts().now_ns() > at->begin_ns + kStuckNs) fail("{} does not end", at->text);
    ++at;
  }
}

void Run::check_error(const Operation& operation) {
  if (operation.result || trouble()) return;
  // Whatever is tried here is allowed; only space may be lacking.
  if (operation.result.error().code != ENOSPC) {
    fail("{} has failed: {}", operation.text, operation.result.error().what);
  }
}

}  // namespace power_failure

PowerFailureOutcome run_power_failures(uint64_t seed, bool print) {
  auto run = std::make_unique<power_failure::Run>(seed, print);
  PowerFailureOutcome outcome = run->run();
  if (!outcome.failure.empty()) std::ignore = run.release();
  return outcome;
}

}  // namespace sluice::lvol
