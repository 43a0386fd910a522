#include "lib/lvol/journal.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "lib/base/check.h"
#include "lib/bdev/bdev.h"

namespace sluice::lvol {
namespace {

constexpr uint64_t kChunkPages = 64;
constexpr uint32_t kMaxWrites = 8;

constexpr uint64_t kReplayBytes = 1U << 20;
constexpr uint64_t kReplayReads = 2;
// Pages replayed before others have a turn.
constexpr uint64_t kReplayStep = 8;

// Tells pages of this opening of the store from those that an earlier one wrote with the same sequence numbers and
// records: without it a page that was written again could be the same as before, byte for byte, and would have the
// old one's successor for its own.
uint64_t random_opening() {
  const Uuid random = Uuid::random();
  uint64_t opening;
  std::memcpy(&opening, random.bytes.data(), sizeof(opening));
  return opening;
}

}  // namespace

Journal::Journal(const Geometry& geometry, const Uuid& store, MetaIo& io, const Position& position)
    : ring_pages_(geometry.journal_pages),
      reserve_pages_(std::max<uint64_t>(geometry.journal_pages / 16, 4)),
      store_(store),
      opening_(random_opening()),
      io_(io),
      first_sequence_(position.first_sequence),
      first_pending_(position.sequence),
      first_unsealed_(position.sequence),
      next_sequence_(position.sequence),
      previous_crc_(position.previous_crc),
      next_record_(position.next_record),
      durable_(position.next_record - 1) {
  CHECK(ring_pages_ >= kMinJournalPages);
  CHECK(first_sequence_ <= next_sequence_);
  CHECK(next_sequence_ - first_sequence_ <= ring_pages_);
}

Journal::~Journal() { CHECK(begun_ == ended_); }

uint64_t Journal::free_pages() const {
  return ring_pages_ - (next_sequence_ - std::min(first_sequence_, first_pending_));
}

uint32_t Journal::used_percent() const {
  return static_cast<uint32_t>((ring_pages_ - free_pages()) * 100 / ring_pages_);
}

PageSpan Journal::page_of(uint64_t sequence) {
  // Chunks follow each other without a gap; all but those at the ring's end and the first one are of one size.
  const auto chunk = std::ranges::upper_bound(chunks_, sequence, {}, &Chunk::end_sequence);
  CHECK(chunk != chunks_.end() && sequence >= chunk->first_sequence);
  return PageSpan(chunk->pages.bytes().subspan((sequence - chunk->first_sequence) * kPageBytes).first<kPageBytes>());
}

void Journal::open_page() {
  CHECK(has_reserve());
  if (chunks_.empty() || chunks_.back().end_sequence == next_sequence_) {
    // To the next multiple of kChunkPages in the ring, or to its end.
    const uint64_t slot = slot_of(next_sequence_);
    const uint64_t slots = std::min(kChunkPages - slot % kChunkPages, ring_pages_ - slot);
    IoBuffer pages = std::exchange(spare_, {});
    if (pages.bytes().empty()) {
      const uint64_t pages_at_most = std::min(kChunkPages, ring_pages_);
      Result<IoBuffer> allocated = io_.channel().bdev().allocate_buffer(pages_at_most * kPageBytes);
      CHECK(allocated.has_value());  // without memory nothing goes on
      pages = std::move(*allocated);
    }
    chunks_.push_back({next_sequence_, next_sequence_ + slots, std::move(pages)});
  }
  headers_.push_back({.store = store_, .sequence = next_sequence_, .first_record = next_record_, .opening = opening_});
  const PageSpan page = page_of(next_sequence_);
  std::ranges::fill(page, std::byte{0});
  last_page_ = page.data();
  ++next_sequence_;
  filling_ = true;
}

RecordNumber Journal::append(const Record& record) {
  CHECK(!gate_.closed());
  CHECK(has_reserve());
  if (!filling_ || !lvol::append(record, PageSpan(last_page_, kPageBytes), headers_.back())) {
    open_page();
    CHECK(lvol::append(record, PageSpan(last_page_, kPageBytes), headers_.back()));
  }
  return next_record_++;
}

void Journal::seal_before(uint64_t end_sequence) {
  for (; first_unsealed_ < end_sequence; ++first_unsealed_) {
    JournalHeader& header = headers_.front();
    header.durable_sequence = first_pending_ - 1;
    header.previous_crc = previous_crc_;
    seal(header, page_of(first_unsealed_));
    previous_crc_ = header.crc;
    headers_.pop_front();
  }
}

// --- Commits ---

Task<Result<>> Journal::commit() {
  CHECK(gate_.enter());
  // One that has begun may have flushed before the caller's data were complete: the next one to begin is the one.
  const uint64_t mine = begun_ + 1;
  while (ended_ < mine && usable_) {
    if (begun_ == ended_) {
      co_await run_commit();
    } else {
      co_await commit_ended_.wait();
    }
  }
  gate_.leave();
  co_return usable_;
}

Task<> Journal::run_commit() {
  ++begun_;
  // What is appended from here on may refer to data that the flush does not cover.
  filling_ = false;
  const uint64_t end_sequence = next_sequence_;
  const RecordNumber last_record = appended();
  Result<> done = co_await io_.flush();
  if (done && first_pending_ < end_sequence) {
    done = co_await write_before(end_sequence);
    if (done) done = co_await io_.flush();
  }
  if (done) {
    first_pending_ = end_sequence;
    drop_written_chunks();
    durable_ = last_record;
  } else {
    usable_ = done;
  }
  ++ended_;
  commit_ended_.notify_all();
  if (done && on_durable_) on_durable_(durable_);
}

Task<Result<>> Journal::write_before(uint64_t end_sequence) {
  Result<> written;
  uint32_t in_flight = 0;
  Event one_done;
  uint64_t sequence = first_pending_;
  for (size_t i = 0; sequence < end_sequence; ++i) {
    while (in_flight == kMaxWrites) co_await one_done.wait();
    if (!written) break;
    // Others may append to the last chunk meanwhile, and add chunks behind it: they stay where they are.
    const Chunk& chunk = chunks_[i];
    const uint64_t end = std::min(chunk.end_sequence, end_sequence);
    seal_before(end);
    const std::span<const std::byte> bytes =
        chunk.pages.bytes().subspan((sequence - chunk.first_sequence) * kPageBytes, (end - sequence) * kPageBytes);
    ++in_flight;
    start(io_.write(kJournalFirstPage + slot_of(sequence), bytes), [&](Result<> result) {
      if (written && !result) written = result;
      --in_flight;
      one_done.set();
    });
    sequence = end;
  }
  while (in_flight > 0) co_await one_done.wait();
  co_return written;
}

void Journal::drop_written_chunks() {
  while (!chunks_.empty() && chunks_.front().end_sequence <= first_pending_) {
    spare_ = std::move(chunks_.front().pages);
    chunks_.pop_front();
  }
}

// --- Checkpoints ---

Journal::Position Journal::cut() {
  filling_ = false;
  seal_before(next_sequence_);
  return {.sequence = next_sequence_,
          .previous_crc = previous_crc_,
          .next_record = next_record_,
          .first_sequence = next_sequence_};
}

void Journal::release_before(const Position& position) {
  CHECK(position.sequence <= next_sequence_);
  first_sequence_ = std::max(first_sequence_, position.sequence);
}

Task<> Journal::close() {
  co_await gate_.close();
  filling_ = false;
}

// --- Replay ---

namespace {

// Goes through all pages of the ring, from the one that the superblock names on. First they are a chain; the first
// page that is not its next one (the hole) ends it. Those behind it are looked at for a proof that the hole should not
// be there.
class Replay {
 public:
  Replay(const Superblock& superblock, const std::function<Result<>(const Record&)>& apply)
      : store_(superblock.uuid), apply_(apply) {
    position_ = {.sequence = superblock.journal_sequence,
                 .previous_crc = superblock.journal_crc,
                 .next_record = superblock.first_record,
                 .first_sequence = superblock.journal_sequence};
  }

