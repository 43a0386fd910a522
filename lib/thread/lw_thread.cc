#include "lib/thread/lw_thread.h"

#include <sys/epoll.h>

#include <algorithm>

#include "lib/base/log.h"

namespace sluice {
namespace {

// How many pieces of work one turn runs before it looks at pollers and timers again.
constexpr int kReadyBudget = 256;
// Where others keep the core busy, a poller goes cold after so many polls in vain. A poll in vain of a virtqueue takes
// some 50 ns (docs/benchmarks/density.md: 4,096 of them in poll mode), so these cost less than being woken does.
constexpr uint32_t kMaxVainPolls = 16;

}  // namespace

thread_local constinit LwThread* LwThread::current_ = nullptr;

LwThread::LwThread(std::string name, uint64_t id, CpuMask cpumask, ThreadHost& host)
    : name_(std::move(name)), id_(id), cpumask_(cpumask), host_(&host) {}

LwThread::~LwThread() {
  CHECK(hot_.empty() && cold_.empty());
  CHECK(sources_.empty());
  CHECK(timers_.empty());
  CHECK(channels_.empty());
}

LwThread::RunResult LwThread::run() {
  LwThread* const outer = std::exchange(current_, this);
  bool worked = !ready_.empty();
  run_ready();
  worked |= fire_timers();
  worked |= poll_hot();
  run_ready();
  current_ = outer;
  return {.worked = worked, .runnable = !ready_.empty() || !hot_.empty()};
}

void LwThread::run_ready() {
  for (int budget = kReadyBudget; budget > 0; --budget) {
    Work* work = ready_.pop_front();
    if (work == nullptr) return;
    work->run(*work);
  }
}

bool LwThread::fire_timers() {
  const uint64_t now = now_ns();
  bool fired = false;
  // As many as there were: one that arms itself for now again has its next turn after everything else.
  for (size_t turns = timers_.size(); turns > 0 && timers_.earliest_deadline_ns() <= now; --turns) {
    Timer& timer = timers_.earliest();
    if (timer.period_ns_ != 0) {
      const uint64_t missed = (now - timer.deadline_ns()) / timer.period_ns_;
      arm(timer, timer.deadline_ns() + (missed + 1) * timer.period_ns_);
    } else {
      timer.cancel();
    }
    ++timer.run_count_;
    timer.fire_();
    fired = true;
  }
  return fired;
}

bool LwThread::poll_hot() {
  const uint64_t now = now_ns();
  const bool may_sleep = host().mode() != PollMode::kPoll;
  bool worked = false;
  // Each in turn from the front to the back, as many as there were: a poll may add or remove any of them.
  for (size_t turns = hot_count_; turns > 0 && !hot_.empty(); --turns) {
    Poller& poller = hot_.front();
    if (hot_count_ > 1) {
      poller.ListHook<PollerTag>::unlink();
      hot_.push_back(poller);
    }
    polling_ = &poller;
    const bool busy = poller.poll();
    if (std::exchange(polling_, nullptr) == nullptr) {  // it removed itself; it may even be gone
      worked = true;
      continue;
    }
    ++poller.run_count_;
    if (busy) {
      ++poller.busy_count_;
      poller.last_work_ns_ = now;
      poller.vain_polls_ = 0;
      if (poller.woken_after_ns_) poller.learn(*std::exchange(poller.woken_after_ns_, std::nullopt));
      worked = true;
      continue;
    }
    ++poller.vain_polls_;
    if (!poller.hot_ || !may_sleep || !tired(poller)) continue;
    if (poller.try_sleep()) {
      // Woken for nothing: whoever does that shall not be waited for.
      if (std::exchange(poller.woken_after_ns_, std::nullopt)) poller.learn(UINT64_MAX);
      set_hot(poller, false);
    } else {
      poller.last_work_ns_ = now;
      poller.vain_polls_ = 0;
      worked = true;
    }
  }
  return worked;
}

// Whether it is time for a poller that finds nothing to go cold. While others keep the core busy, looking on is cheap,
// and that it found nothing so far may be due to them: what counts is the time that the core has been idle.
bool LwThread::tired(const Poller& poller) const {
  const ThreadHost& host = this->host();
  uint64_t window_ns = 0;
  if (host.mode() == PollMode::kAdaptive && host.may_poll_in_vain()) {
    window_ns = std::min(poller.window_.ns(), host.polling().max_poll_ns);
  }
  const uint64_t vain_ns = now_ns() - poller.last_work_ns_;
  if (poller.vain_polls_ < host.min_vain_polls()) return false;
  if (host.idle()) return std::min(vain_ns, host.idle_for_ns()) >= window_ns;
  return poller.vain_polls_ >= kMaxVainPolls && vain_ns >= window_ns;
}

void LwThread::set_hot(Poller& poller, bool hot) {
  poller.ListHook<PollerTag>::unlink();
  hot_count_ += hot ? 1U : 0U;
  hot_count_ -= poller.hot_ ? 1U : 0U;
  poller.hot_ = hot;
  (hot ? hot_ : cold_).push_back(poller);
}

void LwThread::dispatch(EventSource& source, uint32_t events) {
  LwThread* const outer = std::exchange(current_, this);
  source.on_event(events);
  current_ = outer;
}

void LwThread::make_all_hot() {
  cold_.for_each([](Poller& poller) { poller.make_hot(); });
}

void LwThread::add_poller(Poller& poller) {
  CHECK(poller.thread_ == nullptr);
  CHECK(host().is_current());
  poller.thread_ = this;
  poller.last_work_ns_ = now_ns();
  ++poller_count_;
  set_hot(poller, true);
  if (const int fd = poller.notification_fd_; fd >= 0) poller.set_notification(fd);
  if (!ListHook<RunTag>::linked()) host().make_runnable(*this);
}

void LwThread::remove_poller(Poller& poller) {
  CHECK(poller.thread_ == this);
  CHECK(host().is_current());
  if (poller.notification_.thread() != nullptr) remove_source(poller.notification_);
  if (!poller.hot_) poller.wake_up();
  if (polling_ == &poller) polling_ = nullptr;
  poller.ListHook<PollerTag>::unlink();
  hot_count_ -= poller.hot_ ? 1U : 0U;
  --poller_count_;
  poller.hot_ = false;
  poller.thread_ = nullptr;
}

Result<> LwThread::add_source(EventSource& source, int fd, uint32_t events) {
  CHECK(source.thread_ == nullptr);
  CHECK(host().is_current());
  source.fd_ = fd;
  source.events_ = events;
  source.thread_ = this;
  if (auto watched = host().watch(source); !watched) {
    source.thread_ = nullptr;
    return watched;
  }
  sources_.push_back(source);
  return {};
}

void LwThread::remove_source(EventSource& source) {
  CHECK(source.thread_ == this);
  CHECK(host().is_current());
  host().unwatch(source);
  source.ListHook<SourceTag>::unlink();
  source.thread_ = nullptr;
}

void LwThread::arm(Timer& timer, uint64_t deadline_ns) {
  const uint64_t before = next_deadline_ns();
  timers_.set(timer, deadline_ns);
  if (next_deadline_ns() != before) host().deadline_changed(*this);
}

Channel* LwThread::find_channel(const IoDevice& device) const {
  for (Channel* channel : channels_) {
    if (&channel->device() == &device) return channel;
  }
  return nullptr;
}

Result<ChannelRef> LwThread::get_channel(IoDevice& device) {
  CHECK(host().is_current());
  if (Channel* channel = find_channel(device)) return ChannelRef(*channel);
  auto made = device.create_channel();
  if (!made) return std::unexpected(made.error());
  Channel* channel = made->release();
  channel->thread_ = this;
  channels_.push_back(channel);
  listeners_.push_back(*channel);
  device.channel_opened(id_);
  return ChannelRef(*channel);
}

void LwThread::release(Channel& channel) {
  CHECK(host().is_current());
  std::erase(channels_, &channel);
  IoDevice& device = channel.device();
  delete &channel;
  device.channel_closed(id_);
}

// --- Moving ---

bool LwThread::can_move() const {
  return std::ranges::all_of(channels_, [](const Channel* channel) { return channel->can_move(); });
}

void LwThread::leave(ThreadHost& host) {
  LwThread* const outer = std::exchange(current_, this);
  listeners_.for_each([](MoveListener& listener) { listener.on_leave(); });
  current_ = outer;
  sources_.for_each([&host](EventSource& source) { host.unwatch(source); });
  leaving_.store(&host, std::memory_order_relaxed);
  arriving_.store(true, std::memory_order_relaxed);
}

void LwThread::arrive() {
  // Level and edge alike: what has become ready meanwhile is reported anew. The kernel had room for these watches a
  // moment ago, and wants no memory for long; without them devices would hang, unnoticed.
  sources_.for_each([this](EventSource& source) { CHECK(host().watch(source)); });
  while (Work* work = arrivals_.pop_front()) ready_.push_back(*work);
  arriving_.store(false, std::memory_order_relaxed);
  LwThread* const outer = std::exchange(current_, this);
  listeners_.for_each([](MoveListener& listener) { listener.on_arrive(); });
  current_ = outer;
}

void LwThread::exit(Message& done) {
  CHECK(exit_message_ == nullptr);
  CHECK(hot_.empty() && cold_.empty());
  CHECK(sources_.empty());
  CHECK(timers_.empty());
  CHECK(channels_.empty());
  exit_message_ = &done;
}

// --- Poller ---

Poller::~Poller() {
  // remove_poller() would call the virtual wake_up(), which is gone with the derived part.
  CHECK(thread_ == nullptr);
}

void Poller::make_hot() {
  if (hot_ || thread_ == nullptr) return;
  thread_->set_hot(*this, true);
  wake_up();
  last_work_ns_ = thread_->now_ns();
  vain_polls_ = 0;
  if (!static_cast<ListHook<RunTag>&>(*thread_).linked()) thread_->host().make_runnable(*thread_);
}

void Poller::make_cold() {
  if (hot_) thread_->set_hot(*this, false);
}

void Poller::set_notification(int fd) {
  notification_fd_ = fd;
  if (thread_ == nullptr) return;
  if (notification_.thread() != nullptr) thread_->remove_source(notification_);
  if (fd < 0) return;
  if (const auto added = thread_->add_source(notification_, fd, EPOLLIN | EPOLLET); !added) {
    log(LogLevel::kError, LogFlag::kThread, "poller {}: {} (errno {}); it is looked at by a timer, if at all", name_,
        added.error().what, added.error().code);
  }
}

void Poller::Notification::on_event(uint32_t) {
  if (poller_.hot_) return;  // the edge tells of what was found long ago
  poller_.woken_after_ns_ = poller_.thread_->now_ns() - poller_.last_work_ns_;
  poller_.make_hot();
}

void Poller::learn(uint64_t gap_ns) { window_.learn(gap_ns, thread_->host().polling()); }

EventSource::~EventSource() {
  if (thread_ != nullptr) thread_->remove_source(*this);
}

// --- Timer ---

void Timer::arm_at(LwThread& thread, uint64_t deadline_ns) {
  CHECK(thread_ == nullptr || thread_ == &thread);
  CHECK(thread.host().is_current());
  thread_ = &thread;
  period_ns_ = 0;
  thread.arm(*this, deadline_ns);
}

void Timer::arm_periodic(LwThread& thread, uint64_t period_ns) {
  CHECK(period_ns > 0);
  arm_at(thread, thread.now_ns() + period_ns);
  period_ns_ = period_ns;
}

void Timer::cancel() {
  LwThread* thread = std::exchange(thread_, nullptr);
  if (thread == nullptr) return;
  const uint64_t before = thread->next_deadline_ns();
  thread->timers_.remove(*this);
  if (thread->next_deadline_ns() != before) thread->host().deadline_changed(*thread);
}

// --- Channels ---

IoDevice::~IoDevice() { CHECK(threads_.empty()); }

std::vector<uint64_t> IoDevice::channel_threads() const {
  const std::lock_guard lock(mutex_);
  return threads_;
}

void IoDevice::channel_opened(uint64_t thread_id) {
  const std::lock_guard lock(mutex_);
  threads_.push_back(thread_id);
}

void IoDevice::channel_closed(uint64_t thread_id) {
  const std::lock_guard lock(mutex_);
  std::erase(threads_, thread_id);
}

void ChannelRef::reset() {
  Channel* channel = std::exchange(channel_, nullptr);
  if (channel != nullptr && --channel->references_ == 0) channel->thread().release(*channel);
}

}  // namespace sluice
