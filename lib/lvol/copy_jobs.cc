#include "lib/lvol/copy_jobs.h"

#include <algorithm>

#include "lib/bdev/bdev.h"
#include "lib/lvol/volume.h"
#include "lib/lvol/volume_bdev.h"
#include "lib/thread/await.h"

namespace sluice::lvol {

// What is told of the devices that a job uses.
struct CopyJobs::Job : BdevEvents, ListHook<JobTag> {
  void on_resize() override {}
  void on_remove() override { progress.cancelled = true; }

  CopyProgress progress;
};

struct CopyJobs::ShallowCopy : Job {
  uint32_t operation = 0;
  std::unique_ptr<BdevHandle> source;
  std::unique_ptr<BdevHandle> destination;
  bool ended = false;
  Result<> result;
};

namespace {

// On the store's thread, where the channels are opened and closed.
Task<Result<>> own_on_thread(Bdev& volume, bool allocate, CopyProgress& progress) {
  auto channel = LwThread::current()->get_channel(volume);
  if (!channel) co_return std::unexpected(channel.error());
  co_return co_await own_clusters(*store_of(volume), volume_of(volume)->id(),
                                  static_cast<BdevChannel&>(*channel->get()), allocate, progress);
}

Task<Result<>> copy_on_thread(Bdev& volume, Bdev& destination, CopyProgress& progress) {
  auto from = LwThread::current()->get_channel(volume);
  if (!from) co_return std::unexpected(from.error());
  auto to = LwThread::current()->get_channel(destination);
  if (!to) co_return std::unexpected(to.error());
  co_return co_await shallow_copy(*store_of(volume), volume_of(volume)->id(), static_cast<BdevChannel&>(*from->get()),
                                  static_cast<BdevChannel&>(*to->get()), progress);
}

}  // namespace

CopyJobs::CopyJobs(BdevManager& bdevs) : bdevs_(bdevs) {}

CopyJobs::~CopyJobs() { CHECK(jobs_.empty()); }

Result<std::unique_ptr<BdevHandle>> CopyJobs::open(const std::string& name, BdevAccess access, Job& job) const {
  auto handle = bdevs_.open(name, access, job, "copy of a logical volume");
  if (handle && access == BdevAccess::kRead && store_of((*handle)->bdev()) == nullptr) {
    return fail(EINVAL, "the bdev is not a logical volume");
  }
  return handle;
}

Task<Result<>> CopyJobs::own(std::string volume, bool allocate) {
  if (!gate_.enter()) co_return fail(ESHUTDOWN, "the process is ending");
  Job job;
  auto handle = open(volume, BdevAccess::kRead, job);
  Result<> result;
  if (handle) {
    jobs_.push_back(job);
    Bdev& bdev = (*handle)->bdev();
    result = co_await call_on(store_of(bdev)->thread(), [&] { return own_on_thread(bdev, allocate, job.progress); });
    job.unlink();
    handle->reset();
  } else {
    result = std::unexpected(handle.error());
  }
  gate_.leave();
  co_return result;
}

Task<Result<uint32_t>> CopyJobs::start_shallow_copy(std::string volume, std::string destination) {
  auto copy = std::make_unique<ShallowCopy>();
  auto source = open(volume, BdevAccess::kRead, *copy);
  if (!source) co_return std::unexpected(source.error());
  auto target = open(destination, BdevAccess::kWrite, *copy);
  if (!target) co_return std::unexpected(target.error());
  const Bdev& from = (*source)->bdev();
  const Bdev& to = (*target)->bdev();
  if (&from == &to) co_return fail(EINVAL, "a volume cannot be copied to itself");
  if (!from.readonly()) co_return fail(EPERM, "only a read-only volume can be copied");
  if (to.size_bytes() < from.size_bytes()) co_return fail(ENOSPC, "the destination is smaller than the volume");
  copy->source = std::move(*source);
  copy->destination = std::move(*target);
  copy->operation = next_operation_++;
  ShallowCopy& started = *copy;
  copies_.push_back(std::move(copy));
  jobs_.push_back(started);
  if (!gate_.spawn(run(started))) {
    started.unlink();
    copies_.pop_back();
    co_return fail(ESHUTDOWN, "the process is ending");
  }
  co_return started.operation;
}

Task<> CopyJobs::run(ShallowCopy& copy) {
  Bdev& volume = copy.source->bdev();
  Bdev& destination = copy.destination->bdev();
  copy.result =
      co_await call_on(store_of(volume)->thread(), [&] { return copy_on_thread(volume, destination, copy.progress); });
  copy.source.reset();
  copy.destination.reset();
  copy.ended = true;
  copy.unlink();
  // The oldest that have ended are forgotten.
  while (copies_.size() > kRemembered && copies_.front()->ended) copies_.pop_front();
}

std::optional<CopyJobs::Copy> CopyJobs::check_shallow_copy(uint32_t operation) const {
  const auto found = std::ranges::find_if(copies_, [operation](const auto& at) { return at->operation == operation; });
  if (found == copies_.end()) return std::nullopt;
  const ShallowCopy& copy = **found;
  return Copy{.copied_clusters = copy.progress.done_clusters,
              .total_clusters = copy.progress.total_clusters,
              .ended = copy.ended,
              .result = copy.result};
}

Task<Result<Store::Changed>> CopyJobs::changed_clusters(std::string from, std::string to, uint64_t first,
                                                        uint64_t limit) {
  if (!gate_.enter()) co_return fail(ESHUTDOWN, "the process is ending");
  Job job;
  jobs_.push_back(job);
  Result<Store::Changed> changed;
  auto volume = open(to, BdevAccess::kRead, job);
  Result<std::unique_ptr<BdevHandle>> since;
  if (!from.empty()) since = open(from, BdevAccess::kRead, job);
  if (!volume || !since) {
    changed = std::unexpected(volume ? since.error() : volume.error());
  } else {
    Store& store = *store_of((*volume)->bdev());
    const VolumeId id = volume_of((*volume)->bdev())->id();
    const VolumeId since_id = *since == nullptr ? kNoVolume : volume_of((*since)->bdev())->id();
    if (*since != nullptr && store_of((*since)->bdev()) != &store) {
      changed = fail(EINVAL, "the two volumes are of different stores");
    } else {
      changed = co_await call_on(store.thread(), [&] { return store.changed_clusters(since_id, id, first, limit); });
    }
    volume->reset();
    since->reset();
  }
  job.unlink();
  gate_.leave();
  co_return changed;
}

Task<> CopyJobs::close() {
  jobs_.for_each([](Job& job) { job.progress.cancelled = true; });
  co_await gate_.close();
}

}  // namespace sluice::lvol
