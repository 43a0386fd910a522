// Notifications: the last things that happened by themselves or by others, for clients that ask from time to time.
// Thread:    the application's lightweight thread.
// Ownership: values; unlinks itself from the manager at its end.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lib/bdev/bdev_manager.h"
#include "lib/lvol/stores.h"

namespace sluice::rpc {

class Notifications final : public BdevWatcher, public lvol::StoresEvents {
 public:
  // Older ones are forgotten.
  static constexpr size_t kKept = 1024;
  static constexpr std::array<std::string_view, 6> kTypes = {"bdev_register",          "bdev_unregister",
                                                             "lvol_store_no_space",    "lvol_store_failed",
                                                             "lvol_store_usage_above", "lvol_store_usage_below"};
  struct Notification {
    uint64_t id;  // counts from 0
    std::string_view type;
    std::string context;              // the name of what it happened to
    std::optional<uint32_t> percent;  // of lvol_store_usage_*: the threshold
  };

  // Those whose id is `first` at least, oldest first, `max` at most.
  std::vector<Notification> list(uint64_t first, uint64_t max) const;

 private:
  void on_added(Bdev& bdev) override { add(kTypes[0], bdev.name()); }
  void on_removing(Bdev& bdev) override { add(kTypes[1], bdev.name()); }
  void on_no_space(const std::string& store) override { add(kTypes[2], store); }
  void on_failed(const std::string& store) override { add(kTypes[3], store); }
  void on_usage(const std::string& store, uint32_t percent, bool above) override {
    add(kTypes[above ? 4 : 5], store, percent);
  }
  void add(std::string_view type, std::string context, std::optional<uint32_t> percent = {});

  std::deque<Notification> kept_;
  uint64_t next_id_ = 0;
};

}  // namespace sluice::rpc
