#include "lib/lvol/write_arbiter.h"

#include <algorithm>
#include <bit>

#include "lib/base/check.h"
#include "lib/lvol/volume_table.h"

namespace sluice::lvol {
namespace {

// What one message drops of a large range before others have their turn.
constexpr uint32_t kDropStep = 512;
// Pages of metadata to keep room for: when a cluster is taken, and when only a map changes.
constexpr uint64_t kTakeSlackPages = 128;
constexpr uint64_t kChangeSlackPages = 32;

}  // namespace

WriteArbiter::~WriteArbiter() {
  CHECK(pending_.empty());
  CHECK(space_waiters_.empty());
  CHECK(journal_waiters_.empty());
}

uint64_t WriteArbiter::key_of(const Volume& volume, uint32_t index) {
  return static_cast<uint64_t>(volume.id()) << 32 | index;
}

void WriteArbiter::take(MapRequest& request) {
  switch (request.kind) {
    case MapRequest::Kind::kWrite:
    case MapRequest::Kind::kOwn:
      write(request);
      return;
    case MapRequest::Kind::kPublish:
      publish(request);
      return;
    case MapRequest::Kind::kWritten:
      written(request);
      return;
    case MapRequest::Kind::kDrop:
      drop(request);
      return;
    case MapRequest::Kind::kFlush:
      break;  // the store's
  }
  CHECK(false);
}

void WriteArbiter::answer(MapRequest& request, MapRequest::Answer answer, IoStatus result) {
  request.answer = answer;
  request.result = result;
  request.run = request.on_answer;
  request.channel_thread->send(request);
}

// False: it has been answered, or waits until the volume is not held any more.
bool WriteArbiter::may_begin(MapRequest& request) {
  Volume& volume = *request.volume;
  if (failed_ != IoStatus::kOk) {
    answer(request, MapRequest::Answer::kFailed, failed_);
    return false;
  }
  if (volume.held.load(std::memory_order_relaxed)) {
    volume.waiting.push_back(request);
    return false;
  }
  // The volume may have become smaller since the request was checked.
  const uint64_t clusters = volume.record->size_bytes / parts_.geometry.cluster_bytes;
  const bool within = static_cast<uint64_t>(request.index) + request.count <= clusters;
  if (!within) answer(request, MapRequest::Answer::kFailed, IoStatus::kInvalid);
  return within;
}

void WriteArbiter::write(MapRequest& request) {
  Volume& volume = *request.volume;
  if (!may_begin(request)) return;
  const bool own = request.kind == MapRequest::Kind::kOwn;
  const auto found_pending = pending_.find(key_of(volume, request.index));
  if (found_pending != pending_.end() && (own || (found_pending->second.busy & request.touched) != 0)) {
    found_pending->second.waiting.push_back(request);
    return;
  }
  if (!parts_.journal.has_room()) {
    journal_waiters_.push_back(request);
    events_.on_starved();
    return;
  }

  const Found found = parts_.maps.find(volume.map, request.index);
  if (found.damaged) {
    answer(request, MapRequest::Answer::kFailed, IoStatus::kFailed);
    return;
  }
  const Entry& entry = found.entry;
  const uint64_t full = parts_.geometry.full();
  // What is not in its own cluster is nowhere.
  const bool rest_is_zeros =
      entry.base == kBaseZeros || (entry.base == kBaseOrigin && volume.record->external_origin.empty());
  if (own) {
    const bool mapped = entry.own != kNoCluster || entry.base >= kFirstDataCluster;
    const bool copied = entry.valid == full || rest_is_zeros || (entry.base < kFirstDataCluster && !request.allocate);
    if ((found.in_place && copied) || (!mapped && !request.allocate)) {
      answer(request, MapRequest::Answer::kDone);
      return;
    }
  }
  if (found_pending != pending_.end()) {
    // Others write to the cluster already.
    Pending& pending = found_pending->second;
    const uint64_t there = pending.fresh ? 0 : entry.valid;
    request.copy = 0;
    request.locked = request.touched;
    grant(request, pending, entry, request.partial & ~there);
    return;
  }
  if (found.in_place) {
    const uint64_t missing = (own ? full : request.touched) & ~entry.valid;
    if (missing == 0) {
      answer(request, MapRequest::Answer::kRetry);
      return;
    }
    Pending& pending = pending_[key_of(volume, request.index)];
    pending.cluster = entry.own;
    request.copy = own ? missing : 0;
    request.locked = request.touched | request.copy;
    grant(request, pending, entry, request.partial & missing);
    return;
  }

  const std::optional<ClusterIndex> taken = may_take() ? parts_.clusters.take() : std::nullopt;
  if (!taken) {
    if (!wait_for_space(request)) answer(request, MapRequest::Answer::kFailed, IoStatus::kNoSpace);
    return;
  }
  if (own && entry.valid == 0 && rest_is_zeros) {
    set_entry(request, entry, {.own = *taken, .base = entry.base, .valid = 0});
    return;
  }
  Pending& pending = pending_[key_of(volume, request.index)];
  pending.cluster = *taken;
  pending.fresh = true;
  pending.copied = entry.own;
  parts_.clusters.add_reference(entry.own);
  // A cluster that others share and that is not complete cannot become the base of the new one: what it owns is copied.
  // Until that is done nobody else may publish: the new cluster would hide what it does not have yet.
  const bool incomplete = entry.own != kNoCluster && entry.valid != full;
  request.copy = own ? (rest_is_zeros ? entry.valid : full) : incomplete ? entry.valid & ~request.touched : 0;
  request.locked = own || incomplete ? full : request.touched;
  grant(request, pending, entry, request.partial);
}

// A change that needs nothing to be written.
void WriteArbiter::set_entry(MapRequest& request, const Entry& before, const Entry& after) {
  const RecordNumber by =
      parts_.journal.append(SetEntryRecord{.volume = request.volume->id(), .index = request.index, .entry = after});
  parts_.maps.replace(request.volume->map, request.index, before, after, by);
  answer(request, MapRequest::Answer::kDone);
  events_.on_change();
}

void WriteArbiter::grant(MapRequest& request, Pending& pending, const Entry& source, uint64_t fill) {
  request.cluster = pending.cluster;
  request.source = source;
  request.fill = fill;
  ++pending.users;
  pending.busy |= request.locked;
  ++request.volume->granted;
  answer(request, MapRequest::Answer::kGranted);
}

void WriteArbiter::publish(MapRequest& request) {
  if (!request.failed && failed_ == IoStatus::kOk && !parts_.journal.has_room()) {
    // Goes before new writes: those who wait have room kept for them.
    journal_waiters_.push_front(request);
    events_.on_starved();
    return;
  }
  Volume& volume = *request.volume;
  const auto found_pending = pending_.find(key_of(volume, request.index));
  CHECK(found_pending != pending_.end());
  Pending& pending = found_pending->second;

  const bool visible = !request.failed && failed_ == IoStatus::kOk;
  if (visible) {
    const uint64_t full = parts_.geometry.full();
    const Entry before = parts_.maps.find(volume.map, request.index).entry;
    Entry after{.own = pending.cluster, .base = before.base, .valid = request.touched | request.copy};
    if (pending.fresh) {
      if (before.own != kNoCluster && before.valid == full) after.base = before.own;
    } else {
      after.valid |= before.valid;
    }
    if (after.valid == full) after.base = kBaseOrigin;
    const RecordNumber by =
        parts_.journal.append(SetEntryRecord{.volume = volume.id(), .index = request.index, .entry = after});
    parts_.maps.set(volume.map, request.index, after, by);
    pending.fresh = false;
  }
  pending.busy &= ~request.locked;
  --pending.users;
  Fifo<Work> waiting(std::move(pending.waiting));
  if (pending.users == 0) {
    if (pending.fresh) parts_.clusters.give_back(pending.cluster);
    parts_.clusters.drop_reference(pending.copied, 0);
    pending_.erase(found_pending);
  }
  if (--volume.granted == 0 && volume.held.load(std::memory_order_relaxed)) volume.quiet.set();
  if (visible) {
    answer(request, MapRequest::Answer::kDone);
    events_.on_change();
  } else {
    answer(request, MapRequest::Answer::kFailed, failed_);
  }
  retake(waiting);
}

// Nobody was asked before it was written: whoever was granted these sub-clusters meanwhile may have overwritten them
// with what was there before, and whoever published them may have been overwritten. Then the channel writes once more.
// It is still in the epoch in which it found the cluster: what is the volume's own now has been so all the time.
// It does not wait for a held volume, which waits for it.
void WriteArbiter::written(MapRequest& request) {
  if (failed_ != IoStatus::kOk) {
    answer(request, MapRequest::Answer::kFailed, failed_);
    return;
  }
  if (!parts_.journal.has_room()) {
    journal_waiters_.push_front(request);
    events_.on_starved();
    return;
  }
  Volume& volume = *request.volume;
  const auto found_pending = pending_.find(key_of(volume, request.index));
  const bool busy = found_pending != pending_.end() && (found_pending->second.busy & request.touched) != 0;
  const Found found = parts_.maps.find(volume.map, request.index);
  if (busy || !found.in_place || found.entry.own != request.cluster || (found.entry.valid & request.touched) != 0) {
    answer(request, MapRequest::Answer::kRetry);
    return;
  }
  Entry after = found.entry;
  after.valid |= request.touched;
  if (after.valid == parts_.geometry.full()) after.base = kBaseOrigin;
  set_entry(request, found.entry, after);
}

void WriteArbiter::drop(MapRequest& request) {
  Volume& volume = *request.volume;
  if (!may_begin(request)) return;
  // Over an external origin there must be an entry that hides it.
  const bool hides = !volume.record->external_origin.empty();
  const Entry nothing{.own = kNoCluster, .base = hides ? kBaseZeros : kBaseOrigin, .valid = 0};
  if (!hides) {
    // What is not mapped is skipped at once.
    const uint64_t end = static_cast<uint64_t>(request.index) + request.count;
    const uint64_t next = parts_.maps.next_mapped(volume.map, request.index, end);
    request.count = static_cast<uint32_t>(end - next);
    request.index = static_cast<uint32_t>(next);
  }
  if (request.count == 0) {
    answer(request, MapRequest::Answer::kDone);
    return;
  }
  const uint32_t count =
      next_granted(volume, request.index, request.index + std::min(request.count, kDropStep)) - request.index;
  if (count == 0) {
    pending_.find(key_of(volume, request.index))->second.waiting.push_back(request);
    return;
  }
  if (!parts_.journal.has_room()) {
    journal_waiters_.push_back(request);
    events_.on_starved();
    return;
  }
  // Pages that snapshots share are copied, even for that.
  if (!may_change()) {
    if (!wait_for_space(request)) answer(request, MapRequest::Answer::kFailed, IoStatus::kNoSpace);
    return;
  }
  const RecordNumber by = parts_.journal.append(
      DropRangeRecord{.volume = volume.id(), .first = request.index, .count = count, .base = nothing.base});
  drop_range(parts_.maps, volume.map, request.index, count, nothing, by);
  request.index += count;
  request.count -= count;
  request.target->send(request);
  events_.on_change();
}

uint32_t WriteArbiter::next_granted(const Volume& volume, uint32_t index, uint32_t end) const {
  if (pending_.empty()) return end;
  while (index < end && !pending_.contains(key_of(volume, index))) ++index;
  return index;
}

bool WriteArbiter::may_take() const { return leaves_room(kTakeSlackPages + granted_pages()); }

bool WriteArbiter::may_change() const { return leaves_room(kChangeSlackPages); }

// Whether one cluster less would leave room for metadata, and for so many pages more.
bool WriteArbiter::leaves_room(uint64_t pages) const {
  return parts_.clusters.free() > (reserve_ == nullptr ? 0 : reserve_(pages));
}

bool WriteArbiter::wait_for_space(MapRequest& request) {
  // Clusters may be on their way back: they were dropped and that is not durable yet. Or what others are granted may
  // need less room than it could.
  const bool coming = parts_.clusters.in_quarantine() > 0 || leaves_room(kTakeSlackPages);
  if (!coming) events_.on_no_space(hold_when_full_);
  if (!coming && !hold_when_full_) return false;
  space_waiters_.push_back(request);
  ++waiting_for_space_;
  if (coming) events_.on_starved();
  return true;
}

void WriteArbiter::set_hold_when_full(bool hold) {
  hold_when_full_ = hold;
  resume();
}

void WriteArbiter::resume() {
  waiting_for_space_ = 0;
  retake(journal_waiters_);
  retake(space_waiters_);
}

// Those that must wait on go into the queue again.
void WriteArbiter::retake(Fifo<Work>& waiting) {
  Fifo<Work> now(std::move(waiting));
  while (Work* work = now.pop_front()) take(static_cast<MapRequest&>(*work));
}

void WriteArbiter::fail_all(IoStatus status) {
  failed_ = status;
  resume();
}

Task<> WriteArbiter::hold(Volume& volume) {
  CHECK(!volume.held.load(std::memory_order_relaxed));
  volume.held.store(true, std::memory_order_relaxed);
  volume.held_since_ns = LwThread::current()->now_ns();
  // A channel that enters the epoch after this one sees that it is held.
  const uint64_t before = parts_.epochs.advance();
  if (volume.granted > 0) co_await volume.quiet.wait();
  while (parts_.epochs.oldest(&volume) <= before) co_await next_turn();
}

void WriteArbiter::release(Volume& volume) {
  CHECK(volume.held.load(std::memory_order_relaxed));
  volume.held.store(false, std::memory_order_release);
  holds_.record(LwThread::current()->now_ns() - volume.held_since_ns);
  retake(volume.waiting);
}

}  // namespace sluice::lvol
