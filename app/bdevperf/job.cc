#include "app/bdevperf/job.h"

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "app/bdevperf/content.h"

namespace sluice::bdevperf {
namespace {

// A time is asked for at least once in so many completions: it costs some 10 ns.
constexpr uint32_t kMaxClockBatch = 32;
// Resets come every tenth of the run, and at least so often.
constexpr uint64_t kMaxResetPeriodNs = 10 * kNsPerSec;
// What a buffer has in it before a read that is to be verified: the device must overwrite it.
constexpr int kScrub = 0xa5;

uint64_t os_thread_cpu_ns() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<uint64_t>(time.tv_sec) * kNsPerSec + static_cast<uint64_t>(time.tv_nsec);
}

IoType type_of(Workload workload) {
  switch (workload) {
    case Workload::kWrite:
    case Workload::kRandWrite:
      return IoType::kWrite;
    case Workload::kUnmap:
      return IoType::kDiscard;
    case Workload::kWriteZeroes:
      return IoType::kWriteZeroes;
    case Workload::kFlush:
      return IoType::kFlush;
    default:
      return IoType::kRead;
  }
}

}  // namespace

std::string JobFailure::to_string() const {
  if (status != IoStatus::kOk) {
    return fmt::format("{} at offset {}: {}", sluice::to_string(type), offset_bytes, sluice::to_string(status));
  }
  return fmt::format("verify: the byte at offset {} is not what was written there", offset_bytes);
}

Job::Job(Bdev& bdev, const JobSpec& spec)
    : bdev_(bdev),
      spec_(spec),
      count_(spec.length_bytes / spec.io_size_bytes),
      read_threshold_((uint64_t{spec.read_percent} << 32) / 100),
      clock_batch_(std::min(spec.queue_depth, kMaxClockBatch)),
      zipf_(spec.zipf_theta > 0 ? std::optional<Zipf>(std::in_place, count_, spec.zipf_theta) : std::nullopt),
      random_(spec.seed),
      phase_("bdevperf_phase", [this] { warming_up_ ? begin_window() : end_window(); }),
      reset_timer_("bdevperf_reset", [this] { submit_reset(); }),
      requests_(spec.queue_depth) {
  CHECK(spec.queue_depth > 0 && count_ > 0);
  CHECK(count_ >= spec.queue_depth || !is_verified(spec.workload));
  CHECK(spec.rate == 0 || !is_verified(spec.workload));
  if (spec.rate > 0) arrivals_.emplace(*this);
  reset_.job = this;
  reset_.type = IoType::kReset;
  reset_.run = on_reset;
}

Job::~Job() { CHECK(!channel_ref_ && in_flight_ == 0); }

Result<> Job::open() {
  thread_ = LwThread::current();
  auto channel = thread_->get_channel(bdev_);
  if (!channel) return std::unexpected(channel.error());
  const uint64_t stride =
      (spec_.io_size_bytes + IoBuffer::kAlignment - 1) / IoBuffer::kAlignment * IoBuffer::kAlignment;
  auto memory = bdev_.allocate_buffer(stride * spec_.queue_depth);
  if (!memory) return std::unexpected(memory.error());
  memory_ = std::move(*memory);
  // Data to write that does not compress, and no page faults later.
  fill_content(memory_.bytes(), spec_.seed);
  for (uint32_t i = 0; i < spec_.queue_depth; ++i) {
    set_up(requests_[i], memory_.bytes().subspan(i * stride, spec_.io_size_bytes));
  }
  channel_ref_ = std::move(*channel);
  channel_ = static_cast<BdevChannel*>(channel_ref_.get());
  return {};
}

void Job::set_up(Request& request, std::span<std::byte> buffer) {
  request.job = this;
  request.type = type_of(spec_.workload);
  request.length_bytes = spec_.io_size_bytes;
  request.buffer = {.iov_base = buffer.data(), .iov_len = buffer.size()};
  request.iov = &request.buffer;
  request.iov_count = 1;
  const auto use = [&]<Pattern kPattern, bool kMixed>() {
    request.run = arrivals_ ? on_open_complete : on_complete<kPattern, kMixed>;
    start_one_ = [](Job& job, Request& first, uint64_t begin_ns) { job.issue<kPattern, kMixed>(first, begin_ns); };
  };
  switch (spec_.workload) {
    case Workload::kVerify:
    case Workload::kReset:
      start_one_ = [](Job& job, Request& first, uint64_t) { job.write_block(first); };
      break;
    case Workload::kRandReadWrite:
      zipf_ ? use.operator()<Pattern::kZipf, true>() : use.operator()<Pattern::kRandom, true>();
      break;
    case Workload::kRandRead:
    case Workload::kRandWrite:
      zipf_ ? use.operator()<Pattern::kZipf, false>() : use.operator()<Pattern::kRandom, false>();
      break;
    case Workload::kReadWrite:
      use.operator()<Pattern::kSequential, true>();
      break;
    default:
      use.operator()<Pattern::kSequential, false>();
      break;
  }
}

