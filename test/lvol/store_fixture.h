// What tests of a store have in common.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lib/base/log.h"
#include "lib/bdev/bdev.h"
#include "test/lvol/lvol_world.h"

namespace sluice::lvol {

inline constexpr uint64_t kKiB = 1U << 10;
inline constexpr uint64_t kMiB = 1U << 20;

// A world, and a second copy of what each volume should hold.
class StoreTest : public testing::Test {
 protected:
  StoreTest() { set_log_print_level(LogLevel::kError); }

  void make(const WorldOptions& options) { world_ = std::make_unique<LvolWorld>(options); }
  LvolWorld& world() { return *world_; }

  void create(const std::string& name, uint64_t size_bytes, bool thin = true) {
    world().create(name, size_bytes, thin);
    content_[name].assign(world().find(name)->record->size_bytes, std::byte{0});
  }
  void snapshot(const std::string& of, const std::string& name) {
    world().snapshot(of, name);
    content_[name] = content_[of];
  }
  void clone(const std::string& of, const std::string& name) {
    world().clone(of, name);
    content_[name] = content_[of];
  }
  void remove(const std::string& name) {
    ASSERT_TRUE(world().remove(name).has_value());
    content_.erase(name);
  }
  void write(const std::string& name, uint64_t offset_bytes, uint64_t length_bytes, size_t user = 0) {
    PageBuffer data(length_bytes, ++pattern_);
    ASSERT_EQ(world().write(name, offset_bytes, data.bytes(), user), IoStatus::kOk);
    std::ranges::copy(data.bytes(), content_[name].begin() + static_cast<std::ptrdiff_t>(offset_bytes));
  }
  void zero(const std::string& name, uint64_t offset_bytes, uint64_t length_bytes) {
    std::ranges::fill(std::span(content_[name]).subspan(offset_bytes, length_bytes), std::byte{0});
  }
  // All of the volume is as it should be.
  void expect_content(const std::string& name) {
    PageBuffer found(content_[name].size(), 99);
    ASSERT_EQ(world().read(name, 0, found.bytes()), IoStatus::kOk);
    const auto differs = std::ranges::mismatch(found.bytes(), content_[name]);
    EXPECT_EQ(differs.in1 - found.bytes().begin(), static_cast<std::ptrdiff_t>(content_[name].size())) << name;
  }
  void expect_all() {
    for (const auto& [name, content] : content_) expect_content(name);
    EXPECT_THAT(world().findings(), testing::IsEmpty());
  }
  void reopen() {
    world().close();
    ASSERT_TRUE(world().open().has_value());
  }
  void cut_and_reopen(CutMode mode = CutMode::kNothing) {
    world().cut(mode);
    ASSERT_TRUE(world().open().has_value());
  }
  // Changes a byte of the disk.
  void damage(uint64_t offset_bytes) {
    const uint64_t block = offset_bytes / 512 * 512;
    std::vector<std::byte> bytes(512);
    std::ranges::copy(world().disk().bytes().subspan(block, bytes.size()), bytes.begin());
    bytes[offset_bytes - block] ^= std::byte{1};
    world().disk().put(block, bytes);
  }
  uint32_t free_clusters() { return world().store().usage().free_clusters; }
  void checkpoint() { ASSERT_TRUE(world().await(world().store().checkpoint()).has_value()); }

  std::unique_ptr<LvolWorld> world_;
  std::map<std::string, std::vector<std::byte>> content_;
  uint32_t pattern_ = 0;
};

}  // namespace sluice::lvol
