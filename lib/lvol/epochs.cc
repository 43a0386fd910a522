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

void EpochReader::enter(EpochUse& use) {
  // An old number is harmless: it only holds things back for longer. Acquire: who sees a new number also sees the maps
  // as they were when the epoch before it ended, without what was taken out of them.
  use.epoch_ = epochs_.current_.load(std::memory_order_acquire);
  const bool first = uses_.empty();
  uses_.push_back(use);
  // With others in flight an epoch is published that is as old or older.
  if (!first) return;
  // Release, as in leave(): the owner that sees this value, not the one before, must see those uses as ended.
  oldest_.store(use.epoch_, std::memory_order_release);
  // With the one in Epochs::oldest(): either the owner sees the epoch, or what it had taken out by then is not found.
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void EpochReader::leave(EpochUse& use) {
  CHECK(use.linked());
  const bool first = &uses_.front() == &use;
  use.unlink();
  if (first) oldest_.store(uses_.empty() ? kNone : uses_.front().epoch_, std::memory_order_release);
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
