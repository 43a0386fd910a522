// Job: requests on one device, from one lightweight thread, and measures of them. A closed loop keeps `queue_depth` of
// them in flight; an open loop issues them when they are due, at random times, whether or not others have completed.
//
// Thread:     made and destroyed anywhere; all calls on the job's lightweight thread, the results also after run().
// Ownership:  borrows the device, which stays open until close().
// Invariants: (1) a request of a closed loop is issued again by its own completion; nothing is allocated, and no time
// is
//             asked for, per request. (2) run() ends only when nothing is in flight.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "app/bdevperf/params.h"
#include "app/bdevperf/random.h"
#include "app/bdevperf/zipf.h"
#include "lib/base/clock.h"
#include "lib/base/histogram.h"
#include "lib/bdev/bdev.h"
#include "lib/thread/await.h"

namespace sluice::bdevperf {

struct JobSpec {
  Workload workload = Workload::kRead;
  uint32_t queue_depth = 1;
  uint64_t io_size_bytes = 4096;
  uint64_t begin_bytes = 0;   // the part of the device that is used
  uint64_t length_bytes = 0;  // at least queue_depth requests for verify and reset, one for the others
  uint32_t read_percent = 50;
  double zipf_theta = 0;  // 0: all offsets alike
  // Requests per second of an open loop, of which queue_depth may be in flight: what is due beyond waits, and its
  // latency counts from when it was due. 0: a closed loop. Not for verify and reset.
  double rate = 0;
  uint64_t seed = 1;
  bool once = false;  // read, write, unmap, ...: end after one pass over the part
  bool continue_on_failure = false;
  uint64_t (*clock)() = now_ns;  // for latencies; tests have their own
};

struct JobTiming {
  uint64_t time_ns = 0;
  uint64_t warmup_ns = 0;  // before that, not measured
};

// The first request that went wrong.
struct JobFailure {
  IoType type = IoType::kRead;
  IoStatus status = IoStatus::kOk;  // kOk: its content was not what had been written
  uint64_t offset_bytes = 0;        // of the request; of the first wrong byte
  // "write at offset 4096: no_space"
  std::string to_string() const;
};

class Job {
 public:
  // Requires: what JobSpec says (checked).
  Job(Bdev& bdev, const JobSpec& spec);
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
  // Requires: close() has been called, or open() has not succeeded.
  ~Job();

  // Takes a channel and memory. Errors: the device's; ENOMEM.
  Result<> open();
  // Until the time is over, stop() is called, or a request fails. May be called once.
  Task<> run(JobTiming timing);
  // Issues no more requests; run() ends when those in flight are done.
  void stop();
  // Gives channel and memory back.
  void close();

  const JobSpec& spec() const { return spec_; }
  Bdev& bdev() const { return bdev_; }

  // The window of measurement begins after the warm-up and ends at stop().
  // Successful requests completed in it; so far, while it lasts.
  uint64_t ios() const { return window_.ended ? window_.ios : latencies_.count(); }
  uint64_t window_ns() const { return window_.ns; }
  // What the OS thread and the lightweight thread used of the processor in it.
  uint64_t host_cpu_ns() const { return window_.cpu_ns; }
  uint64_t busy_ns() const { return window_.busy_ns; }
  // Of those in the window and of those in flight at its end: a stuck request is not left out. Of those that waited
  // then to be issued: how long they had waited.
  const Histogram& latencies() const { return latencies_; }
  // Requests that were due in the window and waited at its end, as queue_depth others were in flight.
  uint64_t waiting() const { return window_.waiting; }
  // Over the whole run, also during the warm-up.
  uint64_t failed() const { return failed_; }
  uint64_t mismatches() const { return mismatches_; }
  const std::optional<JobFailure>& first_failure() const { return first_failure_; }

 private:
  enum class Pattern : uint8_t { kSequential, kRandom, kZipf };

