// ElasticPool<T>: the spare objects of type T of one host: grows on demand, and frees what is spare when nobody has
// taken any for a while. So devices that are idle hold no request and no buffer. Thread:    the host's OS thread.
// Ownership: owns the spare objects; a taken one belongs to its taker, who must give it back or delete it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "lib/base/clock.h"
#include "lib/thread/lw_thread.h"

namespace sluice {

template <typename T>
class ElasticPool final : public HostLocal {
 public:
  static constexpr uint64_t kIdleNs = kNsPerSec;

  // The host's pool of T.
  static ElasticPool& of(ThreadHost& host) {
    static constexpr char key = 0;
    return host.local<ElasticPool>(&key, [&host] { return std::unique_ptr<ElasticPool>(new ElasticPool(host)); });
  }

  // In the state in which it was given back, or new.
  std::unique_ptr<T> take() {
    used_ = true;
    if (spare_.empty()) return std::make_unique<T>();
    std::unique_ptr<T> object = std::move(spare_.back());
    spare_.pop_back();
    return object;
  }

  void give_back(std::unique_ptr<T> object) {
    spare_.push_back(std::move(object));
    if (!shrink_.armed()) shrink_.arm_at(host_.home(), host_.now_ns() + kIdleNs);
  }

  size_t spare() const { return spare_.size(); }

 private:
  explicit ElasticPool(ThreadHost& host) : host_(host), shrink_("elastic_pool", [this] { shrink(); }) {}

  void shrink() {
    if (std::exchange(used_, false)) {
      shrink_.arm_at(host_.home(), host_.now_ns() + kIdleNs);
    } else {
      std::vector<std::unique_ptr<T>>().swap(spare_);
    }
  }

  ThreadHost& host_;
  std::vector<std::unique_ptr<T>> spare_;
  bool used_ = false;
  Timer shrink_;
};

}  // namespace sluice
