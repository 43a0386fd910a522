#include "rpc/notifications.h"

namespace sluice::rpc {

void Notifications::add(std::string_view type, std::string context, std::optional<uint32_t> percent) {
  if (kept_.size() == kKept) kept_.pop_front();
  kept_.push_back({.id = next_id_++, .type = type, .context = std::move(context), .percent = percent});
}

std::vector<Notifications::Notification> Notifications::list(uint64_t first, uint64_t max) const {
  std::vector<Notification> found;
  for (const Notification& notification : kept_) {
    if (notification.id >= first && found.size() < max) found.push_back(notification);
  }
  return found;
}

}  // namespace sluice::rpc