  // Two cache lines.
  struct alignas(64) Request : BlockIo {
    Job* job = nullptr;
    uint64_t begin_ns = 0;  // of its latency
    iovec buffer{};
    uint64_t key = 0;  // verify: of the content
  };
  static_assert(sizeof(Request) == 128);

  // A reset among verify's requests.
  struct ResetRequest : BlockIo {
    Job* job = nullptr;
    bool in_flight = false;
  };

  // Tells when the requests of an open loop are due. Where the thread's host polls, by looking at its clock each turn;
  // where it sleeps, by a timer for the next one.
  class Arrivals final : public Poller {
   public:
    explicit Arrivals(Job& job)
        : Poller("bdevperf_arrivals"),
          job_(job),
          mean_gap_ns_(1e9 / job.spec_.rate),
          timer_("bdevperf_due", [this] { make_hot(); }) {}

    void begin() { due_ns_ = now_ns() + gap_ns(); }
    // For requests that are due and never will be issued: calls each(due_ns).
    template <typename Fn>
    void drop_due(Fn each);

    bool poll() override;
    bool pure_poll() override { return !job_.free_.empty() && due_ns_ <= now_ns(); }
    bool try_sleep() override;
    void wake_up() override { timer_.cancel(); }

   private:
    uint64_t now_ns() const { return job_.thread_->now_ns(); }
    uint64_t gap_ns();

    Job& job_;
    const double mean_gap_ns_;
    uint64_t due_ns_ = 0;  // of the next request; long ago if it waits for one of those in flight
    Timer timer_;
  };

  struct Window {
    uint64_t begin_ns = 0;
    uint64_t ns = 0;
    uint64_t cpu_ns = 0;
    uint64_t busy_ns = 0;
    uint64_t ios = 0;
    uint64_t waiting = 0;
    bool ended = false;
  };

  void set_up(Request& request, std::span<std::byte> buffer);
  void start_all();
  void begin_window();
  void end_window();
  void read_clock();
  void note_time();
  void account(Request& request);
  void fail(IoType type, IoStatus status, uint64_t offset_bytes);
  void retire();
  void end_arrivals();

  // `begin_ns`: what its latency counts from.
  template <Pattern kPattern, bool kMixed>
  void issue(Request& request, uint64_t begin_ns);
  template <Pattern kPattern, bool kMixed>
  static void on_complete(Work& work);
  static void on_open_complete(Work& work);

  void write_block(Request& request);
  static void on_block_written(Work& work);
  static void on_block_read(Work& work);
  void submit_reset();
  static void on_reset(Work& work);

  // Constant after construction, and used by every request.
  Bdev& bdev_;
  const JobSpec spec_;
  const uint64_t count_;           // of places for a request
  const uint64_t read_threshold_;  // of the lower 32 bits of a random number: below is a read
  const uint32_t clock_batch_;
  const std::optional<Zipf> zipf_;
  void (*start_one_)(Job& job, Request& request, uint64_t begin_ns) = nullptr;

  LwThread* thread_ = nullptr;
  BdevChannel* channel_ = nullptr;
  Random random_;
  uint64_t cursor_ = 0;
  uint64_t now_ns_ = 0;   // by spec_.clock, read once per batch of completions
  uint64_t turn_ns_ = 0;  // the thread's clock then: another value means another turn
  uint32_t clock_left_ = 1;
  uint32_t in_flight_ = 0;
  bool stopping_ = false;

  Window window_;
  uint64_t failed_ = 0;
  uint64_t mismatches_ = 0;
  uint64_t generation_ = 0;
  std::optional<JobFailure> first_failure_;

  uint64_t time_ns_ = 0;
  bool warming_up_ = false;
  Timer phase_;
  Timer reset_timer_;
  ResetRequest reset_;
  std::optional<Arrivals> arrivals_;  // of an open loop
  Fifo<Work> free_;                   // its requests that are not in flight
  Event done_;
  ChannelRef channel_ref_;
  IoBuffer memory_;
  std::vector<Request> requests_;
  Histogram latencies_;
};

}  // namespace sluice::bdevperf
