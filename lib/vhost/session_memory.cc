// Session: the messages about the guest's memory.
#include <cstring>

#include "lib/vhost/session.h"

namespace sluice::vhost {

Task<> Session::set_memory(MemoryMap map) {
  budget_ = 0;
  co_await for_each_queue([](BlkQueue& queue) { return queue.room_for_a_map(); });
  memory_ = std::make_shared<const MemoryMap>(std::move(map));
  co_await for_each_queue([this](BlkQueue& queue) { queue.move_to(memory_); });
}

Task<Session::Outcome> Session::set_mem_table(WireMessage& message) {
  const uint32_t count = payload_of<MemTableHeader>(message).num_regions;
  const bool slots = (protocol_features_ & kProtocolConfigureMemSlots) != 0;
  if (count > (slots ? kMaxRegions : kMaxRegionsBaseline))
    co_return Outcome{.result = fail(EINVAL, "a memory table has too many regions")};
  // Bytes after the last region do not matter: UML always sends room for two.
  if (message.payload.size() < mem_table_size(count))
    co_return Outcome{.result = fail(EINVAL, "a memory table is shorter than it says")};
  if (message.fds.size() != count)
    co_return Outcome{.result = fail(EINVAL, "a memory table needs one descriptor for each region")};
  MemoryMap map;
  for (uint32_t i = 0; i < count; ++i) {
    MemoryRegion region;
    std::memcpy(&region, message.payload.data() + mem_table_size(i), sizeof(region));
    auto with = map.with(region, message.fds[i], *memory_, device_.any_memory_file());
    if (!with) co_return Outcome{.result = std::unexpected(with.error())};
    map = std::move(*with);
  }
  co_await set_memory(std::move(map));
  co_await update_all();
  co_return Outcome{};
}

Task<Session::Outcome> Session::add_mem_reg(WireMessage& message) {
  if ((protocol_features_ & kProtocolConfigureMemSlots) == 0)
    co_return Outcome{.result = fail(EINVAL, "CONFIGURE_MEM_SLOTS was not negotiated")};
  if (message.fds.size() != 1) co_return Outcome{.result = fail(EINVAL, "a memory region needs one descriptor")};
  auto with = memory_->with(payload_of<SingleMemoryRegion>(message).region, message.fds[0], *memory_,
                            device_.any_memory_file());
  if (!with) co_return Outcome{.result = std::unexpected(with.error())};
  co_await set_memory(std::move(*with));
  co_await update_all();
  co_return Outcome{};
}

Task<Session::Outcome> Session::rem_mem_reg(WireMessage& message) {
  if ((protocol_features_ & kProtocolConfigureMemSlots) == 0)
    co_return Outcome{.result = fail(EINVAL, "CONFIGURE_MEM_SLOTS was not negotiated")};
  auto without = memory_->without(payload_of<SingleMemoryRegion>(message).region);
  if (!without) co_return Outcome{.result = std::unexpected(without.error())};
  co_await set_memory(std::move(*without));
  co_return Outcome{};
}

}  // namespace sluice::vhost
