#include "test/lvol/lvol_world.h"

#include <fmt/format.h>

#include "lib/bdev/bdev.h"
#include "lib/lvol/volume_bdev.h"

namespace sluice::lvol {
namespace {

constexpr const char* kBase = "base";
constexpr uint64_t kTurnNs = 2 * kNsPerUs;

}  // namespace

LvolWorld::LvolWorld(const WorldOptions& options)
    : options_(options),
      disk_({.size_bytes = options.size_bytes, .block_bytes = options.block_bytes, .seed = options.seed}),
      disk_bytes_(options.disk_bytes == 0 ? options.size_bytes : options.disk_bytes) {
  make_world();
  const Result<> formatted =
      await(Store::format(base_->channel(), {.name = "store", .cluster_bytes = options.cluster_bytes}));
  CHECK(formatted.has_value());
  end_world();
  CHECK(open().has_value());
}

LvolWorld::~LvolWorld() {
  if (is_open()) close();
}

// --- Opening and closing ---

LwThread& LvolWorld::make_thread(const std::string& name) {
  const Result<LwThread*> made =
      hosts().on(app(), [&] { return world_->threads.create(name, world_->threads.all_cpus()); });
  CHECK(made.has_value());
  return **made;
}

void LvolWorld::make_world() {
  world_ = std::make_unique<BdevWorld>(1 + options_.users);
  // Each time another one, or everything would go as before.
  if (options_.shuffled) hosts().set_seed(options_.seed * 1000 + opened_);
  ++opened_;
  world_->add(std::make_unique<CrashDisk>(kBase, disk_, disk_bytes_));
  store_thread_ = &make_thread("lvol");
  for (size_t i = 0; i < options_.users; ++i) user_threads_.push_back(&make_thread(fmt::format("user{}", i)));
  base_ = std::make_unique<DiskUser>(*world_, kBase, *store_thread_);
}

void LvolWorld::end_world() {
  base_.reset();
  for (LwThread* thread : user_threads_) await_on(app(), world_->threads.destroy(*thread));
  user_threads_.clear();
  await_on(app(), world_->threads.destroy(*std::exchange(store_thread_, nullptr)));
  await_on(app(), world_->manager.remove_all());
  world_.reset();
}

Result<> LvolWorld::open() {
  CHECK(!is_open());
  make_world();
  auto loaded = await(Store::load(*store_thread_, base_->channel(), *this));
  if (!loaded) {
    end_world();
    disk_.power_on();
    return std::unexpected(loaded.error());
  }
  store_ = std::move(*loaded);
  return {};
}

void LvolWorld::close() {
  hosts().on(*store_thread_, [this] { store_->set_hold_when_full(false); });
  while (!volumes_.empty()) close_bdev(volumes_.begin()->first);
  await(store_->close());
  hosts().on(*store_thread_, [this] { store_.reset(); });
  end_world();
  was_cut_ = disk_.cut();
  disk_.power_on();
}

void LvolWorld::cut(CutMode mode) {
  if (!disk_.cut()) disk_.power_cut(mode);
  close();
}

// --- Time ---

bool LvolWorld::step(uint64_t limit_ns) {
  if (on_step) on_step();
  // Turns take some time: who waits by looking again and again sees what comes of it.
  hosts().advance(kTurnNs);
  vain_turns_ = hosts().turn() ? 0 : vain_turns_ + 1;
  // Pollers go cold in the turn after one that found nothing; in a shuffled world some hosts have no turn.
  if (vain_turns_ < (options_.shuffled ? 4 : 2)) return true;
  const uint64_t next_ns = std::min(hosts().next_deadline_ns(), limit_ns);
  if (next_ns == UINT64_MAX) return vain_turns_ < 100;
  if (next_ns > hosts().now_ns()) hosts().advance(next_ns - hosts().now_ns());
  return true;
}

bool LvolWorld::run_until(const std::function<bool()>& reached, uint64_t bound_ns) {
  const uint64_t limit_ns = hosts().now_ns() + bound_ns;
  while (!reached()) {
    if (hosts().now_ns() >= limit_ns || !step(limit_ns)) return reached();
  }
  return true;
}

void LvolWorld::run_for(uint64_t ns) {
  const uint64_t limit_ns = hosts().now_ns() + ns;
  while (hosts().now_ns() < limit_ns) std::ignore = step(limit_ns);
}

std::vector<std::string> LvolWorld::findings() {
  settle();
  return hosts().on(*store_thread_, [this] { return check(*store_); }).findings;
}

// --- Volumes ---

VolumeId LvolWorld::create(const std::string& name, uint64_t size_bytes, bool thin) {
  const Result<VolumeId> made = await(store_->create({.name = name, .size_bytes = size_bytes, .thin = thin}));
  CHECK(made.has_value());
  return *made;
}

VolumeId LvolWorld::snapshot(const std::string& of, const std::string& name) {
  const Result<VolumeId> made = await(store_->snapshot(id(of), name, {}));
  CHECK(made.has_value());
  return *made;
}

VolumeId LvolWorld::clone(const std::string& of, const std::string& name) {
  const Result<VolumeId> made = await(store_->clone(id(of), name, {}));
  CHECK(made.has_value());
  return *made;
}

Result<> LvolWorld::remove(const std::string& name) {
  if (volumes_.contains(name)) close_bdev(name);
  return await(store_->remove(id(name)));
}

Result<> LvolWorld::resize(const std::string& name, uint64_t size_bytes) {
  Bdev& changed = bdev(name);
  const auto set_size = [&](uint64_t bytes) { hosts().on(app(), [&] { world_->manager.set_size(changed, bytes); }); };
  if (size_bytes < changed.size_bytes()) set_size(size_bytes);
  const Result<> resized = await(store_->resize(id(name), size_bytes));
  set_size(find(name)->record->size_bytes);
  return resized;
}

Bdev& LvolWorld::bdev(const std::string& name) {
  const auto found = volumes_.find(name);
  if (found != volumes_.end()) return *found->second.bdev;
  Volume* volume = find(name);
  CHECK(volume != nullptr);
  Bdev& base = base_->bdev();
  Open open{.bdev = &world_->add(make_volume_bdev(*store_, *volume, *volume->record, "store", base, nullptr)),
            .users = {}};
  for (LwThread* thread : user_threads_) {
    open.users.push_back(std::make_unique<DiskUser>(*world_, open.bdev->name(), *thread, !open.bdev->readonly()));
  }
  return *volumes_.emplace(name, std::move(open)).first->second.bdev;
}

void LvolWorld::close_bdev(const std::string& name) {
  const auto found = volumes_.find(name);
  CHECK(found != volumes_.end());
  // Requests in flight end first; with the power gone they do so with an error.
  for (const auto& user : found->second.users) {
    CHECK(run_until([&user] { return user->channel().in_flight() == 0; }));
  }
  found->second.users.clear();
  CHECK(await_on(app(), world_->manager.remove(*found->second.bdev, RemoveMode::kIfUnused)).has_value());
  volumes_.erase(found);
}

DiskUser& LvolWorld::user(const std::string& name, size_t user) {
  bdev(name);
  return *volumes_.at(name).users[user];
}

void LvolWorld::grow_disk() {
  disk_bytes_ = disk_.size_bytes();
  hosts().on(app(), [this] { world_->manager.set_size(base_->bdev(), disk_bytes_); });
}

IoStatus LvolWorld::finish(const TestIo& io) {
  CHECK(run_until([&io] { return io.done; }));
  return io.status;
}

IoStatus LvolWorld::run(const std::string& name, TestIo& io, size_t user_index) {
  user(name, user_index).submit(io);
  return finish(io);
}

IoStatus LvolWorld::read(const std::string& name, uint64_t offset_bytes, std::span<std::byte> into, size_t user_index) {
  TestIo io(IoType::kRead, offset_bytes, {into});
  return run(name, io, user_index);
}

IoStatus LvolWorld::write(const std::string& name, uint64_t offset_bytes, std::span<std::byte> from,
                          size_t user_index) {
  TestIo io(IoType::kWrite, offset_bytes, {from});
  return run(name, io, user_index);
}

IoStatus LvolWorld::flush(const std::string& name, size_t user_index) {
  TestIo io(IoType::kFlush, 0, uint64_t{0});
  return run(name, io, user_index);
}

IoStatus LvolWorld::discard(const std::string& name, uint64_t offset_bytes, uint64_t length_bytes) {
  TestIo io(IoType::kDiscard, offset_bytes, length_bytes);
  return run(name, io);
}

IoStatus LvolWorld::write_zeroes(const std::string& name, uint64_t offset_bytes, uint64_t length_bytes) {
  TestIo io(IoType::kWriteZeroes, offset_bytes, length_bytes);
  io.may_unmap = true;
  return run(name, io);
}

}  // namespace sluice::lvol
