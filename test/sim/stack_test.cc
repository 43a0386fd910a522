// What the simulation has found, step by step: the target and a front end on its socket, in virtual time.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "lib/bdev/virtio/virtio_bdev.h"
#include "lib/vhost/target.h"
#include "test/bdev/test_disk.h"

namespace sluice::sim {
namespace {

class StackTest : public BdevTest {
 protected:
  StackTest() {
    std::string name = (std::filesystem::temp_directory_path() / "sluice-sim-XXXXXX").string();
    CHECK(::mkdtemp(name.data()) != nullptr);
    directory_ = name;
    target_ = std::make_unique<vhost::Target>(world_.threads, world_.manager,
                                              vhost::Target::Options{.socket_directory = directory_});
  }
  ~StackTest() override {
    world_.hosts.await(world_.app(), module_.detach_all(world_.manager));
    world_.hosts.await(world_.app(), target_->remove_all());
    std::filesystem::remove_all(directory_);
  }
  // The disk, a controller on the second host, and a front end.
  TestDisk& set_up() {
    TestDisk& disk = add();
    CpuMask mask;
    mask.set(1);
    CHECK(world_.hosts
              .await(world_.app(), target_->create_controller({.name = "c0", .bdev_name = "disk", .cpumask = mask}))
              .has_value());
    CHECK(world_.hosts
              .await(world_.app(), module_.attach(world_.manager, {.name = "f0", .socket_path = directory_ + "/c0"}))
              .has_value());
    return disk;
  }
  LwThread& controller_thread() {
    for (uint64_t id = 1;; ++id) {
      if (LwThread* thread = world_.threads.find(id); thread != nullptr && thread->name() == "vhost.c0") return *thread;
    }
  }

  std::string directory_;
  VirtioModule module_;
  std::unique_ptr<vhost::Target> target_;
};

// Otherwise a request would fail at the front end, and its buffer be written to later.
TEST_F(StackTest, ControllerThatIsRemovedFinishesItsRequestsBeforeTheFrontEndIsCutOff) {
  TestDisk& disk = set_up();
  disk.hold = true;
  {
    DiskUser user(world_, "f0");
    IoBuffer buffer = user.bdev().allocate_buffer(4096).value();
    fill_pattern(disk.data, 7);
    TestIo read(IoType::kRead, 0, {buffer.bytes()});
    user.submit(read);
    world_.hosts.run_until_idle();
    ASSERT_EQ(disk.held.size(), 1U);
    bool removed = false;
    world_.hosts.on(world_.app(),
                    [&] { start(target_->remove_controller("c0"), [&removed](Result<>) { removed = true; }); });
    world_.hosts.run_until_idle();
    EXPECT_FALSE(read.done);
    EXPECT_FALSE(removed);
    world_.hosts.on(controller_thread(), [&] { disk.let_go(); });
    world_.hosts.run_until_idle();
    EXPECT_TRUE(read.done);
    EXPECT_TRUE(removed);
  }
}

}  // namespace
}  // namespace sluice::sim
