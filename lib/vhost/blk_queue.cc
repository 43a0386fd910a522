#include "lib/vhost/blk_queue.h"

#include <algorithm>

#include "lib/bdev/bdev.h"
#include "lib/vhost/guarded_write.h"
#include "lib/vhost/limits.h"
#include "lib/vhost/memory_guard.h"

namespace sluice::vhost {

BlkQueue::BlkQueue(uint32_t index, LwThread& thread, const BlkDevice& device, const Coalescing& coalescing,
                   LogLimiter& log_limiter)
    : Poller("vhost_blk_queue"),
      index_(index),
      owner_(thread),
      device_(device),
      log_limiter_(log_limiter),
      requests_(&ElasticPool<BlkRequest>::of(thread.host())),
      kickless_timer_("vhost_kickless_queue", [this] { make_hot(); }),
      coalescing_(coalescing),
      call_timer_("vhost_held_back_call", [this] { call(); }) {
  owner_.add_listener(*this);
  publish_work_.queue = this;
  publish_work_.run = [](Work& work) { static_cast<PublishWork&>(work).queue->on_publish_work(); };
}

BlkQueue::~BlkQueue() { CHECK(!running_ && in_flight_ == 0 && !publish_pending_); }

void BlkQueue::set_kick(UniqueFd fd) {
  set_notification(fd.get());  // lets go of the old one before it is closed
  kick_ = std::move(fd);
  if (running_) make_hot();  // what the old descriptor told, or the timer would have found
}

void BlkQueue::set_call(UniqueFd fd) {
  call_ = std::move(fd);
  // A ring may start before it is given this: what it has completed by then has not been told.
  if (running_) call();
}

Task<> BlkQueue::start(UniqueFd kick) {
  if (fault_ != RingFault::kNone) {
    co_await stop();  // what the broken ring still has in flight must not turn up in the new one
    fault_ = RingFault::kNone;
  }
  set_kick(std::move(kick));
  started_ = true;
}

Task<uint32_t> BlkQueue::end() {
  started_ = false;
  co_await stop();
  // The peer may live on and keep the file open: it leaves our epoll set here.
  set_kick({});
  fault_ = RingFault::kNone;
  co_return ring_.base();
}

Task<> BlkQueue::update(Setup setup) {
  const bool should_run =
      started_ && enabled_.value_or(setup.enabled_by_default) && configured() && fault_ == RingFault::kNone && !held_;
  if (should_run && !running_) {
    // It was cut off from its memory with requests in flight, and is to be another one now, or to be tracked elsewhere.
    const InflightRegion* region = inflight_ == nullptr ? nullptr : inflight_->region();
    if (!ring_.can_go_on(size_, setup.features) || region != setup.inflight.get()) co_await drained();
    if (!held_) run(std::move(setup));
  }
  if (!should_run && running_) co_await stop();
}

void BlkQueue::run(Setup setup) {
  // A ring that was paused may have completed requests since: they belong to the rings it is still attached to.
  if (publish_pending_) publish();
  if (in_flight_ == 0) track(setup);
  const bool base_follows = inflight_ != nullptr && inflight_->has_notes();
  if (!ring_.attach(*setup.map, *addresses_, size_, setup.features, base_follows)) return;
  features_ = setup.features;
  channel_ = detached_ ? nullptr : setup.channel;  // the bdev may have gone while this waited
  write_through_ = setup.write_through;
  set_log(std::move(setup.log));
  use_map(std::move(setup.map));
  ring_.disable_kicks();
  running_ = true;
  owner_.add_poller(*this);  // hot: requests may be there already, and no kick is to be expected for them
  if (in_flight_ == 0) begin();
  // A back end before us may have ended between showing completions and telling of them.
  if (running_) call();
}

// What is noted in a region counts for the first start with it only: after that it is what this has noted itself.
void BlkQueue::track(const Setup& setup) {
  if (setup.inflight == nullptr) {
    inflight_.reset();
    return;
  }
  const bool same_region = inflight_ != nullptr && inflight_->region() == setup.inflight.get();
  if (same_region && inflight_->begun() && ring_.unchanged(size_, setup.features)) return;
  const bool settled = same_region && inflight_->settled();
  inflight_ =
      std::make_unique<QueueInflight>(setup.inflight, index_, VirtQueue::wants_packed(setup.features), size_, settled);
}

void BlkQueue::begin() {
  std::vector<UnfinishedChain> unfinished;
  if (const RingFault fault = ring_.begin(inflight_.get(), unfinished); fault != RingFault::kNone) break_ring(fault);
  // All at once, before anything else: a ring may be stopped, or moved, when nothing is between in flight and
  // available.
  for (const UnfinishedChain& chain : unfinished) {
    if (running_) start_next(&chain);
  }
  if (running_ && inflight_ != nullptr) inflight_->set_begun();
}

void BlkQueue::move_to(std::shared_ptr<const MemoryMap> map) {
  if (!running_) return;
  publish();
  if (!ring_.attach(*map, *addresses_, size_, features_, false)) {
    pause();
    return;
  }
  use_map(std::move(map));
  make_hot();
}

void BlkQueue::use_map(std::shared_ptr<const MemoryMap> map) {
  std::erase_if(maps_, [](const auto& use) { return use->in_flight == 0; });
  maps_.push_back(std::make_unique<MapUse>(MapUse{.map = std::move(map)}));
  seen_losses_ = MemoryGuard::losses() - 1;  // look at this map once, whatever was seen before
}

void BlkQueue::pause() {
  if (!running_) return;
  running_ = false;  // first: the call may break the ring
  owner_.remove_poller(*this);
  kickless_timer_.cancel();
  if (call_timer_.armed()) call();
}

Task<> BlkQueue::stop() {
  pause();
  co_await drained();
}

// Not drained(): a busy ring may always have requests in flight, but those of an old map do end.
Task<> BlkQueue::room_for_a_map() {
  while (maps_.size() >= kMaxMapsInUse) co_await map_freed_.wait();
}

Task<> BlkQueue::drained() {
  while (in_flight_ > 0 || publish_pending_) co_await drained_.wait();
}

void BlkQueue::reset() {
  CHECK(!running_ && in_flight_ == 0);
  size_ = 0;
  addresses_.reset();
  enabled_.reset();
  started_ = false;
  fault_ = RingFault::kNone;
  inflight_.reset();
  ring_ = VirtQueue();  // lets go of the map
  log_.reset();
  maps_.clear();
}

Task<> BlkQueue::detach_bdev() {
  detached_ = true;
  channel_ = nullptr;
  co_await drained();
}

Task<RingState> BlkQueue::give_up() {
  hold();
  co_await drained();
  set_notification(-1);
  co_return RingState{.index = index_,
                      .size = size_,
                      .addresses = addresses_,
                      .base = ring_.known_base(),
                      .enabled = enabled_,
                      .started = started_,
                      .fault = fault_,
                      .kick = std::move(kick_),
                      .call = std::move(call_),
                      .error = std::move(error_)};
}

void BlkQueue::take_over(RingState state) {
  hold();
  size_ = state.size;
  addresses_ = state.addresses;
  if (state.base) ring_.set_base(*state.base);
  enabled_ = state.enabled;
  started_ = state.started;
  fault_ = state.fault;
  call_ = std::move(state.call);
  error_ = std::move(state.error);
  set_kick(std::move(state.kick));
}

void BlkQueue::hold() {
  held_ = true;
  pause();
}

Task<> BlkQueue::resume(Setup setup) {
  held_ = detached_ = false;
  co_await update(std::move(setup));
}

bool BlkQueue::poll() {
  if (MemoryGuard::losses() != seen_losses_) {
    seen_losses_ = MemoryGuard::losses();
    if (maps_.back()->map->lost()) {
      break_ring(RingFault::kMemoryLost);
      return true;
    }
    if (log_ != nullptr && log_->lost()) {
      break_ring(RingFault::kLogLost);
      return true;
    }
    if (inflight_ != nullptr && inflight_->lost()) {
      break_ring(RingFault::kInflightLost);
      return true;
    }
  }
  const std::optional<uint16_t> available = ring_.available();
  if (!available) {
    break_ring(RingFault::kAvailJump);
    return true;
  }
  if (*available + in_flight_ > size_) {
    break_ring(RingFault::kTooMany);
    return true;
  }
  // Half of what is there, where that is a batch still: while we do one half the driver refills the other, so that
  // neither side waits for the other.
  const uint32_t count =
      std::min<uint32_t>(*available, std::clamp<uint32_t>(*available / 2, kQueueBatch, kQueueBudget));
  if (count > 0) ring_.prefetch(count);
  taken_bytes_ = 0;
  for (uint32_t i = 0; i < count && running_ && taken_bytes_ < kQueueBudgetBytes; ++i) start_next();
  if (count > 0) kickless_period_ns_ = kKicklessPeriodNs;
  return count > 0;
}

bool BlkQueue::try_sleep() {
  if (ring_.enable_kicks()) {
    ring_.disable_kicks();
    return false;
  }
  if (!has_notification()) {
    kickless_timer_.arm_at(owner_, owner_.now_ns() + kickless_period_ns_);
    kickless_period_ns_ = std::min(2 * kickless_period_ns_, kMaxKicklessPeriodNs);
  }
  return true;
}

void BlkQueue::wake_up() {
  ++stats_.kicks;
  kickless_timer_.cancel();
  ring_.disable_kicks();
}

void BlkQueue::start_next(const UnfinishedChain* unfinished) {
  std::unique_ptr<BlkRequest> taken = requests_->take();
  BlkRequest& request = *taken;
  MapUse& use = *maps_.back();
  RingFault fault = unfinished == nullptr ? ring_.pop(request.chain()) : ring_.pop_again(request.chain(), *unfinished);
  BlkRequest::Next next = BlkRequest::Next::kBroken;
  if (fault == RingFault::kNone) {
    next = request.parse(device_);
    fault = request.fault();
  }
  // From here on it is in flight, for whoever comes after us: before anything is done about it.
  if (inflight_ != nullptr && unfinished == nullptr && next != BlkRequest::Next::kBroken &&
      !inflight_->take(request.chain(), ring_.copies())) {
    next = BlkRequest::Next::kBroken;
    fault = RingFault::kTooMany;
  }
  if (next == BlkRequest::Next::kBroken) {
    requests_->give_back(std::move(taken));
    break_ring(fault);
    return;
  }
  std::ignore = taken.release();  // until finish()
  request.queue = this;
  request.map_use = &use;
  ++use.in_flight;
  ++in_flight_;
  ++stats_.requests;
  taken_bytes_ += request.chain().readable_bytes + request.chain().writable_bytes;
  if (next == BlkRequest::Next::kSubmit) {
    submit(request);
  } else {
    finish(request, request.blk_status());
  }
}

void BlkQueue::submit(BlkRequest& request) {
  if (channel_ == nullptr) {
    finish(request, BlkStatus::kIoErr);
    return;
  }
  if (!request.adapt_to(channel_->bdev())) {
    finish(request, BlkStatus::kOk);
    return;
  }
  request.run = [](Work& work) {
    auto& done = static_cast<BlkRequest&>(work);
    done.queue->on_io_done(done);
  };
  channel_->submit(request);
}

void BlkQueue::on_io_done(BlkRequest& request) {
  if (request.status == IoStatus::kOk && request.next_step(write_through_)) {
    submit(request);
    return;
  }
  finish(request, to_blk_status(request.status));
}

void BlkQueue::finish(BlkRequest& request, BlkStatus status) {
  const uint32_t written = request.finish(status);
  if (log_ != nullptr) [[unlikely]]
    request.mark_written(*log_, *request.map_use->map);
  ring_.push_used(request.chain(), written);
  if (inflight_ != nullptr) inflight_->give_back(request.chain());
  if (!publish_pending_) {
    publish_pending_ = true;
    owner_.defer(publish_work_);  // after all that completes in this turn
  }
  MapUse& use = *request.map_use;
  if (--use.in_flight == 0 && &use != maps_.back().get()) {
    std::erase_if(maps_, [&use](const auto& map) { return map.get() == &use; });
    map_freed_.notify_all();
  }
  requests_->give_back(std::unique_ptr<BlkRequest>(&request));
  if (--in_flight_ == 0 && !publish_pending_) drained_.notify_all();
}

void BlkQueue::on_publish_work() {
  publish_pending_ = false;
  publish();
  if (in_flight_ == 0) drained_.notify_all();
}

void BlkQueue::publish() {
  // One that is held back stays due: with EVENT_IDX the ring asks for it once only.
  if (inflight_ != nullptr) inflight_->before_publish();
  const bool due = ring_.publish() || call_timer_.armed();
  if (inflight_ != nullptr) inflight_->after_publish();
  if (due && !may_hold_back()) call();
}

void BlkQueue::set_coalescing(const Coalescing& coalescing) {
  coalescing_ = coalescing;
  delay_ns_ = 0;
  if (call_timer_.armed()) call();
}

void BlkQueue::set_log(std::shared_ptr<DirtyLog> log) {
  log_ = std::move(log);
  ring_.set_log(log_.get());
}

// Whether a call that is due now is made later, by a timer: the busier the queue, the later; not at low depth.
// Source: SPDK, vhost_controller_set_coalescing; Ahmad et al., "vIC: Interrupt Coalescing for Virtual Machine Storage
// Device IO", USENIX ATC 2011, for the depth.
bool BlkQueue::may_hold_back() {
  if (coalescing_.delay_base_ns == 0 || !running_) return false;
  const uint64_t now = owner_.now_ns();
  if (const uint64_t passed_ns = now - epoch_ns_; passed_ns >= kCoalescingEpochNs) {
    const double iops = static_cast<double>(stats_.requests - epoch_requests_) * 1e9 / static_cast<double>(passed_ns);
    const double excess = iops / coalescing_.iops_threshold - 1;
    const double delay_ns = excess > 0 ? excess * static_cast<double>(coalescing_.delay_base_ns) : 0;
    delay_ns_ = static_cast<uint64_t>(std::min(delay_ns, static_cast<double>(kMaxCoalescingNs)));
    epoch_ns_ = now;
    epoch_requests_ = stats_.requests;
  }
  if (delay_ns_ == 0 || in_flight_ < kCoalescingDepth) return false;
  if (!call_timer_.armed()) call_timer_.arm_at(owner_, now + delay_ns_);
  return true;
}

void BlkQueue::call() {
  call_timer_.cancel();
  if (!call_) return;
  ++stats_.calls;
  if (guarded_write(call_.get()) == GuardedWrite::kBlocked) {
    call_.reset();
    break_ring(RingFault::kCallBlocked);
  }
}

void BlkQueue::break_ring(RingFault fault) {
  fault_ = fault;
  pause();
  if (uint64_t held_back = 0; log_limiter_.allow(owner_.now_ns(), held_back)) {
    log(LogLevel::kWarning, LogFlag::kVhost, "controller {}: queue {} is stopped: {} ({} such lines held back)",
        device_.name(), index_, to_string(fault), held_back);
  }
  if (error_ && guarded_write(error_.get()) == GuardedWrite::kBlocked) error_.reset();
}

}  // namespace sluice::vhost