  Result<> take(PageView page) {
    const Result<JournalHeader> header = decode_journal_header(page, store_);
    if (!hole_ && header && header->sequence == position_.sequence && header->previous_crc == position_.previous_crc) {
      return take_next(page, *header);
    }
    hole_ = true;
    // Pages of the commit that the power failure cut off may lie behind the hole, also those of an earlier power
    // failure. When they were written the hole was not durable yet. One that says it was has been written after it:
    // then the hole is a page that has been lost. (Or, if it lies before that page by more than a turn of the ring,
    // written over: then it is the newest superblock that has been lost.)
    if (header && header->sequence > position_.sequence && header->durable_sequence >= position_.sequence) {
      return fail(EILSEQ, "a page of the journal is damaged or has been written over, and later ones need it");
    }
    return {};
  }

  const Journal::Position& position() const { return position_; }

 private:
  Result<> take_next(PageView page, const JournalHeader& header) {
    if (header.first_record != position_.next_record) {
      return fail(EILSEQ, "records are missing between two pages of the journal");
    }
    const Result<std::vector<Record>> records = decode_records(page, header);
    if (!records) return std::unexpected(records.error());
    for (const Record& record : *records) {
      if (const Result<> applied = apply_(record); !applied) return applied;
    }
    ++position_.sequence;
    position_.previous_crc = header.crc;
    position_.next_record += header.records;
    return {};
  }

