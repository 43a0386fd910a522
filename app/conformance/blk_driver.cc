#include "app/conformance/blk_driver.h"

#include <algorithm>

namespace sluice::test {
namespace {

using vhost::BlkRequestType;
using vhost::BlkStatus;

// Around every piece of a request, to notice a device that writes too much.
constexpr size_t kGuard = 16;

std::vector<uint32_t> cut(size_t total, const std::vector<uint32_t>& lengths) {
  std::vector<uint32_t> pieces;
  for (uint32_t length : lengths) {
    if (total == 0) break;
    pieces.push_back(static_cast<uint32_t>(std::min<size_t>(length, total)));
    total -= pieces.back();
  }
  if (total > 0) pieces.push_back(static_cast<uint32_t>(total));
  return pieces;
}

}  // namespace

// Pieces of one request lie in different regions, turn by turn.
uint64_t BlkDriver::place(size_t size) {
  size_t region = next_region_++ % memory_.regions().size();
  if (memory_.regions()[region].size < (1U << 20) && memory_.regions().size() > 1)
    region = (region + 1) % memory_.regions().size();
  uint64_t gpa = memory_.allocate(region, size + 2 * kGuard, 1) + kGuard;
  memory_.write(gpa - kGuard, Bytes(size + 2 * kGuard, kUntouched));
  return gpa;
}

uint16_t BlkDriver::add(const Exchange& exchange) {
  if (pending_.empty()) mark_ = memory_.mark();
  Pending pending{.readable = exchange.readable};
  auto readable_split = exchange.readable_split;
  auto writable_split = exchange.writable_split;
  if (readable_split.empty()) readable_split = {sizeof(vhost::BlkRequestHeader)};
  if (writable_split.empty() && exchange.writable_size > 1)
    writable_split = {static_cast<uint32_t>(exchange.writable_size - 1)};
  size_t done = 0;
  for (uint32_t length : cut(exchange.readable.size(), readable_split)) {
    uint64_t gpa = place(length);
    memory_.write(gpa, std::span(exchange.readable).subspan(done, length));
    pending.segments.push_back({.gpa = gpa, .len = length});
    done += length;
  }
  for (uint32_t length : cut(exchange.writable_size, writable_split))
    pending.segments.push_back({.gpa = place(length), .len = length, .writable = true});
  uint16_t head = exchange.indirect
                      ? ring_.add_indirect(pending.segments, exchange.direct_before_indirect, exchange.table_flags)
                      : ring_.add_chain(pending.segments);
  pending_[head] = std::move(pending);
  return head;
}

void BlkDriver::reset(uint16_t start_index) {
  if (!pending_.empty()) memory_.release(mark_);
  pending_.clear();
  ring_.reset(start_index);
}

uint16_t BlkDriver::submit(const Exchange& exchange) {
  uint16_t head = add(exchange);
  ring_.publish();
  ring_.kick();
  return head;
}

std::optional<Outcome> BlkDriver::complete(int timeout_ms, bool by_call, uint16_t* head) {
  auto elem = ring_.wait_used(timeout_ms, by_call && by_call_);
  if (!elem) return std::nullopt;
  auto found = pending_.find(static_cast<uint16_t>(elem->id));
  if (elem->id >= ring_.size() || found == pending_.end()) return std::nullopt;
  if (head != nullptr) *head = found->first;
  Outcome outcome{.used_len = elem->len};
  Bytes readable;
  for (const auto& segment : found->second.segments) {
    Bytes content = memory_.read(segment.gpa, segment.len);
    auto& part = segment.writable ? outcome.writable : readable;
    part.insert(part.end(), content.begin(), content.end());
    Bytes guard(kGuard, kUntouched);
    outcome.intact = outcome.intact && memory_.read(segment.gpa - kGuard, kGuard) == guard &&
                     memory_.read(segment.gpa + segment.len, kGuard) == guard;
  }
  outcome.intact = outcome.intact && readable == found->second.readable;
  pending_.erase(found);
  if (pending_.empty()) memory_.release(mark_);
  return outcome;
}

std::optional<Outcome> BlkDriver::run(const Exchange& exchange, int timeout_ms) {
  submit(exchange);
  return complete(timeout_ms);
}

std::optional<BlkStatus> BlkDriver::status_of(const Exchange& exchange) {
  auto outcome = run(exchange);
  if (!outcome) return std::nullopt;
  return outcome->status();
}

std::optional<BlkStatus> BlkDriver::read(uint64_t sector, Bytes& data) {
  auto outcome = run(read_request(sector, data.size()));
  if (!outcome) return std::nullopt;
  data = outcome->data();
  return outcome->status();
}

std::optional<BlkStatus> BlkDriver::write(uint64_t sector, const Bytes& data) {
  return status_of(write_request(sector, data));
}

std::optional<BlkStatus> BlkDriver::flush() { return status_of(flush_request()); }

std::optional<BlkStatus> BlkDriver::discard(std::span<const vhost::BlkDiscardSegment> segments) {
  return status_of(segments_request(BlkRequestType::kDiscard, segments));
}

std::optional<BlkStatus> BlkDriver::write_zeroes(std::span<const vhost::BlkDiscardSegment> segments) {
  return status_of(segments_request(BlkRequestType::kWriteZeroes, segments));
}

std::optional<Bytes> BlkDriver::get_id() {
  auto outcome = run(get_id_request());
  if (!outcome || outcome->status() != BlkStatus::kOk) return std::nullopt;
  return outcome->data();
}

Exchange request(uint32_t type, uint64_t sector, const Bytes& data, size_t answer_size) {
  return {.readable = bytes_of(vhost::BlkRequestHeader{.type = type, .sector = sector}) + data,
          .writable_size = answer_size + 1};
}

Exchange read_request(uint64_t sector, size_t size) {
  return request(static_cast<uint32_t>(BlkRequestType::kIn), sector, {}, size);
}
Exchange write_request(uint64_t sector, const Bytes& data) {
  return request(static_cast<uint32_t>(BlkRequestType::kOut), sector, data);
}
Exchange flush_request() { return request(static_cast<uint32_t>(BlkRequestType::kFlush), 0); }
Exchange get_id_request(size_t size) { return request(static_cast<uint32_t>(BlkRequestType::kGetId), 0, {}, size); }

Exchange segments_request(BlkRequestType type, std::span<const vhost::BlkDiscardSegment> segments) {
  Bytes data;
  for (const auto& segment : segments) data = data + bytes_of(segment);
  return request(static_cast<uint32_t>(type), 0, data);
}

Bytes pattern(size_t size, uint32_t seed) {
  Bytes data(size);
  uint32_t state = seed * 2654435761U + 1;
  for (auto& byte : data) {
    state = state * 1664525U + 1013904223U;
    byte = static_cast<uint8_t>(state >> 24);
  }
  return data;
}

}  // namespace sluice::test
