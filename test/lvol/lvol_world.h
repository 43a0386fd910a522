// LvolWorld: what a test of volumes needs around it: hosts, a CrashDisk, a store on a lightweight thread of its own,
// and its volumes as bdevs, with users on threads of theirs. Time is virtual: it passes when there is nothing to do.
//
//   LvolWorld world({.cluster_bytes = 64U << 10});         // formatted, and loaded
//   world.create("a", 1U << 20);
//   EXPECT_EQ(world.write("a", 0, bytes), IoStatus::kOk);  // through the first user's thread
//   ASSERT_TRUE(world.await(world.store().snapshot(world.id("a"), "s", {})));
//   world.cut(CutMode::kNothing);                          // the power fails
//   ASSERT_TRUE(world.open());
//
// Thread: one OS thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lib/lvol/check.h"
#include "lib/lvol/store.h"
#include "test/lvol/crash_disk.h"
#include "test/support/disk_user.h"

namespace sluice::lvol {

struct WorldOptions {
  uint64_t size_bytes = 32U << 20;
  uint32_t block_bytes = 512;
  uint64_t cluster_bytes = 64U << 10;
  uint64_t seed = 1;
  size_t users = 2;         // threads of users, each on a host of its own
  bool shuffled = false;    // the seed decides who has a turn
  uint64_t disk_bytes = 0;  // that the disk has at first; 0: all
};

class LvolWorld final : public StoreEvents {
 public:
  explicit LvolWorld(const WorldOptions& options);
  // Closes what is open.
  ~LvolWorld() override;

  // Makes hosts, disk and threads, and loads the store. Errors: those of Store::load(); nothing is open then.
  Result<> open();
  // Closes volumes, store and disk, and destroys the hosts. Writes that wait for space fail. The power is on again
  // then, and nothing is going to fail.
  void close();
  bool is_open() const { return store_ != nullptr; }
  // Whether the power had failed when it was closed last.
  bool was_cut() const { return was_cut_; }
  // The power fails; then as close().
  void cut(CutMode mode);

  CrashStore& disk() { return disk_; }
  bool has_hosts() const { return world_ != nullptr; }
  ManualHosts& hosts() { return world_->hosts; }
  Store& store() { return *store_; }
  LwThread& store_thread() { return *store_thread_; }

  // One turn of the hosts; or, when they have nothing to do, time passes to the next timer, or to `limit_ns`.
  // False: nothing will ever happen.
  bool step(uint64_t limit_ns = UINT64_MAX);
  // Called in each step, before the turn.
  std::function<void()> on_step;
  // False: it does not come to pass.
  [[nodiscard]] bool run_until(const std::function<bool()>& reached, uint64_t bound_ns = 600 * kNsPerSec);
  void run_for(uint64_t ns);
  // Runs the task on the store's thread to its end. Requires: it ends (checked).
  template <typename T>
  T await(Task<T> task) {
    return await_on(*store_thread_, std::move(task));
  }
  template <typename T>
  T await_on(LwThread& thread, Task<T> task);
  void settle() { await(store_->settle()); }
  // Settles, and returns what check() has found.
  std::vector<std::string> findings();

  // --- Volumes, by name ---

  // Requires: that can be done (checked).
  VolumeId create(const std::string& name, uint64_t size_bytes, bool thin = true);
  VolumeId snapshot(const std::string& of, const std::string& name);
  VolumeId clone(const std::string& of, const std::string& name);
  // Closes its bdev, and deletes it.
  Result<> remove(const std::string& name);
  // Also of its bdev.
  Result<> resize(const std::string& name, uint64_t size_bytes);
  Volume* find(const std::string& name) { return store_->volumes().find(name); }
  VolumeId id(const std::string& name) { return find(name)->id(); }

  // The volume's bdev: made on first use, with a channel of each user.
  Bdev& bdev(const std::string& name);
  bool has_bdev(const std::string& name) const { return volumes_.contains(name); }
  // Ends it, when what is in flight has completed.
  void close_bdev(const std::string& name);
  DiskUser& user(const std::string& name, size_t user = 0);
  // The disk has all its bytes from now on.
  void grow_disk();

  IoStatus finish(const TestIo& io);
  IoStatus run(const std::string& name, TestIo& io, size_t user = 0);
  IoStatus read(const std::string& name, uint64_t offset_bytes, std::span<std::byte> into, size_t user = 0);
  IoStatus write(const std::string& name, uint64_t offset_bytes, std::span<std::byte> from, size_t user = 0);
  IoStatus flush(const std::string& name, size_t user = 0);
  IoStatus discard(const std::string& name, uint64_t offset_bytes, uint64_t length_bytes);
  IoStatus write_zeroes(const std::string& name, uint64_t offset_bytes, uint64_t length_bytes);

  // --- StoreEvents ---

  void on_no_space(bool waits) override {
    ++(waits ? held : refused);
    if (when_full) when_full();
  }
  void on_usage(uint32_t percent, bool above) override { crossed.push_back({.percent = percent, .above = above}); }
  void on_failed(const Error&) override {
    if (!disk_.cut()) ++failures;
  }
  std::function<void()> when_full;
  int held = 0;
  int refused = 0;
  int failures = 0;  // with the power on
  std::vector<UsageWatch::Crossing> crossed;

 private:
  struct Open {
    Bdev* bdev;
    std::vector<std::unique_ptr<DiskUser>> users;
  };

  LwThread& app() { return world_->app(); }
  LwThread& make_thread(const std::string& name);
  void make_world();
  void end_world();

  const WorldOptions options_;
  CrashStore disk_;
  uint64_t disk_bytes_;
  uint64_t opened_ = 0;
  bool was_cut_ = false;
  std::unique_ptr<BdevWorld> world_;
  LwThread* store_thread_ = nullptr;
  std::vector<LwThread*> user_threads_;
  std::unique_ptr<DiskUser> base_;
  std::unique_ptr<Store> store_;
  std::map<std::string, Open> volumes_;
  int vain_turns_ = 0;
};

template <typename T>
T LvolWorld::await_on(LwThread& thread, Task<T> task) {
  std::optional<std::conditional_t<std::is_void_v<T>, bool, T>> result;
  hosts().on(thread, [&] {
    if constexpr (std::is_void_v<T>) {
      start(std::move(task), [&result] { result = true; });
    } else {
      start(std::move(task), [&result](T value) { result.emplace(std::move(value)); });
    }
  });
  CHECK(run_until([&result] { return result.has_value(); }));
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

}  // namespace sluice::lvol
