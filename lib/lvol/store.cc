#include "lib/lvol/store.h"

#include <algorithm>
#include <bit>

#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/bdev/bdev.h"
#include "lib/bdev/io_buffer.h"
#include "lib/thread/await.h"

namespace sluice::lvol {
namespace {

// What changes without anybody asking for durability is durable after so long, or so many pages of the journal.
constexpr uint64_t kCommitAfterNs = kNsPerSec;
constexpr uint64_t kCommitPages = 64;
constexpr uint32_t kCheckpointPercent = 50;
// While clusters wait for I/O in flight to complete, or pages for readers.
constexpr uint64_t kSettleAgainNs = 2 * kNsPerMs;
constexpr uint32_t kSettleStep = 256;

constexpr uint32_t kMinJournalPages = 64;
constexpr uint32_t kMaxJournalPages = 8192;

Result<Geometry> geometry_for(uint64_t base_bytes, uint64_t cluster_bytes) {
  if (!std::has_single_bit(cluster_bytes) || cluster_bytes < kMinClusterBytes || cluster_bytes > kMaxClusterBytes) {
    return fail(EINVAL, "the cluster size is a power of two from 64 KiB to 16 MiB");
  }
  Geometry geometry{.cluster_bytes = cluster_bytes};
  const uint64_t clusters = base_bytes / cluster_bytes;
  if (clusters > UINT32_MAX) return fail(EINVAL, "the device has too many clusters of this size: take larger ones");
  geometry.total_clusters = static_cast<uint32_t>(clusters);
  // One page of journal for each megabyte.
  const uint64_t wanted = base_bytes >> 20;
  geometry.journal_pages = static_cast<uint32_t>(std::clamp<uint64_t>(wanted, kMinJournalPages, kMaxJournalPages));
  const uint64_t reserved_bytes = (kJournalFirstPage + geometry.journal_pages) * kPageBytes;
  geometry.reserved_clusters = static_cast<uint32_t>(
      std::max<uint64_t>(kFirstDataCluster, (reserved_bytes + cluster_bytes - 1) / cluster_bytes));
  // What the first clusters have room for.
  geometry.journal_pages = std::min<uint32_t>(
      kMaxJournalPages, geometry.reserved_clusters * geometry.pages_per_cluster() - kSuperblockSlots);
  if (clusters < geometry.reserved_clusters + 4ULL) return fail(ENOSPC, "the device is too small for a store");
  return geometry;
}

}  // namespace

// --- Making and loading ---

Task<Result<>> Store::format(BdevChannel& channel, FormatOptions options) {
  if (auto valid = valid_name(options.name); !valid) co_return valid;
  const Bdev& bdev = channel.bdev();
  auto geometry = geometry_for(bdev.size_bytes(), options.cluster_bytes);
  if (!geometry) co_return std::unexpected(geometry.error());
  if (bdev.limits().block_size_bytes > kPageBytes) {
    co_return sluice::fail(EINVAL, "the blocks of the device are larger than 4 KiB");
  }
  auto buffer = IoBuffer::allocate(kSuperblockSlots * kPageBytes);
  if (!buffer) co_return std::unexpected(buffer.error());
  Superblock superblock;
  superblock.generation = 1;
  superblock.uuid = options.uuid.is_nil() ? Uuid::random() : options.uuid;
  superblock.name = options.name;
  superblock.geometry = *geometry;
  superblock.base_block_bytes = bdev.limits().block_size_bytes;
  // Whatever store was there before must not be newer.
  const std::span<std::byte> bytes = buffer->bytes();
  std::ranges::fill(bytes, std::byte{0});
  static_assert(kSuperblockSlots == 2);
  encode(superblock, bytes.subspan(kPageBytes).first<kPageBytes>());
  MetaIo io(channel);
  if (auto written = co_await io.write(0, bytes); !written) co_return written;
  co_return co_await io.flush();
}

Task<Result<>> Store::erase(BdevChannel& channel) {
  auto buffer = IoBuffer::allocate(kSuperblockSlots * kPageBytes);
  if (!buffer) co_return std::unexpected(buffer.error());
  std::ranges::fill(buffer->bytes(), std::byte{0});
  MetaIo io(channel);
  if (auto written = co_await io.write(0, buffer->bytes()); !written) co_return written;
  co_return co_await io.flush();
}

Store::Store(LwThread& thread, BdevChannel& channel, StoreEvents& events, Superblock superblock)
    : thread_(thread),
      channel_(channel),
      events_(events),
      superblock_(std::move(superblock)),
      geometry_(superblock_.geometry),
      name_(superblock_.name),
      io_(channel),
      clusters_(geometry_, epochs_),
      places_(geometry_, clusters_),
      maps_(clusters_, places_, epochs_),
      volumes_(maps_),
      checkpoint_(superblock_, volumes_, maps_, places_, io_),
      commit_timer_("lvol_commit",
                    [this] {
                      commit_due_ = true;
                      wake();
                    }),
      settle_timer_("lvol_settle", [this] { wake(); }) {}

Store::~Store() { CHECK(closing_); }

Task<Result<std::unique_ptr<Store>>> Store::load(LwThread& thread, BdevChannel& channel, StoreEvents& events) {
  MetaIo io(channel);
  auto superblock = co_await read_superblock(io, channel.bdev().size_bytes());
  if (!superblock) co_return std::unexpected(superblock.error());
  if (superblock->base_block_bytes != channel.bdev().limits().block_size_bytes) {
    co_return sluice::fail(ENOTSUP, "the store was made on a device with blocks of another size");
  }
  std::unique_ptr<Store> store(new Store(thread, channel, events, std::move(*superblock)));
  auto loaded = co_await lvol::load(store->superblock_, store->io_, store->clusters_, store->places_, store->maps_,
                                    store->volumes_);
  if (!loaded) {
    store->closing_ = true;
    std::vector<MapRoot*> roots;
    for (const auto& [id, volume] : store->volumes_.all()) roots.push_back(&volume->map);
    store->maps_.abandon(roots);
    co_return std::unexpected(loaded.error());
  }
  store->name_ = loaded->name;
  store->geometry_.total_clusters = loaded->total_clusters;
  store->damage_ = loaded->damage;
  if (store->damage_.empty() && channel.bdev().readonly()) store->damage_ = "the device can only be read";
  store->checkpoint_.set_table_places(std::move(loaded->table_places));
  store->journal_ = std::make_unique<Journal>(store->geometry_, store->uuid(), store->io_, loaded->journal);
  Store* self = store.get();
  self->journal_->on_durable([self](RecordNumber) {
    if (!self->journal_->dirty()) self->dirty_.store(false, std::memory_order_release);
    self->wake();
  });
  self->arbiter_ = std::make_unique<WriteArbiter>(
      WriteArbiter::Parts{.geometry = self->geometry_,
                          .clusters = self->clusters_,
                          .maps = self->maps_,
                          .journal = *self->journal_,
                          .epochs = self->epochs_},
      WriteArbiter::Events{.on_change = [self] { self->changed(); },
                           .on_starved =
                               [self] {
                                 self->starved_ = true;
                                 // What waits on after a look at it waits for something else to happen.
                                 if (!self->resuming_) self->wake();
                               },
                           .on_no_space = [self](bool waits) { self->events_.on_no_space(waits); }});
  self->arbiter_->set_reserve([self](uint64_t pages) { return self->reserve(pages); });
  if (!self->damage_.empty()) self->arbiter_->fail_all(IoStatus::kReadOnly);
  std::ignore = self->gate_.spawn(self->keep());
  co_return store;
}

Task<> Store::close() {
  if (damage_.empty()) {
    std::ignore = co_await commit();
    if (damage_.empty() && superblock_.journal_sequence != journal_->next_sequence())
      std::ignore = co_await checkpoint();
  }
  closing_ = true;
  wake();
  commit_timer_.cancel();
  co_await gate_.close();
  settle_timer_.cancel();
  co_await journal_->close();
  std::vector<MapRoot*> roots;
  for (const auto& [id, volume] : volumes_.all()) roots.push_back(&volume->map);
  maps_.abandon(roots);
}

// --- Requests of channels ---

void Store::ask(MapRequest& request) {
  // Messages find their way by what they carry: the arbiter sends a request to itself again.
  struct ToStore {
    static void run(Work& work) {
      auto& arrived = static_cast<MapRequest&>(work);
      arrived.store->on_request(arrived);
    }
  };
  request.store = this;
  request.run = ToStore::run;
  thread_.send(request);
}

void Store::on_request(MapRequest& request) {
  if (request.kind != MapRequest::Kind::kFlush) {
    arbiter_->take(request);
    return;
  }
  if (!gate_.spawn(flush(request))) {
    request.answer = MapRequest::Answer::kFailed;
    request.result = IoStatus::kRemoved;
    request.run = request.on_answer;
    request.channel_thread->send(request);
  }
}

Task<> Store::flush(MapRequest& request) {
  const Result<> committed = co_await commit();
  request.answer = committed ? MapRequest::Answer::kDone : MapRequest::Answer::kFailed;
  request.result = committed ? IoStatus::kOk : io_status_from_errno(committed.error().code);
  request.run = request.on_answer;
  request.channel_thread->send(request);
}

// --- The keeper ---

void Store::changed() {
  look_at_usage();
  if (!dirty_.load(std::memory_order_relaxed)) dirty_.store(true, std::memory_order_release);
  if (journal_->pending_pages() >= kCommitPages) {
    commit_due_ = true;
    wake();
  } else if (!commit_timer_.armed()) {
    commit_timer_.arm_at(thread_, thread_.now_ns() + kCommitAfterNs);
  }
}

void Store::wake() { wake_.set(); }

Task<> Store::keep() {
  while (!closing_) {
    if ((std::exchange(commit_due_, false) || starved_) && damage_.empty()) {
      commit_timer_.cancel();
      if (journal_->dirty()) std::ignore = co_await commit();
    }
    const bool full = starved_ && !journal_->has_room();
    if (damage_.empty() && (full || journal_->used_percent() >= kCheckpointPercent)) {
      // Where it is not possible now, for lack of space, the next change that frees some brings us here again.
      std::ignore = co_await checkpoint();
    }
    bool more = false;
    do {
      more = settle_step();
      if (more) co_await next_turn();
    } while (more && !closing_);
    if (starved_ || arbiter_->waiting_for_space() > 0) {
      starved_ = false;
      resuming_ = true;
      arbiter_->resume();
      resuming_ = false;
      if (starved_ && journal_->dirty() && damage_.empty()) continue;
    }
    const bool unsettled = clusters_.in_quarantine() > 0 || !maps_.settled();
    if ((starved_ || (unsettled && !journal_->dirty())) && !settle_timer_.armed()) {
      settle_timer_.arm_at(thread_, thread_.now_ns() + kSettleAgainNs);
    }
    if (!closing_ && !commit_due_) co_await wake_.wait();
  }
}

bool Store::settle_step() {
  // What a checkpoint writes names clusters that have been dropped since it began. None of these may become one that
  // holds its pages: a load would find both.
  const bool clusters = !checkpoint_runs_ && clusters_.settle(journal_->durable(), kSettleStep);
  const bool maps = maps_.settle(journal_->durable(), kSettleStep);
  look_at_usage();
  return clusters || maps;
}

Task<> Store::settle() {
  for (;;) {
    // What cannot become durable never settles.
    if (journal_->dirty() && !(co_await commit())) co_return;
    while (settle_step()) co_await next_turn();
    if (clusters_.in_quarantine() == 0 && maps_.settled()) co_return;
    co_await next_turn();
  }
}

Task<Result<>> Store::commit() {
  const Result<> done = co_await journal_->commit();
  if (!done) fail(done.error());
  co_return done;
}

void Store::fail(const Error& error) {
  if (!damage_.empty()) return;
  damage_ = "metadata could not be written";
  log(LogLevel::kError, LogFlag::kLvol, "lvol store {}: {}: from here on it can only be read", name_, error.what);
  arbiter_->fail_all(IoStatus::kFailed);
  events_.on_failed(error);
}

Task<Result<>> Store::checkpoint() {
  while (checkpoint_runs_) co_await checkpoint_done_.wait();
  if (!damage_.empty()) co_return sluice::fail(EROFS, "the store can only be read");
  const uint64_t available = places_.spare() + static_cast<uint64_t>(clusters_.free()) * geometry_.pages_per_cluster();
  if (checkpoint_.pages_needed() > available) co_return sluice::fail(ENOSPC, "the store has no room for its metadata");
  checkpoint_runs_ = true;
  const Result<> done = co_await checkpoint_.run(*journal_, name_, geometry_);
  checkpoint_runs_ = false;
  checkpoint_done_.notify_all();
  if (!done) fail(done.error());
  wake();
  co_return done;
}

// Clusters to keep for the pages that checkpoints will write. That may be all there are: any of them may change without
// a cluster being taken, and the journal must never be full without a way out.
uint64_t Store::reserve(uint64_t more_pages) const {
  const uint64_t all = checkpoint_.pages_at_most();
  // The next checkpoint needs so many free places. The one after that, too: when the next one is complete, all pages
  // have a place, and those that they had before are free.
  const uint64_t taken = static_cast<uint64_t>(places_.clusters()) * geometry_.pages_per_cluster();
  const uint64_t once = all + more_pages;
  const uint64_t twice = 2 * all + more_pages;
  const uint64_t missing = std::max(once - std::min(once, places_.spare()), twice - std::min(twice, taken));
  return (missing + geometry_.pages_per_cluster() - 1) / geometry_.pages_per_cluster();
}

}  // namespace sluice::lvol
