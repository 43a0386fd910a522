#include "app/conformance/ring_driver.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstring>

namespace sluice::test {
namespace {

using vhost::SplitDesc;

UniqueFd make_eventfd() { return UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }

uint16_t load(uint16_t* field) { return std::atomic_ref(*field).load(std::memory_order_acquire); }
void store(uint16_t* field, uint16_t value) { std::atomic_ref(*field).store(value, std::memory_order_release); }

}  // namespace

void RingPosition::advance(uint32_t count, uint16_t size) {
  const uint32_t next = offset + count;
  if (next >= size) wrap = !wrap;
  offset = static_cast<uint16_t>(next % size);
}

uint32_t RingPosition::since(RingPosition earlier, uint16_t size) const {
  const auto linear = [size](RingPosition place) { return place.offset + (place.wrap ? 0U : size); };
  return (linear(*this) + 2U * size - linear(earlier)) % (2U * size);
}

// The rings of both kinds lie in the same places: the driver's event structure where a split ring has its available
// ring, the device's where the used ring is.
RingDriver::RingDriver(GuestMemory& memory, const Options& options)
    : memory_(memory),
      size_(options.size),
      packed_(options.packed),
      event_idx_(options.event_idx),
      region_(std::min(options.region, memory.regions().size() - 1)),
      kick_(make_eventfd()),
      call_(make_eventfd()),
      err_(make_eventfd()) {
  desc_ = memory_.allocate(region_, vhost::split_desc_bytes(size_), vhost::kSplitDescAlignment);
  avail_ = memory_.allocate(region_, vhost::split_avail_bytes(size_),
                            packed_ ? vhost::kPackedEventAlignment : vhost::kSplitAvailAlignment);
  used_ = memory_.allocate(region_, vhost::split_used_bytes(size_), vhost::kSplitUsedAlignment);
  reset(options.start_index);
}

void RingDriver::reset(uint16_t start_index) {
  std::memset(memory_.at(desc_, vhost::split_desc_bytes(size_)), 0, vhost::split_desc_bytes(size_));
  std::memset(memory_.at(avail_, vhost::split_avail_bytes(size_)), 0, vhost::split_avail_bytes(size_));
  std::memset(memory_.at(used_, vhost::split_used_bytes(size_)), 0, vhost::split_used_bytes(size_));
  free_.clear();
  for (uint16_t i = size_; i-- > 0;) free_.push_back(i);
  chains_.clear();
  avail_idx_ = kicked_idx_ = last_used_ = start_index;
  violation_.clear();
  if (packed_) {
    reset_packed();
    return;
  }
  store(avail_index_field(), start_index);
  store(used_index_field(), start_index);
  // A ring in the middle of its life: the device before this one wanted to be told of the next buffer.
  if (event_idx_) store(memory_.as<uint16_t>(used_ + vhost::split_avail_event_offset(size_)), start_index);
  suppress_calls();
}

// As if `avail_idx_` descriptors had been used in it before.
void RingDriver::reset_packed() {
  offered_ = taken_ = {};
  free_places_ = size_;
  unpublished_.clear();
  unkicked_ = 0;
  offered_.advance(avail_idx_ % size_, size_);
  if (avail_idx_ / size_ % 2 == 1) offered_.wrap = !offered_.wrap;
  taken_ = offered_;
  for (uint16_t i = 0; i < size_; i++) {
    const bool used_with_one = (i < offered_.offset) == offered_.wrap;
    const uint16_t flags = used_with_one ? vhost::kPackedDescAvail | vhost::kPackedDescUsed : 0;
    const vhost::PackedDesc desc{.flags = flags};
    std::memcpy(memory_.at(desc_ + i * sizeof(desc), sizeof(desc)), &desc, sizeof(desc));
  }
  suppress_calls();
}

uint32_t RingDriver::base() const { return packed_ ? offered_.encoded() * 0x10001U : avail_idx_; }

vhost::VringAddr RingDriver::vring_addr(uint32_t index) const {
  return {.index = index,
          .desc = memory_.user_address(desc_),
          .used = memory_.user_address(used_),
          .avail = memory_.user_address(avail_)};
}

void RingDriver::renew_call_fd() { call_ = make_eventfd(); }
void RingDriver::renew_kick_fd() { kick_ = make_eventfd(); }

uint16_t* RingDriver::avail_index_field() const { return memory_.as<uint16_t>(avail_ + 2); }
uint16_t* RingDriver::used_index_field() const { return memory_.as<uint16_t>(used_ + 2); }
uint16_t* RingDriver::avail_entry(size_t index) const {
  return memory_.as<uint16_t>(avail_ + sizeof(vhost::SplitAvail) + 2 * (index % size_));
}

// ---- Adding buffers

uint16_t RingDriver::take_descriptor() {
  uint16_t index = free_.back();
  free_.pop_back();
  return index;
}

void RingDriver::set_desc(uint16_t index, const SplitDesc& desc) {
  std::memcpy(memory_.at(desc_ + index * sizeof(SplitDesc), sizeof(SplitDesc)), &desc, sizeof(desc));
}

uint16_t RingDriver::link(std::span<const SplitDesc> descs) {
  std::vector<uint16_t> indices;
  for (size_t i = 0; i < descs.size(); i++) indices.push_back(take_descriptor());
  for (size_t i = 0; i < descs.size(); i++) {
    SplitDesc desc = descs[i];
    if (i + 1 < descs.size()) {
      desc.flags |= vhost::kDescNext;
      desc.next = indices[i + 1];
    }
    set_desc(indices[i], desc);
  }
  uint16_t head = indices.front();
  chains_[head] = std::move(indices);
  publish_head(head);
  return head;
}

// ---- Packed rings

const vhost::PackedDesc& RingDriver::packed_desc(uint16_t offset) const {
  return *memory_.as<vhost::PackedDesc>(desc_ + offset * sizeof(vhost::PackedDesc));
}

void RingDriver::add_raw(std::span<const vhost::PackedDesc> descs) {
  for (size_t i = 0; i < descs.size(); i++) {
    vhost::PackedDesc desc = descs[i];
    desc.flags |= offered_.wrap ? vhost::kPackedDescAvail : vhost::kPackedDescUsed;
    const uint16_t flags = desc.flags;
    // The first one makes them all available: later.
    if (i == 0) {
      unpublished_.push_back({.offset = offered_.offset, .flags = flags});
      desc.flags = packed_desc(offered_.offset).flags;
    }
    std::memcpy(memory_.at(desc_ + offered_.offset * sizeof(desc), sizeof(desc)), &desc, sizeof(desc));
    offered_.advance(1, size_);
  }
  unkicked_ += static_cast<uint32_t>(descs.size());
}

uint16_t RingDriver::link_packed(std::span<const Segment> segments, uint16_t first_flags) {
  const uint16_t id = take_descriptor();
  std::vector<vhost::PackedDesc> descs;
  for (const auto& segment : segments) {
    const auto flags = static_cast<uint16_t>(vhost::kDescNext | (segment.writable ? vhost::kDescWrite : 0));
    // The id counts in the last descriptor only.
    descs.push_back({.addr = segment.gpa, .len = segment.len, .id = 0xbad, .flags = flags});
  }
  descs.front().flags |= first_flags;
  descs.back().id = id;
  descs.back().flags &= static_cast<uint16_t>(~vhost::kDescNext);
  add_raw(descs);
  chains_[id] = std::vector<uint16_t>(descs.size());
  free_places_ = static_cast<uint16_t>(free_places_ - descs.size());
  avail_idx_++;
  return id;
}

bool RingDriver::is_used(RingPosition place) const {
  const uint16_t flags = std::atomic_ref(const_cast<uint16_t&>(packed_desc(place.offset).flags)).load();
  return ((flags & vhost::kPackedDescAvail) != 0) == place.wrap &&
         ((flags & vhost::kPackedDescUsed) != 0) == place.wrap;
}

std::optional<vhost::SplitUsedElem> RingDriver::poll_packed() {
  if (!is_used(taken_)) return std::nullopt;
  const vhost::PackedDesc desc = packed_desc(taken_.offset);
  const vhost::SplitUsedElem elem{.id = desc.id, .len = desc.len};
  const auto chain = chains_.find(desc.id);
  if (chain == chains_.end()) {
    violation_ = "a used descriptor names id " + std::to_string(desc.id) + ", which the device does not have";
    return elem;
  }
  if ((desc.flags & vhost::kDescWrite) == 0) violation_ = "a used descriptor says that nothing was written";
  last_used_++;
  taken_.advance(static_cast<uint32_t>(chain->second.size()), size_);
  free_places_ = static_cast<uint16_t>(free_places_ + chain->second.size());
  free_.push_back(desc.id);
  chains_.erase(chain);
  return elem;
}

void RingDriver::set_driver_event(vhost::PackedEvent event) {
  std::atomic_ref(*memory_.as<uint32_t>(avail_)).store(std::bit_cast<uint32_t>(event));
}

vhost::PackedEvent RingDriver::device_event() const {
  return std::bit_cast<vhost::PackedEvent>(std::atomic_ref(*memory_.as<uint32_t>(used_)).load());
}

// ---- Both

static SplitDesc desc_of(const Segment& segment) {
  return {.addr = segment.gpa, .len = segment.len, .flags = segment.writable ? vhost::kDescWrite : uint16_t{0}};
}

uint16_t RingDriver::add_chain(std::span<const Segment> segments) {
  if (packed_) return link_packed(segments);
  std::vector<SplitDesc> descs;
  for (const auto& segment : segments) descs.push_back(desc_of(segment));
  return link(descs);
}

uint16_t RingDriver::add_indirect(std::span<const Segment> segments, size_t direct, uint16_t flags) {
  if (packed_) {
    // In a packed ring, a table is all of its chain.
    const uint64_t table = memory_.allocate(region_, segments.size() * sizeof(vhost::PackedDesc), 16);
    for (size_t i = 0; i < segments.size(); i++) {
      const vhost::PackedDesc desc{.addr = segments[i].gpa,
                                   .len = segments[i].len,
                                   .flags = segments[i].writable ? vhost::kDescWrite : uint16_t{0}};
      std::memcpy(memory_.at(table + i * sizeof(desc), sizeof(desc)), &desc, sizeof(desc));
    }
    const Segment whole{.gpa = table, .len = static_cast<uint32_t>(segments.size() * sizeof(vhost::PackedDesc))};
    return link_packed(std::span(&whole, 1), flags);
  }
  std::vector<SplitDesc> descs;
  for (const auto& segment : segments.first(direct)) descs.push_back(desc_of(segment));
  auto rest = segments.subspan(direct);
  uint64_t table = memory_.allocate(region_, rest.size() * sizeof(SplitDesc), 16);
  for (size_t i = 0; i < rest.size(); i++) {
    SplitDesc desc = desc_of(rest[i]);
    if (i + 1 < rest.size()) {
      desc.flags |= vhost::kDescNext;
      desc.next = static_cast<uint16_t>(i + 1);
    }
    std::memcpy(memory_.at(table + i * sizeof(SplitDesc), sizeof(SplitDesc)), &desc, sizeof(desc));
  }
  descs.push_back({.addr = table, .len = static_cast<uint32_t>(rest.size() * sizeof(SplitDesc)), .flags = flags});
  return link(descs);
}

void RingDriver::publish_head(uint16_t head) {
  *avail_entry(avail_idx_) = head;
  avail_idx_++;
}

void RingDriver::publish() {
  if (!packed_) store(avail_index_field(), avail_idx_);
  for (const Head& head : unpublished_) {
    store(memory_.as<uint16_t>(desc_ + head.offset * sizeof(vhost::PackedDesc) + offsetof(vhost::PackedDesc, flags)),
          head.flags);
  }
  unpublished_.clear();
}

void RingDriver::set_avail_idx(uint16_t idx) {
  avail_idx_ = idx;
  publish();
}

// ---- Notifying

uint16_t RingDriver::avail_event() const {
  return load(memory_.as<uint16_t>(used_ + vhost::split_avail_event_offset(size_)));
}

bool RingDriver::kick_needed() const {
  // The device must see the new avail index, or we its wish to be told: a full barrier between our store and this load.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (packed_) {
    const vhost::PackedEvent event = device_event();
    if (event.flags != vhost::kPackedEventDesc) return event.flags != vhost::kPackedEventDisable;
    const RingPosition named{.offset = static_cast<uint16_t>(event.off_wrap & ~vhost::kPackedWrapBit),
                             .wrap = (event.off_wrap & vhost::kPackedWrapBit) != 0};
    // Among what was made available since the last kick.
    const uint32_t back = offered_.since(named, size_);
    return back > 0 && back <= unkicked_;
  }
  if (event_idx_) return vhost::need_event(avail_event(), avail_idx_, kicked_idx_);
  return (load(memory_.as<uint16_t>(used_)) & vhost::kUsedNoNotify) == 0;
}