void Job::close() {
  CHECK(in_flight_ == 0);
  channel_ = nullptr;
  channel_ref_.reset();
  memory_ = {};
}

// --- A run ---

Task<> Job::run(JobTiming timing) {
  if (stopping_) co_return;
  time_ns_ = timing.time_ns;
  if (timing.warmup_ns > 0) {
    warming_up_ = true;
    phase_.arm_at(*thread_, thread_->now_ns() + timing.warmup_ns);
  } else {
    begin_window();
  }
  if (spec_.workload == Workload::kReset) {
    const uint64_t tenth_ns = std::max<uint64_t>((timing.time_ns + timing.warmup_ns) / 10, 1);
    reset_timer_.arm_periodic(*thread_, std::min(tenth_ns, kMaxResetPeriodNs));
  }
  start_all();
  co_await done_.wait();
}

void Job::start_all() {
  read_clock();
  if (arrivals_) {
    for (Request& request : requests_) free_.push_back(request);
    arrivals_->begin();
    thread_->add_poller(*arrivals_);
    return;
  }
  in_flight_ = spec_.queue_depth;
  for (Request& request : requests_) stopping_ ? retire() : start_one_(*this, request, now_ns_);
}

void Job::begin_window() {
  warming_up_ = false;
  latencies_.reset();
  window_ = {.begin_ns = thread_->now_ns(), .cpu_ns = os_thread_cpu_ns(), .busy_ns = thread_->busy_ns()};
  phase_.arm_at(*thread_, thread_->now_ns() + time_ns_);
}

void Job::end_window() {
  // This thread may not have run for a while until now: what was due meanwhile is not left out.
  if (arrivals_) arrivals_->poll();
  stop();
}

void Job::stop() {
  if (std::exchange(stopping_, true)) return;
  phase_.cancel();
  reset_timer_.cancel();
  if (window_.begin_ns != 0) {
    window_ = {.begin_ns = window_.begin_ns,
               .ns = thread_->now_ns() - window_.begin_ns,
               .cpu_ns = os_thread_cpu_ns() - window_.cpu_ns,
               .busy_ns = thread_->busy_ns() - window_.busy_ns,
               .ios = latencies_.count()};
  }
  window_.ended = true;
  if (arrivals_ && arrivals_->thread() != nullptr) end_arrivals();
}

void Job::end_arrivals() {
  thread_->remove_poller(*arrivals_);
  if (window_.begin_ns != 0 && free_.empty()) {
    const uint64_t end_ns = thread_->now_ns();
    arrivals_->drop_due([this, end_ns](uint64_t due_ns) {
      latencies_.record(end_ns - due_ns);
      ++window_.waiting;
    });
  }
  if (in_flight_ == 0) done_.set();
}

void Job::retire() {
  if (--in_flight_ == 0) done_.set();
}

// --- Time ---

void Job::read_clock() {
  now_ns_ = spec_.clock();
  turn_ns_ = thread_->now_ns();
  clock_left_ = clock_batch_;
}

// Reads the clock at the first completion of a turn, and again after clock_batch_ of them, as a device that completes
// at once can go round the whole queue many times within a turn. So a latency is wrong by less than a batch takes.
inline void Job::note_time() {
  if (--clock_left_ == 0 || thread_->now_ns() != turn_ns_) read_clock();
}

// --- Requests without verification ---

template <Job::Pattern kPattern, bool kMixed>
inline void Job::issue(Request& request, uint64_t begin_ns) {
  uint64_t random = 0;
  if constexpr (kPattern == Pattern::kRandom || kMixed) random = random_.next();
  uint64_t place = 0;
  if constexpr (kPattern == Pattern::kRandom) {
    place = Random::scale(random, count_);
  } else if constexpr (kPattern == Pattern::kZipf) {
    place = zipf_->next(random_);
  } else {
    place = cursor_++;
    if (cursor_ == count_) [[unlikely]] {
      cursor_ = 0;
      if (spec_.once) stop();
    }
  }
  if constexpr (kMixed) request.type = (random & UINT32_MAX) < read_threshold_ ? IoType::kRead : IoType::kWrite;
  request.offset_bytes = spec_.begin_bytes + place * spec_.io_size_bytes;
  request.begin_ns = begin_ns;
  channel_->submit(request);
}

template <Job::Pattern kPattern, bool kMixed>
void Job::on_complete(Work& work) {
  auto& request = static_cast<Request&>(work);
  Job& job = *request.job;
  job.note_time();
  job.account(request);
  if (job.stopping_) [[unlikely]] {
    job.retire();
  } else {
    job.issue<kPattern, kMixed>(request, job.now_ns_);
  }
}