  const Uuid store_;
  const std::function<Result<>(const Record&)>& apply_;
  Journal::Position position_;
  bool hole_ = false;
};

// Some pages of the ring, on their way or read.
struct ReplayRead {
  IoBuffer buffer;
  std::span<std::byte> bytes;  // what of it is being read
  Result<> result;
  Event done;
};

// Reads the ring's pages, all of them once and in order, beginning anywhere; some large reads are ahead.
class RingReader {
 public:
  RingReader(MetaIo& io, uint64_t ring_pages, uint64_t first_slot)
      : io_(io), ring_pages_(ring_pages), next_slot_(first_slot), unread_pages_(ring_pages) {}

  Result<> start_all() {
    for (ReplayRead& read : reads_) {
      Result<IoBuffer> buffer = io_.channel().bdev().allocate_buffer(std::min(kReplayBytes, ring_pages_ * kPageBytes));
      if (!buffer) return std::unexpected(buffer.error());
      read.buffer = std::move(*buffer);
    }
    for (ReplayRead& read : reads_) start_next(read);
    return {};
  }

  // The next pages to look at; nullptr when all have been.
  ReplayRead* front() { return reads_[front_].bytes.empty() ? nullptr : &reads_[front_]; }
  // The front's pages are not needed any more.
  void pop_front() {
    start_next(reads_[front_]);
    front_ = (front_ + 1) % kReplayReads;
  }
  // Before the end: buffers are the device's until then.
  Task<> wait_for_all() {
    for (uint64_t i = 0; i < kReplayReads; ++i) {
      if (ReplayRead* const read = front()) co_await read->done.wait();
      reads_[front_].bytes = {};
      front_ = (front_ + 1) % kReplayReads;
    }
  }

 private:
  void start_next(ReplayRead& read) {
    const uint64_t pages =
        std::min({unread_pages_, ring_pages_ - next_slot_, uint64_t{read.buffer.bytes().size() / kPageBytes}});
    read.bytes = read.buffer.bytes().first(pages * kPageBytes);
    if (pages == 0) return;
    start(io_.read(kJournalFirstPage + next_slot_, read.bytes), [&read](Result<> result) {
      read.result = result;
      read.done.set();
    });
    next_slot_ = (next_slot_ + pages) % ring_pages_;
    unread_pages_ -= pages;
  }

  MetaIo& io_;
  const uint64_t ring_pages_;
  uint64_t next_slot_;
  uint64_t unread_pages_;
  std::array<ReplayRead, kReplayReads> reads_;
  size_t front_ = 0;
};

Task<Result<>> replay_pages(std::span<const std::byte> bytes, Replay& replay) {
  for (uint64_t page = 0; page < bytes.size() / kPageBytes; ++page) {
    if (page % kReplayStep == 0) co_await next_turn();
    const Result<> taken = replay.take(PageView(bytes.subspan(page * kPageBytes).first<kPageBytes>()));
    if (!taken) co_return taken;
  }
  co_return Result<>{};
}

}  // namespace

Task<Result<Journal::Position>> replay_journal(const Superblock& superblock, MetaIo& io,
                                               std::function<Result<>(const Record&)> apply) {
  const uint64_t ring_pages = superblock.geometry.journal_pages;
  Replay replay(superblock, apply);
  RingReader reader(io, ring_pages, (superblock.journal_sequence - 1) % ring_pages);
  Result<> replayed = reader.start_all();
  while (replayed) {
    ReplayRead* const read = reader.front();
    if (read == nullptr) break;
    co_await read->done.wait();
    replayed = read->result;
    if (replayed) replayed = co_await replay_pages(read->bytes, replay);
    reader.pop_front();
  }
  co_await reader.wait_for_all();
  // After a crash of this process alone, what was read may never have been flushed. Clusters that it says are free
  // will be written to.
  if (replayed) replayed = co_await io.flush();
  if (!replayed) co_return std::unexpected(replayed.error());
  co_return replay.position();
}

}  // namespace sluice::lvol