void RingDriver::kick() {
  if (kick_needed()) kick_always();
  kicked_idx_ = avail_idx_;
  unkicked_ = 0;
}

void RingDriver::kick_always() {
  uint64_t one = 1;
  [[maybe_unused]] ssize_t n = ::write(kick_.get(), &one, sizeof(one));
  kicked_idx_ = avail_idx_;
  unkicked_ = 0;
}

// ---- Waiting

uint16_t RingDriver::used_idx() const {
  if (!packed_) return load(used_index_field());
  uint16_t used = last_used_;
  RingPosition place = taken_;
  for (size_t i = 0; i < chains_.size() && is_used(place); i++, used++) {
    const auto chain = chains_.find(packed_desc(place.offset).id);
    if (chain == chains_.end()) break;
    place.advance(static_cast<uint32_t>(chain->second.size()), size_);
  }
  return used;
}

void RingDriver::set_used_event(uint16_t event) {
  store(memory_.as<uint16_t>(avail_ + vhost::split_used_event_offset(size_)), event);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void RingDriver::set_avail_flags(uint16_t flags) {
  store(memory_.as<uint16_t>(avail_), flags);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void RingDriver::enable_calls() {
  if (packed_) {
    set_driver_event(event_idx_ ? vhost::PackedEvent{.off_wrap = taken_.encoded(), .flags = vhost::kPackedEventDesc}
                                : vhost::PackedEvent{.off_wrap = 0, .flags = vhost::kPackedEventEnable});
  } else if (event_idx_) {
    set_used_event(last_used_);
  } else {
    set_avail_flags(0);
  }
}

void RingDriver::suppress_calls() {
  if (packed_) {
    set_driver_event({.off_wrap = 0, .flags = vhost::kPackedEventDisable});
  } else if (event_idx_) {
    set_used_event(static_cast<uint16_t>(last_used_ - 1));
  } else {
    set_avail_flags(vhost::kAvailNoInterrupt);
  }
}

uint64_t RingDriver::drain_call() {
  uint64_t count = 0;
  return ::read(call_.get(), &count, sizeof(count)) == sizeof(count) ? count : 0;
}

bool RingDriver::err_signalled(int timeout_ms) const { return wait_for(err_.get(), POLLIN, Deadline(timeout_ms)) != 0; }

std::optional<vhost::SplitUsedElem> RingDriver::poll_used() {
  if (packed_) return poll_packed();
  uint16_t idx = used_idx();
  if (idx == last_used_) return std::nullopt;
  if (static_cast<uint16_t>(idx - last_used_) > size_) {
    violation_ = "used index " + std::to_string(idx) + " is more than a ring ahead of " + std::to_string(last_used_);
    return std::nullopt;
  }
  vhost::SplitUsedElem elem;
  std::memcpy(
      &elem,
      memory_.at(used_ + sizeof(vhost::SplitUsed) + (last_used_ % size_) * sizeof(vhost::SplitUsedElem), sizeof(elem)),
      sizeof(elem));
  last_used_++;
  auto chain = elem.id < size_ ? chains_.find(static_cast<uint16_t>(elem.id)) : chains_.end();
  if (chain == chains_.end()) {
    violation_ = "used element names head " + std::to_string(elem.id) + ", which the device does not have";
  } else {
    free_.insert(free_.end(), chain->second.begin(), chain->second.end());
    chains_.erase(chain);
  }
  return elem;
}

std::optional<vhost::SplitUsedElem> RingDriver::wait_used(int timeout_ms, bool by_call) {
  Deadline deadline(timeout_ms);
  for (;;) {
    if (auto elem = poll_used()) return elem;
    if (!violation_.empty() || deadline.passed()) return std::nullopt;
    if (!by_call) {
      ::usleep(20);
      continue;
    }
    enable_calls();
    if (auto elem = poll_used()) return elem;
    if (wait_for(call_.get(), POLLIN, deadline) == 0) {
      if (used_idx() != last_used_) violation_ = "used buffers were published without the call that was asked for";
      return std::nullopt;
    }
    drain_call();
  }
}

}  // namespace sluice::test
