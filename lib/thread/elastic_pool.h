// ElasticPool<T>: the spare objects of type T of one host: grows on demand, and shrinks to what was needed lately:
// every second it frees as many as were not needed in that second even at its peak. So devices that are idle hold no
// request and no buffer, and those that are not hold no memory of a burst of the past.
//
// Thread:    the host's OS thread.
// Ownership: owns the spare objects; a taken one belongs to its taker, who must give it back or delete it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "lib/base/clock.h"
#include "lib/thread/lw_thread.h"

namespace sluice {

template <typename T>
class ElasticPool final : public HostLocal {
 public:
  static constexpr uint64_t kIntervalNs = kNsPerSec;

  // The host's pool of T.
  static ElasticPool& of(ThreadHost& host) {
    static constexpr char key = 0;
    return host.local<ElasticPool>(&key, [&host] { return std::unique_ptr<ElasticPool>(new ElasticPool(host)); });
  }

  // In the state in which it was given back, or new.
  std::unique_ptr<T> take() {
    peak_ = std::max(peak_, ++taken_);
    if (spare_.empty()) return std::make_unique<T>();
    std::unique_ptr<T> object = std::move(spare_.back());
    spare_.pop_back();
    return object;
  }

  void give_back(std::unique_ptr<T> object) {
    --taken_;
    spare_.push_back(std::move(object));
    if (!shrink_.armed()) shrink_.arm_at(host_.home(), host_.now_ns() + kIntervalNs);
  }

  size_t spare() const { return spare_.size(); }

 private:
  explicit ElasticPool(ThreadHost& host) : host_(host), shrink_("elastic_pool", [this] { shrink(); }) {}

  void shrink() {
    // Objects that their takers have deleted count in both, and do not matter.
    const auto keep = static_cast<size_t>(peak_ - taken_);
    peak_ = taken_;
    if (spare_.size() > keep) {
      spare_.erase(spare_.begin(), spare_.end() - static_cast<std::ptrdiff_t>(keep));  // those at the end are warm
      spare_.shrink_to_fit();
    }
    if (!spare_.empty()) shrink_.arm_at(host_.home(), host_.now_ns() + kIntervalNs);
  }

  ThreadHost& host_;
  std::vector<std::unique_ptr<T>> spare_;
  int64_t taken_ = 0;
  int64_t peak_ = 0;  // of taken_, in this interval
  Timer shrink_;
};

}  // namespace sluice
