#include "test/lvol/power_failure.h"

#include <fmt/format.h>

#include <algorithm>
#include <list>
#include <random>
#include <set>

#include "lib/bdev/bdev.h"
#include "lib/lvol/copying.h"
#include "test/lvol/crash_model.h"
#include "test/lvol/lvol_world.h"

namespace sluice::lvol {
namespace {

constexpr uint64_t kStuckNs = 300 * kNsPerSec;
constexpr size_t kMaxVolumes = 10;
constexpr size_t kMaxRequests = 24;
constexpr size_t kMaxOperations = 3;

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

class Run {
 public:
  Run(uint64_t seed, bool print) : random_(seed), print_(print) {
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

  PowerFailureOutcome run() {
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

  // A failed one is left as it is: requests may be stuck in it.
  void abandon() { std::ignore = world_.release(); }

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

  void cut() {
    const auto mode = static_cast<CutMode>(below(kCutModes));
    note("the power fails, mode {}", static_cast<int>(mode));
    world_->disk().power_cut(mode);
  }

  // --- Rounds ---

  void open() {
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

  // Which volumes there are, and of what size.
  void reconcile() {
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

  // Reads what may hold something, and a cluster that does not.
  void verify(CrashModel::When when) {
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

  void check_store() {
    const std::vector<std::string> findings = world_->findings();
    if (!findings.empty() && !trouble()) fail("check: {}", fmt::join(findings, "; "));
  }

  // What is free is kept for metadata: for each page there is, and a few more.
  void check_that_it_is_full() {
    const StoreUsage usage = world_->store().usage();
    const uint64_t kept_pages = 2 * usage.map_pages + 200;
    if (usage.free_clusters > kept_pages * kPageBytes / cluster_bytes() + 1) {
      fail("a write finds no space, but {} clusters are free", usage.free_clusters);
    }
  }

  void act() {
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

  void end_round() {
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

  void check_that_all_space_comes_back() {
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

  // --- Turns ---

  void turn(uint64_t limit_ns = UINT64_MAX) {
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

  void check_error(const Operation& operation) {
    if (operation.result || trouble()) return;
    // Whatever is tried here is allowed; only space may be lacking.
    if (operation.result.error().code != ENOSPC) {
      fail("{} has failed: {}", operation.text, operation.result.error().what);
    }
  }

  // --- Requests ---

  ModelVolume* pick(const std::function<bool(const ModelVolume&)>& fits) {
    std::vector<ModelVolume*> candidates;
    for (ModelVolume& model : volumes_) {
      if (fits(model)) candidates.push_back(&model);
    }
    return candidates.empty() ? nullptr : candidates[below(candidates.size())];
  }

  bool has_requests(const ModelVolume& model) const {
    return std::ranges::any_of(requests_, [&](const Request& request) { return request.volume == &model; });
  }

  BlockRange pick_range(const ModelVolume& model, IoType type) {
    const uint64_t blocks = model.size_bytes / block_bytes();
    const uint64_t cluster_blocks = cluster_bytes() / block_bytes();
    const uint64_t subcluster_blocks = std::max<uint64_t>(cluster_bytes() / 64, 4096) / block_bytes();
    const uint64_t spot = model.spots[below(model.spots.size())];
    BlockRange range{.first = spot * cluster_blocks, .count = 1};
    switch (below(6)) {
      case 0:  // few blocks
        range.first += below(cluster_blocks);
        range.count = 1 + below(8);
        break;
      case 1:  // sub-clusters
        range.first += below(cluster_blocks / subcluster_blocks) * subcluster_blocks;
        range.count = (1 + below(4)) * subcluster_blocks;
        break;
      case 2:  // from one sub-cluster to another, any length
        range.first += below(cluster_blocks);
        range.count = 1 + below(3 * subcluster_blocks);
        break;
      case 3:  // over the end of the cluster
        range.first += cluster_blocks - 1 - below(std::min<uint64_t>(cluster_blocks - 1, 2 * subcluster_blocks));
        range.count = 1 + below(4 * subcluster_blocks);
        break;
      case 4:  // the cluster, and some more
        range.count = cluster_blocks + (chance(50) ? 0 : below(cluster_blocks));
        break;
      case 5:  // at its beginning
        range.count = 1 + below(subcluster_blocks + 1);
        break;
    }
    if ((type == IoType::kDiscard || type == IoType::kWriteZeroes) && chance(30)) range.count += 2 * cluster_blocks;
    if (type == IoType::kDiscard && chance(10)) range = {.first = 0, .count = blocks};
    range.first = std::min(range.first, blocks - 1);
    range.count = std::min(range.count, blocks - range.first);
    return range;
  }

  void submit_one() {
    if (requests_.size() >= kMaxRequests) return;
    static constexpr IoType kTypes[] = {IoType::kWrite, IoType::kWrite,       IoType::kWrite, IoType::kWrite,
                                        IoType::kRead,  IoType::kRead,        IoType::kFlush, IoType::kDiscard,
                                        IoType::kWrite, IoType::kWriteZeroes, IoType::kWrite, IoType::kRead};
    const IoType type = kTypes[below(std::size(kTypes))];
    const bool changes = type != IoType::kRead && type != IoType::kFlush;
    ModelVolume* model =
        pick([&](const ModelVolume& at) { return !at.unsure && !at.quiet && !(changes && at.readonly); });
    if (model == nullptr) return;
    const BlockRange range = type == IoType::kFlush ? BlockRange{} : pick_range(*model, type);
    const auto meets = [&](const Request& other) {
      return other.volume == model && other.range.meets(range) && (changes || other.changes());
    };
    if (std::ranges::any_of(requests_, meets)) return;

    Request& request = requests_.emplace_back();
    request.type = type;
    request.volume = model;
    request.range = range;
    request.number = ++outcome_.requests;
    request.begin_ns = hosts().now_ns();
    request.submitted = ++events_;
    request.offset_bytes = range.first * block_bytes();
    request.length_bytes = range.count * block_bytes();
    if (type == IoType::kRead || type == IoType::kWrite) {
      request.memory = std::make_unique<PageBuffer>(request.length_bytes);
      const std::span<std::byte> bytes = request.memory->bytes();
      if (type == IoType::kWrite) {
        request.version = ++versions_;
        model->content.fill(bytes, range.first, request.version);
      }
      const uint64_t first = chance(60) ? bytes.size() : 1 + below(bytes.size() - 1);
      request.buffers.push_back({.iov_base = bytes.data(), .iov_len = first});
      if (first < bytes.size()) {
        request.buffers.push_back({.iov_base = bytes.data() + first, .iov_len = bytes.size() - first});
      }
      request.iov = request.buffers.data();
      request.iov_count = static_cast<uint32_t>(request.buffers.size());
    }
    if (type == IoType::kDiscard) {
      // What lies in whole clusters goes.
      const uint64_t cluster_blocks = cluster_bytes() / block_bytes();
      const uint64_t first = (range.first + cluster_blocks - 1) / cluster_blocks * cluster_blocks;
      const uint64_t end = range.end() / cluster_blocks * cluster_blocks;
      discarded_[request.number] = {.first = first, .count = end > first ? end - first : 0};
    }
    const size_t user = below(2);
    note("{}: {} {} of {}, {}+{}, user {}, version {}", request.number, to_string(type), "", model->name, range.first,
         range.count, user, request.version);
    if (request.changes()) {
      for (const Operation& operation : operations_) {
        if (operation.source == model) operation.snapshot->content.maybe_set(changed_by(request), request.version);
      }
    }
    world_->user(model->name, user).submit(request);
  }

  BlockRange changed_by(const Request& request) const {
    return request.type == IoType::kDiscard ? discarded_.at(request.number) : request.range;
  }

  void finish(Request& request) {
    note("{}: {}", request.number, to_string(request.status));
    ++events_;
    const bool good = request.status == IoStatus::kOk;
    CrashModel& content = request.volume->content;
    if (!good) check_status(request);
    if (request.type == IoType::kRead && good) {
      const std::string found =
          content.check(request.memory->bytes(), request.range.first, CrashModel::When::kRunning, events_);
      if (!found.empty()) fail("request {}, {}: {}", request.number, request.volume->name, found);
    } else if (request.type == IoType::kFlush && good) {
      content.flushed(request.submitted);
    } else if (request.changes() && good) {
      content.set(changed_by(request), request.version, events_);
    } else if (request.changes()) {
      content.maybe_set(changed_by(request), request.version);
    }
    discarded_.erase(request.number);
  }

  void check_status(const Request& request) {
    if (trouble()) return;
    if (request.status == IoStatus::kNoSpace && request.changes()) {
      ++outcome_.refused;
      return;
    }
    fail("request {} ends with {}", request.number, to_string(request.status));
  }

  // --- Operations ---

  void act_once() {
    if (chance(85) && !volumes_.empty()) {
      for (uint64_t i = 1 + below(3); i > 0; --i) submit_one();
      return;
    }
    if (operations_.size() >= kMaxOperations) return;
    switch (below(12)) {
      case 0:
      case 1:
        create();
        return;
      case 2:
      case 3:
        snapshot();
        return;
      case 4:
        clone();
        return;
      case 5:
      case 6:
        remove();
        return;
      case 7:
        rename();
        return;
      case 8:
        resize();
        return;
      case 9:
        begin("checkpoint", world_->store().checkpoint(), [](const Operation&) {});
        return;
      case 10:
        own();
        return;
      case 11:
        other();
        return;
    }
  }

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

  ModelVolume& add_volume(std::string name, uint64_t size_bytes, const CrashModel& content) {
    ModelVolume& model = volumes_.emplace_back(ModelVolume{
        .name = std::move(name), .maybe_name = {}, .size_bytes = size_bytes, .content = content, .spots = {}});
    // Until it is there.
    model.maybe_absent = true;
    model.quiet = true;
    ++model.operations;
    pick_spots(model);
    return model;
  }

  void pick_spots(ModelVolume& model) {
    const uint64_t clusters = model.size_bytes / cluster_bytes();
    model.spots = {0, clusters - 1};
    for (const uint64_t spot : {uint64_t{1}, uint64_t{255}, uint64_t{256}, uint64_t{65535}, below(clusters)}) {
      if (spot < clusters) model.spots.push_back(spot);
    }
    while (model.spots.size() < 8) model.spots.push_back(below(std::min<uint64_t>(clusters, 12)));
  }

  // Of one that was to be made.
  void made(ModelVolume& model, const Operation& operation) {
    --model.operations;
    if (operation.result) {
      model.quiet = model.maybe_absent = false;
    } else if (is_unsure(operation)) {
      model.unsure = true;
    } else {
      std::erase_if(volumes_, [&](const ModelVolume& other) { return &other == &model; });
    }
  }

  void create() {
    if (volumes_.size() >= kMaxVolumes) return;
    const bool thin = chance(80);
    uint64_t clusters = 1 + below(12);
    if (thin && chance(30)) clusters = 250 + below(20);
    if (thin && chance(10)) clusters = 65530 + below(20);
    ModelVolume& model =
        add_volume(new_name(), clusters * cluster_bytes(), CrashModel(options_.block_bytes, cluster_bytes()));
    begin(fmt::format("create {} {}{}", model.name, clusters, thin ? "" : ", thick"),
          world_->store().create({.name = model.name, .size_bytes = model.size_bytes, .thin = thin}),
          [this, &model](const Operation& operation) { made(model, operation); });
  }

  void snapshot() {
    if (volumes_.size() >= kMaxVolumes) return;
    ModelVolume* source = pick([](const ModelVolume& at) { return idle(at) && !at.readonly; });
    if (source == nullptr) return;
    ModelVolume& model = add_volume(new_name(), source->size_bytes, source->content.copy());
    model.readonly = model.maybe_readonly = true;
    model.spots = source->spots;
    ++source->operations;
    for (const Request& request : requests_) {
      if (request.volume == source && request.changes()) model.content.maybe_set(changed_by(request), request.version);
    }
    Operation& begun = begin(fmt::format("snapshot {} of {}", model.name, source->name),
                             world_->store().snapshot(id_of(*source), model.name, {}),
                             [this, &model, source](const Operation& operation) {
                               --source->operations;
                               made(model, operation);
                             });
    begun.source = source;
    begun.snapshot = &model;
  }

  void clone() {
    if (volumes_.size() >= kMaxVolumes) return;
    ModelVolume* source = pick([](const ModelVolume& at) { return idle(at) && at.readonly; });
    if (source == nullptr) return;
    ModelVolume& model = add_volume(new_name(), source->size_bytes, source->content);
    model.spots = source->spots;
    ++source->operations;
    begin(fmt::format("clone {} of {}", model.name, source->name),
          world_->store().clone(id_of(*source), model.name, {}), [this, &model, source](const Operation& operation) {
            --source->operations;
            made(model, operation);
          });
  }

  // One on which nothing is going on, without its bdev.
  ModelVolume* pick_closed(const std::function<bool(const ModelVolume&)>& fits) {
    ModelVolume* model = pick([&](const ModelVolume& at) { return idle(at) && !has_requests(at) && fits(at); });
    if (model == nullptr) return nullptr;
    model->quiet = true;
    ++model->operations;
    if (world_->has_bdev(model->name)) world_->close_bdev(model->name);
    return model;
  }

  void remove() {
    ModelVolume* model = pick_closed([&](const ModelVolume&) { return true; });
    if (model == nullptr) return;
    model->maybe_absent = true;
    begin(fmt::format("delete {}", model->name), world_->store().remove(id_of(*model)),
          [this, model](const Operation& operation) {
            --model->operations;
            if (operation.result) {
              std::erase_if(volumes_, [&](const ModelVolume& other) { return &other == model; });
              return;
            }
            model->quiet = false;
            if (is_unsure(operation)) {
              model->unsure = true;
            } else {
              model->maybe_absent = false;
            }
          });
  }

  void rename() {
    ModelVolume* model = pick_closed([&](const ModelVolume&) { return true; });
    if (model == nullptr) return;
    model->maybe_name = new_name();
    begin(fmt::format("rename {} to {}", model->name, model->maybe_name),
          world_->store().rename(id_of(*model), model->maybe_name), [model](const Operation& operation) {
            --model->operations;
            model->quiet = false;
            if (is_unsure(operation)) {
              model->unsure = true;
              return;
            }
            if (operation.result) model->name = model->maybe_name;
            model->maybe_name.clear();
          });
  }

  void resize() {
    ModelVolume* model = pick_closed([&](const ModelVolume& at) { return !at.readonly; });
    if (model == nullptr) return;
    const uint64_t before = model->size_bytes / cluster_bytes();
    const uint64_t clusters = chance(50) ? 1 + below(before) : before + below(chance(80) ? 10 : 300);
    const uint64_t size_bytes = clusters * cluster_bytes();
    model->maybe_size_bytes = size_bytes;
    if (clusters < before) {
      const uint64_t first = size_bytes / block_bytes();
      model->content.maybe_set({.first = first, .count = model->size_bytes / block_bytes() - first},
                               CrashModel::kZeroes);
    }
    begin(fmt::format("resize {} from {} to {}", model->name, before, clusters),
          world_->store().resize(id_of(*model), size_bytes), [this, model, size_bytes](const Operation& operation) {
            --model->operations;
            model->quiet = false;
            if (is_unsure(operation)) {
              model->unsure = true;
              return;
            }
            if (operation.result) {
              if (size_bytes < model->size_bytes) model->content.truncate(size_bytes / block_bytes());
              model->size_bytes = size_bytes;
              pick_spots(*model);
            }
            model->maybe_size_bytes = 0;
          });
  }

  // Its content stays the same, whatever comes of it.
  void own() {
    ModelVolume* model = pick([](const ModelVolume& at) { return idle(at) && !at.readonly; });
    if (model == nullptr) return;
    const bool allocate = model->size_bytes < 16 * cluster_bytes() && chance(50);
    ++model->operations;
    LwThread& thread = world_->store_thread();
    Bdev& bdev = world_->bdev(model->name);
    auto channel = std::make_shared<ChannelRef>(hosts().on(thread, [&] { return thread.get_channel(bdev).value(); }));
    auto progress = std::make_shared<CopyProgress>();
    auto& base = static_cast<BdevChannel&>(*channel->get());
    begin(fmt::format("{} {}", allocate ? "inflate" : "decouple", model->name),
          own_clusters(world_->store(), id_of(*model), base, allocate, *progress),
          [this, model, channel, progress](const Operation&) {
            --model->operations;
            hosts().on(world_->store_thread(), [&] { channel->reset(); });
          });
  }

  void other() {
    switch (below(5)) {
      case 0: {
        const bool hold = chance(50);
        note("hold: {}", hold);
        hosts().on(world_->store_thread(), [&] { world_->store().set_hold_when_full(hold); });
        return;
      }
      case 1: {
        ModelVolume* model = pick([](const ModelVolume& at) { return idle(at); });
        if (model == nullptr) return;
        ++model->operations;
        const auto done = [model](const Operation&) { --model->operations; };
        if (chance(50)) {
          begin(fmt::format("usage of {}", model->name), world_->store().usage_of(id_of(*model)), done);
        } else {
          begin(fmt::format("own clusters of {}", model->name), world_->store().own_clusters_of(id_of(*model)), done);
        }
        return;
      }
      case 2: {
        ModelVolume* model = pick_closed([](const ModelVolume& at) { return !at.readonly; });
        if (model == nullptr) return;
        model->maybe_readonly = true;
        begin(fmt::format("make {} read-only", model->name), world_->store().set_readonly(id_of(*model)),
              [model](const Operation& operation) {
                --model->operations;
                model->quiet = false;
                if (is_unsure(operation)) {
                  model->unsure = true;
                } else if (operation.result) {
                  model->readonly = true;
                } else {
                  model->maybe_readonly = false;
                }
              });
        return;
      }
      case 3:
        begin("rename the store", world_->store().rename_store(fmt::format("store{}", below(100))),
              [](const Operation&) {});
        return;
      case 4:
        world_->grow_disk();
        begin("grow", world_->store().grow(), [](const Operation&) {});
        return;
    }
  }

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

}  // namespace

PowerFailureOutcome run_power_failures(uint64_t seed, bool print) {
  auto run = std::make_unique<Run>(seed, print);
  PowerFailureOutcome outcome = run->run();
  if (!outcome.failure.empty()) std::ignore = run.release();
  return outcome;
}

}  // namespace sluice::lvol
