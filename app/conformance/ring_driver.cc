#include "app/conformance/ring_driver.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>

namespace sluice::test {
namespace {

using vhost::SplitDesc;

UniqueFd make_eventfd() { return UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }

uint16_t load(uint16_t* field) { return std::atomic_ref(*field).load(std::memory_order_acquire); }
void store(uint16_t* field, uint16_t value) { std::atomic_ref(*field).store(value, std::memory_order_release); }

}  // namespace

RingDriver::RingDriver(GuestMemory& memory, const Options& options)
    : memory_(memory),
      size_(options.size),
      event_idx_(options.event_idx),
      region_(std::min(options.region, memory.regions().size() - 1)),
      kick_(make_eventfd()),
      call_(make_eventfd()),
      err_(make_eventfd()) {
  desc_ = memory_.allocate(region_, vhost::split_desc_bytes(size_), vhost::kSplitDescAlignment);
  avail_ = memory_.allocate(region_, vhost::split_avail_bytes(size_), vhost::kSplitAvailAlignment);
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
  store(avail_index_field(), start_index);
  store(used_index_field(), start_index);
  // A ring in the middle of its life: the device before this one wanted to be told of the next buffer.
  if (event_idx_) store(memory_.as<uint16_t>(used_ + vhost::split_avail_event_offset(size_)), start_index);
  violation_.clear();
  suppress_calls();
}

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

static SplitDesc desc_of(const Segment& segment) {
  return {.addr = segment.gpa, .len = segment.len, .flags = segment.writable ? vhost::kDescWrite : uint16_t{0}};
}

uint16_t RingDriver::add_chain(std::span<const Segment> segments) {
  std::vector<SplitDesc> descs;
  for (const auto& segment : segments) descs.push_back(desc_of(segment));
  return link(descs);
}

uint16_t RingDriver::add_indirect(std::span<const Segment> segments, size_t direct, uint16_t flags) {
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

void RingDriver::publish() { store(avail_index_field(), avail_idx_); }

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
  if (event_idx_) return vhost::need_event(avail_event(), avail_idx_, kicked_idx_);
  return (load(memory_.as<uint16_t>(used_)) & vhost::kUsedNoNotify) == 0;
}

void RingDriver::kick() {
  if (kick_needed()) kick_always();
  kicked_idx_ = avail_idx_;
}

void RingDriver::kick_always() {
  uint64_t one = 1;
  [[maybe_unused]] ssize_t n = ::write(kick_.get(), &one, sizeof(one));
  kicked_idx_ = avail_idx_;
}

// ---- Waiting

uint16_t RingDriver::used_idx() const { return load(used_index_field()); }

void RingDriver::set_used_event(uint16_t event) {
  store(memory_.as<uint16_t>(avail_ + vhost::split_used_event_offset(size_)), event);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void RingDriver::set_avail_flags(uint16_t flags) {
  store(memory_.as<uint16_t>(avail_), flags);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void RingDriver::enable_calls() {
  if (event_idx_) {
    set_used_event(last_used_);
  } else {
    set_avail_flags(0);
  }
}

void RingDriver::suppress_calls() {
  if (event_idx_) {
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
