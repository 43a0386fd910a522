#include "lib/lvol/epochs.h"

#include <algorithm>

namespace sluice::lvol {

EpochReader::EpochReader(Epochs& epochs, const void* group) : epochs_(epochs), group_(group) {
  const std::scoped_lock lock(epochs_.mutex_);
  epochs_.readers_.push_back(this);
}

EpochReader::~EpochReader() {
  CHECK(uses_.empty());
  const std::scoped_lock lock(epochs_.mutex_);
  std::erase(epochs_.readers_, this);
}

void EpochReader::begin(uint64_t epoch) {
  const bool first = uses_.empty();
  uses_.push_back({.epoch = epoch, .count = 1});
  // With others in flight an epoch is published that is as old or older.
  if (!first) return;
  // Release, as in end(): the owner that sees this value, not the one before, must see those uses as ended.
  oldest_.store(epoch, std::memory_order_release);
  // With the one in Epochs::oldest(): either the owner sees the epoch, or what it had taken out by then is not found.
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void EpochReader::end(uint64_t epoch) {
  const auto uses = std::ranges::find(uses_, epoch, &Uses::epoch);
  CHECK(uses != uses_.end());
  if (--uses->count > 0) return;
  const bool first = uses == uses_.begin();
  uses_.erase(uses);
  if (first) oldest_.store(uses_.empty() ? kNone : uses_.front().epoch, std::memory_order_release);
}

Epochs::~Epochs() { CHECK(readers_.empty()); }

uint64_t Epochs::advance() {
  const uint64_t ended = current();
  current_.store(ended + 1, std::memory_order_release);
  return ended;
}

uint64_t Epochs::oldest_of(const void* group) const {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  uint64_t oldest = current();
  const std::scoped_lock lock(mutex_);
  for (const EpochReader* reader : readers_) {
    if (group != nullptr && reader->group_ != group) continue;
    oldest = std::min(oldest, reader->oldest_.load(std::memory_order_acquire));
  }
  return oldest;
}

}  // namespace sluice::lvol
