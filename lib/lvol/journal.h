// Journal: the ring of pages in which every change of maps and volumes is written before it counts as durable.
//
// Records are collected in memory and written by commits, each of them for all who wait: (1) flush of the base bdev, so
// that data are durable before the metadata that expose them; (2) the pages; (3) flush. What is appended while a commit
// runs is the next one's. A page is written once: a commit leaves the rest of its last page empty.
//
// Thread:     the store's owner.
// Ownership:  borrows `io`.
// Invariants: (1) the pages of a commit are written only when those of the one before are durable. (2) a page is not
//             written over while a superblock on disk would have it replayed. (3) sequence numbers, and the CRC that
//             each page has of the one before, make the pages one chain since the store was made.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>

#include "lib/bdev/io_buffer.h"
#include "lib/lvol/format.h"
#include "lib/lvol/meta_io.h"
#include "lib/thread/await.h"
#include "lib/thread/gate.h"

namespace sluice::lvol {

class Journal {
 public:
  // Where it goes on: of a new store the defaults, else what replay_journal() found.
  struct Position {
    uint64_t sequence = 1;      // of the next page
    uint32_t previous_crc = 0;  // of the page before it
    RecordNumber next_record = 1;
    uint64_t first_sequence = 1;  // of the oldest page that replay would need
  };

  Journal(const Geometry& geometry, const Uuid& store, MetaIo& io, const Position& position);
  // Requires: no commit is in progress (checked).
  ~Journal();

  // Adds a change to those of the next commit. Requires: fits(record), and has_reserve() (checked).
  RecordNumber append(const Record& record);
  // Whether one more change of a map may be appended: more pages of the ring are free than its reserve, which is a
  // sixteenth of them, but 4 at least.
  bool has_room() const { return free_pages() > reserve_pages_; }
  // Whether so many records, of any kind, may be appended: as many pages are free. For the volume list's own changes;
  // the reserve lets some of them through, each with a commit of its own, while a checkpoint makes room.
  bool has_reserve(uint32_t records = 1) const { return free_pages() >= records; }
  // Of the ring's pages, in percent: written or waiting.
  uint32_t used_percent() const;

  RecordNumber appended() const { return next_record_ - 1; }
  RecordNumber durable() const { return durable_; }
  bool dirty() const { return appended() != durable_; }
  // Pages with something in them that are not durable.
  uint64_t pending_pages() const { return next_sequence_ - first_pending_; }
  // Of the page to be begun next.
  uint64_t next_sequence() const { return next_sequence_; }

  // Returns when all that was appended before the call is durable, with data completed before. Joins a commit that
  // waits to begin; needs no room. Errors: EIO, ENODEV: nothing can be made durable any more: all later ones fail
  // likewise.
  Task<Result<>> commit();
  // Called after each commit with what is durable now, on the owner's thread.
  void on_durable(std::function<void(RecordNumber)> fn) { on_durable_ = std::move(fn); }

  // Where a checkpoint's replay begins: everything appended up to now is before it, what comes later behind. Closes
  // the page that is being filled. What was closed so is still written by the next commit.
  Position cut();
  // A superblock that begins at `position` is durable: pages before it may be written over.
  void release_before(const Position& position);

  // Waits for commits in progress. Nothing may be appended or committed any more.
  Task<> close();

 private:
  // A run of pages that lie one after the other on disk, and in memory: those of the ring's slots from a multiple of
  // kChunkPages on.
  struct Chunk {
    uint64_t first_sequence = 0;
    uint64_t end_sequence = 0;
    IoBuffer pages;
  };

  uint64_t slot_of(uint64_t sequence) const { return (sequence - 1) % ring_pages_; }
  // Pages that may be begun now without writing over one that replay needs, or that is still to be written itself.
  uint64_t free_pages() const;
  PageSpan page_of(uint64_t sequence);
  void open_page();
  void seal_before(uint64_t end_sequence);
  Task<> run_commit();
  Task<Result<>> write_before(uint64_t end_sequence);
  void drop_written_chunks();

  const uint64_t ring_pages_;
  const uint64_t reserve_pages_;
  const Uuid store_;
  const uint64_t opening_;
  MetaIo& io_;

  // Pages, by sequence number: first_pending_ <= first_unsealed_ <= next_sequence_.
  uint64_t first_sequence_;            // replay would begin here
  uint64_t first_pending_;             // all before it are durable
  uint64_t first_unsealed_;            // all before it have their header and CRC
  uint64_t next_sequence_;             // of the page to be begun next
  uint32_t previous_crc_;              // of the page before first_unsealed_
  bool filling_ = false;               // the last page takes more records
  std::byte* last_page_ = nullptr;     // while it does
  std::deque<Chunk> chunks_;           // with the pages from first_pending_ on
  IoBuffer spare_;                     // a chunk's buffer, for the next one
  std::deque<JournalHeader> headers_;  // of pages from first_unsealed_ on

  RecordNumber next_record_;
  RecordNumber durable_;
  std::function<void(RecordNumber)> on_durable_;

  // Commits, by number: begun_ - ended_ is 0 or 1.
  uint64_t begun_ = 0;
  uint64_t ended_ = 0;
  Signal commit_ended_;
  Result<> usable_;  // the error after which nothing can be made durable
  Gate gate_;
};

// Reads the journal from where the superblock says, in large reads, calls apply(record) for each record in order, and
// returns where it goes on. All that it has replayed is durable then. Pages that a power failure has cut off end it;
// they are recognised as such, and so are pages of an earlier life of the ring, or of what was on the disk before.
// Errors: EILSEQ: a page is damaged that had been durable (some records have been applied); EIO; what `apply` returns.
Task<Result<Journal::Position>> replay_journal(const Superblock& superblock, MetaIo& io,
                                               std::function<Result<>(const Record&)> apply);

}  // namespace sluice::lvol