inline void Job::account(Request& request) {
  if (request.status == IoStatus::kOk) [[likely]] {
    latencies_.record(now_ns_ - request.begin_ns);
  } else {
    fail(request.type, request.status, request.offset_bytes);
  }
}

void Job::fail(IoType type, IoStatus status, uint64_t offset_bytes) {
  ++(status == IoStatus::kOk ? mismatches_ : failed_);
  if (!first_failure_) first_failure_ = {.type = type, .status = status, .offset_bytes = offset_bytes};
  // A reset may end what is in flight with errors.
  if (!spec_.continue_on_failure && spec_.workload != Workload::kReset) stop();
}

// --- An open loop ---

void Job::on_open_complete(Work& work) {
  auto& request = static_cast<Request&>(work);
  Job& job = *request.job;
  job.note_time();
  job.account(request);
  if (job.stopping_) [[unlikely]]
    return job.retire();
  --job.in_flight_;
  // With nothing to issue it may have gone to sleep, without a timer.
  if (job.free_.empty()) job.arrivals_->make_hot();
  job.free_.push_back(request);
}

bool Job::Arrivals::poll() {
  const uint64_t now = now_ns();
  bool any = false;
  while (due_ns_ <= now) {
    Work* const request = job_.free_.pop_front();
    if (request == nullptr) break;
    ++job_.in_flight_;
    job_.start_one_(job_, static_cast<Request&>(*request), due_ns_);
    due_ns_ += gap_ns();
    any = true;
  }
  return any;
}

bool Job::Arrivals::try_sleep() {
  if (pure_poll()) return false;
  if (!job_.free_.empty()) timer_.arm_at(*thread(), due_ns_);
  return true;
}

template <typename Fn>
void Job::Arrivals::drop_due(Fn each) {
  for (const uint64_t now = now_ns(); due_ns_ <= now; due_ns_ += gap_ns()) each(due_ns_);
}

// Exponential: how many arrive in one stretch of time says nothing about the next (a Poisson process).
uint64_t Job::Arrivals::gap_ns() {
  const double unit = static_cast<double>((job_.random_.next() >> 11) + 1) * 0x1p-53;  // above 0, up to 1
  return static_cast<uint64_t>(std::lround(-std::log(unit) * mean_gap_ns_));
}

// --- Verification: a block is written, read back and compared; only then is another one chosen. ---

// Request i has the places i, i + depth, i + 2 depth, ... to itself, so that no two requests in flight overlap.
void Job::write_block(Request& request) {
  const auto index = static_cast<uint64_t>(&request - requests_.data());
  const uint64_t places = (count_ - index + spec_.queue_depth - 1) / spec_.queue_depth;
  request.offset_bytes = spec_.begin_bytes + (index + random_.below(places) * spec_.queue_depth) * spec_.io_size_bytes;
  request.key = content_key(spec_.seed, request.offset_bytes, ++generation_);
  fill_content({static_cast<std::byte*>(request.buffer.iov_base), request.buffer.iov_len}, request.key);
  request.type = IoType::kWrite;
  request.run = on_block_written;
  request.begin_ns = spec_.clock();
  channel_->submit(request);
}

void Job::on_block_written(Work& work) {
  auto& request = static_cast<Request&>(work);
  Job& job = *request.job;
  job.now_ns_ = job.spec_.clock();
  job.account(request);
  if (job.stopping_) return job.retire();
  if (request.status != IoStatus::kOk) return job.write_block(request);
  std::memset(request.buffer.iov_base, kScrub, request.buffer.iov_len);
  request.type = IoType::kRead;
  request.run = on_block_read;
  request.begin_ns = job.spec_.clock();
  job.channel_->submit(request);
}

void Job::on_block_read(Work& work) {
  auto& request = static_cast<Request&>(work);
  Job& job = *request.job;
  job.now_ns_ = job.spec_.clock();
  job.account(request);
  if (request.status == IoStatus::kOk) {
    const auto difference =
        find_difference({static_cast<const std::byte*>(request.buffer.iov_base), request.buffer.iov_len}, request.key);
    if (difference) job.fail(IoType::kRead, IoStatus::kOk, request.offset_bytes + *difference);
  }
  if (job.stopping_) return job.retire();
  job.write_block(request);
}

void Job::submit_reset() {
  if (std::exchange(reset_.in_flight, true)) return;
  ++in_flight_;
  channel_->submit(reset_);
}

void Job::on_reset(Work& work) {
  auto& request = static_cast<ResetRequest&>(work);
  Job& job = *request.job;
  request.in_flight = false;
  if (request.status != IoStatus::kOk) job.fail(IoType::kReset, request.status, 0);
  job.retire();
}

}  // namespace sluice::bdevperf
