#include <algorithm>

#include "lib/lvol/copying.h"
#include "test/lvol/power_failure_run.h"

namespace sluice::lvol {
namespace power_failure {
namespace {

constexpr size_t kMaxVolumes = 10;
constexpr size_t kMaxOperations = 3;

}  // namespace

void Run::act_once() {
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

ModelVolume& Run::add_volume(std::string name, uint64_t size_bytes, const CrashModel& content) {
  ModelVolume& model = volumes_.emplace_back(ModelVolume{
      .name = std::move(name), .maybe_name = {}, .size_bytes = size_bytes, .content = content, .spots = {}});
  // Until it is there.
  model.maybe_absent = true;
  model.quiet = true;
  ++model.operations;
  pick_spots(model);
  return model;
}

void Run::pick_spots(ModelVolume& model) {
  const uint64_t clusters = model.size_bytes / cluster_bytes();
  model.spots = {0, clusters - 1};
  for (const uint64_t spot : {uint64_t{1}, uint64_t{255}, uint64_t{256}, uint64_t{65535}, below(clusters)}) {
    if (spot < clusters) model.spots.push_back(spot);
  }
  while (model.spots.size() < 8) model.spots.push_back(below(std::min<uint64_t>(clusters, 12)));
}

void Run::made(ModelVolume& model, const Operation& operation) {
  --model.operations;
  if (operation.result) {
    model.quiet = model.maybe_absent = false;
  } else if (is_unsure(operation)) {
    model.unsure = true;
  } else {
    std::erase_if(volumes_, [&](const ModelVolume& other) { return &other == &model; });
  }
}

void Run::create() {
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

void Run::snapshot() {
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

void Run::clone() {
  if (volumes_.size() >= kMaxVolumes) return;
  ModelVolume* source = pick([](const ModelVolume& at) { return idle(at) && at.readonly; });
  if (source == nullptr) return;
  ModelVolume& model = add_volume(new_name(), source->size_bytes, source->content);
  model.spots = source->spots;
  ++source->operations;
  begin(fmt::format("clone {} of {}", model.name, source->name), world_->store().clone(id_of(*source), model.name, {}),
        [this, &model, source](const Operation& operation) {
          --source->operations;
          made(model, operation);
        });
}

ModelVolume* Run::pick_closed(const std::function<bool(const ModelVolume&)>& fits) {
  ModelVolume* model = pick([&](const ModelVolume& at) { return idle(at) && !has_requests(at) && fits(at); });
  if (model == nullptr) return nullptr;
  model->quiet = true;
  ++model->operations;
  if (world_->has_bdev(model->name)) world_->close_bdev(model->name);
  return model;
}

void Run::remove() {
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

void Run::rename() {
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

void Run::resize() {
  ModelVolume* model = pick_closed([&](const ModelVolume& at) { return !at.readonly; });
  if (model == nullptr) return;
  const uint64_t before = model->size_bytes / cluster_bytes();
  const uint64_t clusters = chance(50) ? 1 + below(before) : before + below(chance(80) ? 10 : 300);
  const uint64_t size_bytes = clusters * cluster_bytes();
  model->maybe_size_bytes = size_bytes;
  if (clusters < before) {
    const uint64_t first = size_bytes / block_bytes();
    model->content.maybe_set({.first = first, .count = model->size_bytes / block_bytes() - first}, CrashModel::kZeroes);
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

void Run::own() {
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

void Run::other() {
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

}  // namespace power_failure

}  // namespace sluice::lvol
